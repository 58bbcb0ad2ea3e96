"""Latents and probabilities of CT volumes without a data set: `open_model`, and a model's `predict` and `embed`."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from ctclip_model.config import DECISIONS_FILE, Recipe
from ctclip_model.data.abnormalities import ABNORMALITIES
from ctclip_model.data.label_sets import CT_RATE_18, LabelSet
from ctclip_model.data.names import HEADER
from ctclip_model.device import Precision, choose_device
from ctclip_model.errors import CheckpointError, ConfigurationError, VolumeError
from ctclip_model.evaluation.decisions import Decision, Decisions, decide, find_decisions
from ctclip_model.evaluation.embed import Floats, embed_prompts, embed_volumes, embed_with_tokens
from ctclip_model.evaluation.evidence import Evidence, Readout, read_head, read_prompts, split_scores
from ctclip_model.evaluation.evidence_files import (
    EvidenceSlices,
    VolumeEvidence,
    draw_slices,
    folder_name,
    prepare_folder,
    write_evidence,
)
from ctclip_model.evaluation.zero_shot import zero_shot
from ctclip_model.models.clip import CTCLIP
from ctclip_model.models.external import ExternalModel
from ctclip_model.models.find_model import LoadedModel, load_model
from ctclip_model.models.hub import download_model, parse_hub_address
from ctclip_model.models.weights_files import hash_weights

if TYPE_CHECKING:  # reading volumes needs nibabel, which a GPU machine may lack
    from ctclip_model.data.dicom import DicomSeries
    from ctclip_model.data.volume import ConvertedVolume

SUFFIXES = (".nii", ".nii.gz")

Paths = Iterable["str | os.PathLike[str] | Volume"]
OnError = Callable[[Path, VolumeError], object]  # called with a file that cannot be used
Source: TypeAlias = "Path | DicomSeries"
Volume: TypeAlias = "Source | VolumeError"  # a file, a series, or a series that is refused
Head = Callable[[Floats], NDArray[np.float64]]  # unit latents (N, latent) to probabilities (N, findings)


@dataclass(frozen=True)
class EmbeddedVolume:
    """A volume's unit latent (latent,), the spacing used (mm, by array axis), and doubts about the file.

    `path` is the file, or the folder of a DICOM series with the series' name behind it. `turn` says how the array was
    turned to the model's orientation, such as `RAS → LPS`. `ids` are a DICOM patient's identifiers by keyword, if
    `list_volumes` was asked for them.
    """

    path: Path
    latent: Floats
    spacing_mm: tuple[float, float, float]
    doubts: list[str]
    turn: str
    ids: Mapping[str, str] = field(default_factory=dict, kw_only=True)


@dataclass(frozen=True)
class PredictedVolume(EmbeddedVolume):
    """An embedded volume with the probability (names,) of each abnormality, in the order of `names`.

    These are the model's own scores, without calibration. `decisions` are calibrated, and compared with thresholds,
    where an evaluation left its rules with the model.

    `evidence` says from where in the volume each score comes, if `predict` was asked for it.
    """

    probabilities: NDArray[np.float64]
    names: tuple[str, ...] = field(default=ABNORMALITIES, kw_only=True)
    decisions: tuple[Decision, ...] = field(default=(), kw_only=True)
    evidence: VolumeEvidence | None = field(default=None, kw_only=True)
    slices: tuple[EvidenceSlices, ...] = field(default=(), kw_only=True)

    @property
    def by_abnormality(self) -> dict[str, float]:
        """Probabilities by the name of the abnormality."""
        return dict(zip(self.names, self.probabilities.tolist(), strict=True))


@dataclass(frozen=True)
class VolumeModel:
    """A model with the recipe of its volumes and the label set that it predicts, made by `open_model`."""

    loaded: LoadedModel
    precision: Precision = Precision.float32
    label_set: LabelSet = CT_RATE_18

    @property
    def name(self) -> str:
        return self.loaded.name

    @property
    def recipe(self) -> Recipe:
        return self.loaded.recipe

    @cached_property
    def weights_sha256(self) -> str:
        """SHA-256 of the weights, in hexadecimal."""
        return hash_weights(self.loaded.weights)

    @property
    def device(self) -> torch.device:
        return self.loaded.model.device

    @cached_property
    def head(self) -> Head:
        """Probabilities by the model's own head, or zero-shot by prompts, which are embedded once."""
        if self.loaded.head is not None:
            return self.loaded.head.probabilities
        prompts = self.prompts  # complains about a model without a text side
        return partial(zero_shot, prompt_latents=prompts, logit_scale=self.logit_scale)

    @cached_property
    def prompts(self) -> Floats:
        """Unit latents (findings, 2, latent) of the prompts [present, absent]."""
        model, tokenizer = self.loaded.model, self.loaded.tokenizer
        if isinstance(model, ExternalModel):
            if model.logit_scale is None:
                raise ConfigurationError(
                    f"{self.name}: {model.named} has no text side: predict with a LiPro of it, which "
                    f"`ctclip finetune --kind lipro --model {self.name}` trains"
                )
        elif tokenizer is None:
            raise ConfigurationError(f"{self.name}: predict needs the prompts: open the model with its text side")
        return embed_prompts(model, tokenizer, self.label_set, dtype=self.precision.autocast)

    @cached_property
    def decisions(self) -> Decisions | None:
        """Thresholds and calibration that an evaluation left in the model folder for the label set, or None.

        Raises `CheckpointError` for those of other weights.
        """
        folder = self.loaded.folder
        if folder is None or not (folder / DECISIONS_FILE).exists():
            return None
        return find_decisions(folder, self.weights_sha256, self.label_set)

    @property
    def logit_scale(self) -> float:
        """The factor on similarities. `prompts` complains about a model that has none."""
        scale = self.loaded.model.logit_scale
        assert scale is not None, "a model with prompts has a text side"
        return scale

    def read_scores(self, latent: Floats) -> Readout:
        """The linear function of a unit latent (latent,) whose logistic function are the model's probabilities."""
        if self.loaded.head is not None:
            return read_head(self.loaded.head, latent)
        return read_prompts(self.prompts, self.logit_scale)

    def explain(self, volume: torch.Tensor) -> tuple[Floats, NDArray[np.float64], Evidence]:
        """The unit latent (latent,) of one volume, the probabilities (findings,), and the evidence of their scores.

        `volume` (1, depth, height, width) went through the model's recipe: int16 HU as in shards, or floats in [-1, 1].
        """
        encoder = self._require_evidence()
        latents, norms, tokens = embed_with_tokens(encoder, volume.unsqueeze(0), dtype=self.precision.autocast)
        evidence = split_scores(encoder, self.read_scores(latents[0]), tokens[0], norms[0])
        return latents[0], self.head(latents)[0], evidence

    def check_predict(self, *, with_evidence: bool) -> None:
        """Complains before a volume is read, as `predict` does.

        Raises `ConfigurationError` for a model that predicts nothing, or gives no evidence, and `CheckpointError` for
        decisions of other weights.
        """
        if with_evidence:
            self._require_evidence()
        _ = self.head, self.decisions

    def _require_evidence(self) -> CTCLIP:
        """The CT-CLIP whose tokens carry the evidence. Raises `ConfigurationError` for an encoder without tokens."""
        model = self.loaded.model
        if isinstance(model, ExternalModel):
            raise ConfigurationError(
                f"{self.name}: evidence is read from the tokens of CT-CLIP, and {model.named} gives one latent of a "
                "volume: leave --evidence and --page out"
            )
        return model

    def embed(
        self, paths: Paths, *, orientation: str = HEADER, on_error: OnError | None = None
    ) -> Iterator[EmbeddedVolume]:
        """The unit latent of each CT volume, in the order of the paths. A folder stands for all volumes below it.

        Volumes are NIfTI files and DICOM series. `orientation` is `header`, `stored` or a code (see `load_volume`).

        The next file is read while the model encodes. A file that cannot be used raises `VolumeError`. If `on_error` is
        given, it is called with the path and the error instead, and the other files go on.

        Raises `ConfigurationError` for a folder without a volume. Raises `CheckpointError` for a latent that is not
        finite.

        >>> from ctclip_model import open_model
        >>> model = open_model("CT-CLIP_v2.pt", with_text=False)
        >>> [(volume.path.name, volume.latent.shape) for volume in model.embed(["scan.nii.gz"])]
        [('scan.nii.gz', (8,))]
        """
        for given, volume in _read_volumes(paths, self.recipe, orientation, on_error):
            batch = ([path_of(given).name], volume.to_input().unsqueeze(0))
            ((_, latents),) = embed_volumes(self.loaded.model, [batch], dtype=self.precision.autocast)
            yield self._describe(given, volume, latents[0])

    def predict(
        self,
        paths: Paths,
        *,
        orientation: str = HEADER,
        on_error: OnError | None = None,
        evidence: str | os.PathLike[str] | None = None,
        taken: Collection[str] = (),
        with_slices: bool = False,
    ) -> Iterator[PredictedVolume]:
        """The probability of each finding of the label set in each volume, beside its latent.

        LiPro answers by its head, other models zero-shot by the prompts. For research, not for diagnosis.
        Arguments and errors are those of `embed`.

        `evidence` is a folder. Each volume gets a folder in it: for each abnormality a NIfTI overlay of the parts that
        the score is the sum of, and a picture. See `ctclip_model.evaluation.evidence`. `taken` are names of
        folders in it that no volume gets. `with_slices` draws slices of the same evidence.

        >>> from ctclip_model import open_model
        >>> model = open_model("CT-CLIP_v2.pt")
        >>> (volume,) = model.predict(["scan.nii.gz"])
        >>> volume.probabilities.shape
        (18,)
        >>> 0 < volume.by_abnormality["Pleural effusion"] < 1
        True
        """
        self.check_predict(with_evidence=evidence is not None or with_slices)
        head = self.head
        if evidence is not None or with_slices:
            folder = None if evidence is None else Path(evidence)
            yield from self._predict_with_evidence(paths, orientation, on_error, folder, {*taken}, with_slices)
            return
        for volume in self.embed(paths, orientation=orientation, on_error=on_error):
            scores = head(volume.latent[None])[0]
            decided = decide(scores, self.decisions, self.label_set.names)
            yield PredictedVolume(**vars(volume), probabilities=scores, names=self.label_set.names, decisions=decided)

    def _predict_with_evidence(
        self,
        paths: Paths,
        orientation: str,
        on_error: OnError | None,
        folder: Path | None,
        taken: set[str],
        with_slices: bool,
    ) -> Iterator[PredictedVolume]:
        if folder is not None:
            prepare_folder(folder)
        for given, volume in _read_volumes(paths, self.recipe, orientation, on_error):
            latent, probabilities, parts = self.explain(volume.to_input())
            embedded = self._describe(given, volume, latent)
            names = self.label_set.names
            decided, files = decide(probabilities, self.decisions, names), None
            slices: tuple[EvidenceSlices, ...] = ()
            if folder is not None:
                name = folder_name(embedded.path.name, taken)
                taken.add(name)
                files = write_evidence(folder / name, given, volume, self.recipe, parts, probabilities, decided, names)
            if with_slices:
                slices = draw_slices(volume, self.recipe, parts, probabilities, decided)
            yield PredictedVolume(
                **vars(embedded),
                probabilities=probabilities,
                names=names,
                decisions=decided,
                evidence=files,
                slices=slices,
            )

    def _describe(self, given: Source, volume: ConvertedVolume, latent: Floats) -> EmbeddedVolume:
        """A volume with its latent. Raises `CheckpointError` for a latent that is not finite, or zero."""
        path = path_of(given)
        if not np.isfinite(latent).all():
            raise CheckpointError(f"{self.name}: its latent of {path} is not finite: the weights are damaged")
        if not latent.any():
            raise CheckpointError(f"{self.name}: its latent of {path} is zero, which has no direction")
        ids = getattr(given, "ids", {})
        return EmbeddedVolume(path, latent, volume.spacing_mm, list(volume.doubts), volume.turn, ids=ids)


def open_model(
    source: str | os.PathLike[str],
    *,
    device: str = "cpu",
    precision: Precision | str = Precision.float32,
    with_text: bool = True,
    tokenizer: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    label_set: LabelSet | None = None,
) -> VolumeModel:
    """Opens a model to `predict` and `embed` CT volumes of your own.

    `source` is a model folder, a weights file such as `CT-CLIP_v2.pt` or `CT_LiPro_v2.pt`, or a model folder on the
    Hub, `owner/name` or `hf://owner/name`, at `revision`. `device` is auto, cpu or cuda, and `precision` is float32 or
    bfloat16.

    A weights file has the published recipe. Its prompts need `tokenizer` (a file, or its folder), one beside the
    weights, or the published one, which is downloaded. `with_text=False` reads no tokenizer: enough to `embed`.

    `label_set` has the findings and prompts to predict, by default those that the model learned. A LiPro predicts those
    of its head alone.

    Raises `CheckpointError` for damaged files or another model, and `MissingInputError` for a missing tokenizer.
    Raises `ConfigurationError` for a missing device or a LiPro with another set, `ValueError` for another precision,
    and `HubError` for a model that the Hub does not give.

    >>> from ctclip_model import open_model
    >>> model = open_model("CT-CLIP_v2.pt", device="cpu")
    >>> model.name, model.recipe.shape
    ('CT-CLIP_v2', (240, 480, 480))
    >>> for volume in model.predict(["scan.nii.gz"]):
    ...     print(volume.path, len(volume.by_abnormality))
    scan.nii.gz 18
    """
    chosen = str(choose_device(device))
    path, name = Path(source), None  # a name on the Hub is the model's name
    address = parse_hub_address(source) if isinstance(source, str) and not path.exists() else None
    if address is not None:
        name, own_revision = address
        path = download_model(name, revision or own_revision)
    loaded = load_model(
        path, name=name, device=chosen, with_text=with_text, tokenizer=None if tokenizer is None else Path(tokenizer)
    )
    chosen_set = label_set or loaded.label_set
    if loaded.head is not None and chosen_set != loaded.label_set:
        raise ConfigurationError(
            f"{loaded.name}: is a LiPro, which predicts the findings of its head and reads no prompts: take the model "
            "that it was made of"
        )
    return VolumeModel(loaded, Precision(precision), chosen_set)


def list_volumes(paths: Paths, *, with_ids: bool = False) -> list[Volume]:
    """The given files, each once, and every NIfTI file and DICOM series below a given folder. Leaves out hidden files.

    A series that is no CT volume is listed as the error that refuses it. `with_ids` keeps the name and the identifiers
    of a series' patient in its `ids`. Without it they appear nowhere. Raises `ConfigurationError` for a folder
    without any volume, and for DICOM without pydicom.
    """
    from ctclip_model.data.dicom import has_dicom, is_dicom, list_series

    found: list[Volume] = []
    for given in paths:
        if not isinstance(given, str | os.PathLike):
            found.append(given)  # listed before
            continue
        path = Path(given)
        inside: list[Volume] = [path]
        if path.is_dir():
            files = [file for file in path.rglob("*") if _is_volume(file.relative_to(path)) and not file.is_dir()]
            series = list_series(path, with_ids=with_ids) if has_dicom(path) else []
            inside = [*(file for file in sorted(files) if not is_dicom(file)), *series]
        elif is_dicom(path):
            inside = [*list_series(path, with_ids=with_ids)]
        if not inside:
            raise ConfigurationError(f"{path}: there is no {', '.join(SUFFIXES)} or DICOM series in this folder")
        found += inside
    return list(dict.fromkeys(found))


def _is_volume(path: PurePath) -> bool:
    """True for a NIfTI's name, in either case, that is not hidden and lies in no hidden folder."""
    return path.name.lower().endswith(SUFFIXES) and not any(part.startswith(".") for part in path.parts)


def _read_volumes(
    paths: Paths, recipe: Recipe, orientation: str, on_error: OnError | None
) -> Iterator[tuple[Source, ConvertedVolume]]:
    """Each volume that can be used. The others raise `VolumeError`, or `on_error` is called with them."""
    for given, read in _read_ahead(list_volumes(paths), recipe, orientation):
        try:
            volume = read.result()
        except VolumeError as error:
            if on_error is None:
                raise
            on_error(path_of(given), error)
            continue
        assert not isinstance(given, VolumeError)
        yield given, volume


def _read_ahead(
    volumes: Iterable[Volume], recipe: Recipe, orientation: str
) -> Iterator[tuple[Volume, Future[ConvertedVolume]]]:
    """Reads one file while the one before it is encoded, and no more: each holds 220 MB as published."""
    reads: deque[tuple[Volume, Future[ConvertedVolume]]] = deque()
    with ThreadPoolExecutor(1) as pool:
        for volume in volumes:
            reads.append((volume, pool.submit(_read, volume, recipe, orientation)))
            if len(reads) > 1:
                yield reads.popleft()
        yield from reads


def path_of(volume: Volume) -> Path:
    """The path of a file, or the folder of a DICOM series with the series' name behind it."""
    if isinstance(volume, VolumeError):
        return Path(volume.item)
    return volume if isinstance(volume, Path) else volume.folder / volume.name


def _read(volume: Volume, recipe: Recipe, orientation: str) -> ConvertedVolume:
    """A volume in float32 HU with its doubts. Every fault of the file is a `VolumeError`."""
    from ctclip_model.data.nifti import fault
    from ctclip_model.data.volume import read_volume

    if isinstance(volume, VolumeError):
        raise volume
    try:
        return read_volume(volume, recipe=recipe, orientation=orientation)
    except OSError as error:  # stages try such a file again; here it is reported
        raise fault(path_of(volume), "unreadable_file", error.strerror or str(error)) from error
