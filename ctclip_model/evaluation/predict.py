"""Latents and probabilities of anybody's own CT volumes: a file goes in, with no data set around it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ctclip_model.config import Recipe
from ctclip_model.data.abnormalities import ABNORMALITIES
from ctclip_model.errors import ConfigurationError, VolumeError
from ctclip_model.evaluation.embed import Floats, embed_prompts, embed_volumes
from ctclip_model.evaluation.zero_shot import zero_shot
from ctclip_model.models.open_model import OpenedModel

SUFFIXES = (".nii", ".nii.gz")

Head = Callable[[Floats], NDArray[np.float64]]  # unit latents (N, latent) to the probabilities (N, 18) of abnormalities
_Read = tuple[Tensor, tuple[float, float, float], list[str]]  # a file's voxels, spacing and doubts


@dataclass(frozen=True)
class EmbeddedVolume:
    """A volume's unit latent (latent,), the spacing used (mm, by array axis), and what is in doubt about the file."""

    path: Path
    latent: Floats
    spacing_mm: tuple[float, float, float]
    doubts: list[str]


def list_volumes(paths: Sequence[Path]) -> list[Path]:
    """The given files, and of a folder every NIfTI below it, sorted; what is hidden is left out, for it is no volume.

    Each once. Raises `ConfigurationError` for a folder without any.
    """
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        inside = [file for file in path.rglob("*") if _is_volume(file.relative_to(path)) and not file.is_dir()]
        if not inside:
            raise ConfigurationError(f"{path}: there is no {' or '.join(SUFFIXES)} in this folder")
        found += sorted(inside)
    return list(dict.fromkeys(found))


def _is_volume(place: PurePath) -> bool:
    """Whether a name is a NIfTI's, in either case, and nothing on the way to it is hidden."""
    return place.name.lower().endswith(SUFFIXES) and not any(part.startswith(".") for part in place.parts)


def make_head(opened: OpenedModel, *, dtype: torch.dtype | None = None) -> Head:
    """How the model makes probabilities of latents: by its own head, or zero-shot, its prompts embedded once."""
    if opened.head is not None:
        return opened.head.probabilities
    assert opened.tokenizer is not None, "open the model with its text side"
    prompts = embed_prompts(opened.model, opened.tokenizer, ABNORMALITIES, dtype=dtype)
    return partial(zero_shot, prompt_latents=prompts, logit_scale=opened.model.temperature.exp().item())


def embed_files(
    opened: OpenedModel, paths: Iterable[Path], *, dtype: torch.dtype | None = None
) -> Iterator[EmbeddedVolume | VolumeError]:
    """Each file's latent, or why it has none, in the order of the paths; the next file is read meanwhile.

    With a `dtype` such as bfloat16 the model runs in autocast.
    """
    for path, read in _read_ahead(paths, opened.recipe):
        try:
            volume, spacing_mm, doubts = read.result()
        except VolumeError as error:
            yield error
            continue
        ((_, latents),) = embed_volumes(opened.model, [([path.name], volume.unsqueeze(0))], dtype=dtype)
        yield EmbeddedVolume(path, latents[0], spacing_mm, doubts)


def _read_ahead(paths: Iterable[Path], recipe: Recipe) -> Iterator[tuple[Path, Future[_Read]]]:
    """One file is read while the one before it is encoded, and no more: each holds 220 MB as published."""
    reads: deque[tuple[Path, Future[_Read]]] = deque()
    with ThreadPoolExecutor(1) as pool:
        for path in paths:
            reads.append((path, pool.submit(_read, path, recipe)))
            if len(reads) > 1:
                yield reads.popleft()
        yield from reads


def _read(path: Path, recipe: Recipe) -> _Read:
    """A file as the model's input (1, depth, height, width), its spacing and doubts; every fault is a `VolumeError`."""
    from ctclip_model.data.doubts import list_doubts  # these need nibabel, which a GPU machine may lack
    from ctclip_model.data.nifti import NiftiStream, fault
    from ctclip_model.data.volume import read_volume

    try:
        with NiftiStream(path) as stream:
            header = stream.header
        volume = read_volume(path, recipe=recipe)
    except OSError as error:  # a stage tries it again; a person is told
        raise fault(path, "unreadable_file", error.strerror or str(error)) from error
    return volume.to_input(), volume.spacing_mm, list_doubts(header, volume)
