"""The files of a volume's evidence: an overlay for each abnormality, and a picture of the present ones."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ctclip_model.config import Recipe
from ctclip_model.data.abnormalities import ABNORMALITIES
from ctclip_model.errors import ConfigurationError
from ctclip_model.evaluation.decisions import Decision
from ctclip_model.evaluation.evidence import Evidence

if TYPE_CHECKING:  # reading volumes needs nibabel, and pictures pillow, which a GPU machine may lack
    from PIL.Image import Image

    from ctclip_model.data.dicom import DicomSeries
    from ctclip_model.data.volume import ConvertedVolume
    from ctclip_model.evaluation.evidence_picture import Row

LONGEST_STEM = 50  # characters of an overlay's file name
PICTURE = "evidence.png"
THREADS = 4  # overlays written at once; one may wait for the disk
PNG_LEVEL = 3  # a third of the time of the default, for a tenth more bytes
PICTURED = 3  # most rows of a picture
PRESENT = 0.5  # probability from which an abnormality is pictured; without one, the most probable is


@dataclass(frozen=True)
class StrongestPatch:
    """The patch with an abnormality's largest part: that part, and the voxel of the CT's array in its middle."""

    part: float
    voxel: tuple[int, int, int]


@dataclass(frozen=True)
class EvidenceSlices:
    """Slices through the strongest patch of an abnormality, as (plane, picture). `index` is its index in the set."""

    index: int
    panels: list[tuple[str, Image]]


@dataclass(frozen=True)
class VolumeEvidence:
    """Evidence for the abnormalities of a volume, in the order of `names`, and the folder of its files."""

    evidence: Evidence
    folder: Path
    strongest: tuple[StrongestPatch, ...]
    names: tuple[str, ...] = ABNORMALITIES

    @property
    def picture(self) -> Path:
        return self.folder / PICTURE

    def overlay(self, abnormality: str) -> Path:
        """The NIfTI overlay of an abnormality."""
        return self.folder / overlay_names(self.names)[self.names.index(abnormality)]

    def as_json(self) -> dict[str, Any]:
        """Paths, and for each abnormality its score, the score's constant, and the strongest patch."""
        scores, constants = self.evidence.scores.tolist(), self.evidence.constants.tolist()
        by_abnormality = {
            name: {
                "score": score, "constant": constant, "strongest_part": patch.part, "voxel": list(patch.voxel),
                "overlay": str(self.overlay(name)),
            }
            for name, score, constant, patch in zip(self.names, scores, constants, self.strongest, strict=True)
        }  # fmt: skip
        return {"picture": str(self.picture), "abnormalities": by_abnormality}


def overlay_names(names: Sequence[str]) -> list[str]:
    """The file names of the overlays of abnormalities. Each is another.

    >>> overlay_names(["Lung nodule", "Lung/nodule"])
    ['lung_nodule.nii.gz', 'lung_nodule-2.nii.gz']
    """
    stems: list[str] = []
    for name in names:
        stems.append(folder_name(name.lower()[:LONGEST_STEM], stems))
    return [f"{stem}.nii.gz" for stem in stems]


def prepare_folder(folder: Path) -> None:
    """Makes the folder of all evidence. Raises `ConfigurationError` for a file in its place."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigurationError(f"{folder}: evidence is written into a folder, and this is a file") from error


def folder_name(volume_name: str, taken: Collection[str] = ()) -> str:
    """The name of a volume's folder of evidence. A name that is taken gets a number.

    >>> folder_name("scan 1.nii.gz", taken={"scan_1"})
    'scan_1-2'
    """
    stem = re.sub(r"\.nii(\.gz)?$", "", volume_name, flags=re.IGNORECASE)
    plain = re.sub(r"[^\w.+-]+", "_", stem).lstrip(".") or "volume"
    name, number = plain, 1
    while name in taken:
        number += 1
        name = f"{plain}-{number}"
    return name


def write_evidence(
    folder: Path,
    source: Path | DicomSeries,
    volume: ConvertedVolume,
    recipe: Recipe,
    evidence: Evidence,
    probabilities: NDArray[np.float64],
    decisions: Sequence[Decision] = (),
    names: Sequence[str] = ABNORMALITIES,
) -> VolumeEvidence:
    """Writes the overlays and the picture of a volume's evidence into `folder`.

    `volume` holds the model's input, voxels in [-1, 1]. `probabilities` (names,) and `decisions` choose the rows of
    the picture. `names` are those of the abnormalities. Raises `VolumeError` for a file whose header is gone.
    """
    from ctclip_model.data.overlays import make_header, place_patches, write_overlay
    from ctclip_model.evaluation.evidence_picture import draw_evidence
    from ctclip_model.files import whole_file

    depth, height, width = evidence.parts.shape[1:]
    grid = place_patches(volume, recipe, (depth, height, width))
    header = make_header(source, grid.shape)
    folder.mkdir(parents=True, exist_ok=True)

    def write(name: str, file: str, parts: NDArray[np.floating]) -> None:
        write_overlay(folder / file, header, parts, grid, f"CT-CLIP evidence: {name}")

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(write, names, overlay_names(names), evidence.parts))
    patches = evidence.strongest(grid.inside)
    rows = [
        _make_row(evidence, index, patches[index], probabilities[index], names[index])
        for index in choose_rows(probabilities, decisions)
    ]
    picture = draw_evidence(volume.voxels, recipe.spacing_mm, rows, folder.name)
    with whole_file(folder / PICTURE) as file:
        picture.save(file, format="PNG", compress_level=PNG_LEVEL)
    strongest = tuple(
        StrongestPatch(float(parts[tuple(patch)]), grid.centre(patch.tolist()))
        for parts, patch in zip(evidence.parts, patches, strict=True)
    )
    return VolumeEvidence(evidence, folder, strongest, tuple(names))


def draw_slices(
    volume: ConvertedVolume,
    recipe: Recipe,
    evidence: Evidence,
    probabilities: NDArray[np.float64],
    decisions: Sequence[Decision] = (),
) -> tuple[EvidenceSlices, ...]:
    """The slices of the abnormalities that `write_evidence` pictures, without files. Arguments are those of it."""
    from ctclip_model.data.overlays import place_patches

    depth, height, width = evidence.parts.shape[1:]
    inside = place_patches(volume, recipe, (depth, height, width)).inside
    return tuple(
        EvidenceSlices(index, draw_finding(volume.voxels, recipe, evidence, index, inside))
        for index in choose_rows(probabilities, decisions)
    )


def draw_finding(
    voxels: NDArray[np.floating], recipe: Recipe, evidence: Evidence, index: int, inside: NDArray[np.bool_]
) -> list[tuple[str, Image]]:
    """The slices through the strongest patch of one abnormality, as (plane, picture).

    `voxels` (depth, height, width) are the model's input in [-1, 1], and `inside` the patches that hold a voxel of the
    CT. `index` is the abnormality's index in the set.
    """
    from ctclip_model.evaluation.evidence_picture import Row, draw_panels

    depth, height, width = (int(place) for place in evidence.strongest(inside)[index])
    return draw_panels(voxels, recipe.spacing_mm, Row("", evidence.parts[index], (depth, height, width)))


def find_inside(
    start: Sequence[int], stop: Sequence[int], shape: Sequence[int], grid: Sequence[int]
) -> NDArray[np.bool_]:
    """Patches of a `grid` (depth, height, width) that hold a voxel of the CT. The others are padding.

    The CT lies in the voxels from `start` to `stop` of a model's input of that `shape`, as `ShardRow` says.
    """
    along = [
        (np.arange(count) * size < last * count) & ((np.arange(count) + 1) * size > first * count)
        for first, last, size, count in zip(start, stop, shape, grid, strict=True)
    ]
    return along[0][:, None, None] & along[1][:, None] & along[2]


def choose_rows(probabilities: NDArray[np.float64], decisions: Sequence[Decision] = ()) -> list[int]:
    """The abnormalities of a picture, the most probable first: at most three present ones, at least one.

    Present is what a decision says. Where no abnormality is decided, it is a probability of 0.5 or more.
    """
    is_decided = any(decision.is_present is not None for decision in decisions)
    if is_decided:
        probabilities = np.array([-1.0 if one.probability is None else one.probability for one in decisions])
        is_shown = [bool(one.is_present) for one in decisions]
    else:
        is_shown = (probabilities >= PRESENT).tolist()
    ranked: list[int] = np.argsort(-probabilities, kind="stable").tolist()
    return [index for index in ranked if is_shown[index]][:PICTURED] or ranked[:1]


def _make_row(evidence: Evidence, index: int, patch: NDArray[np.intp], probability: float, name: str) -> Row:
    from ctclip_model.evaluation.evidence_picture import Row

    depth, height, width = (int(place) for place in patch)
    parts = evidence.parts[index]
    title = (
        f"{name}   probability {probability:.2f}   score {evidence.scores[index]:+.2f}   "
        f"strongest patch {parts[depth, height, width]:+.2g}"
    )
    return Row(title, parts, (depth, height, width))
