"""Evidence on phantoms, whose lesions' voxels are known: does the strongest patch touch the lesion?

A lesion is the difference between a scan and the same scan without the abnormality. The share of positives whose
strongest patch touches it stands beside chance (a random patch of the CT) and beside occlusion: the patch whose
replacement by the mean of that place over all scans lowers the score most. `its column` asks only that the lesion lies
above or below the strongest patch. `above usual` takes the parts less their mean at the same place over scans without
the abnormality.

Usage: python benchmarks/bench_evidence.py hits [MODELS] [scans]   MODELS: the folder of models of a demonstration
       python benchmarks/bench_evidence.py cost [slices] [runs]    predict as published, with and without evidence
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from measure import in_turn, machine
from numpy.typing import NDArray
from volumes import write_volume

from ctclip_model.config import CTCLIPConfig, Recipe
from ctclip_model.data.abnormalities import ABNORMALITIES
from ctclip_model.data.overlays import PatchGrid, place_patches
from ctclip_model.data.phantom.anatomy import Scan, draw_body, render
from ctclip_model.data.phantom.dataset import VISIBLE_ABNORMALITIES, draw_abnormalities, draw_reconstruction
from ctclip_model.data.volume import read_volume
from ctclip_model.evaluation.embed import embed_with_tokens
from ctclip_model.evaluation.evidence import split_scores
from ctclip_model.evaluation.evidence_files import write_evidence
from ctclip_model.evaluation.predict import VolumeModel, open_model
from ctclip_model.models.find_model import LoadedModel
from ctclip_model.models.heads import LiPro

SEED = 22  # phantoms that no demonstration is trained on
LESION_HU = 30.0  # least difference that a lesion makes
Maps = NDArray[np.float64]  # (18, depth, height, width)


@dataclass(frozen=True)
class Phantom:
    """A scan as the model reads it, and the patches that each of its lesions touches."""

    voxels: torch.Tensor  # (1, depth, height, width) in [-1, 1]
    grid: PatchGrid
    lesions: dict[str, NDArray[np.bool_]]  # abnormality to (depth, height, width)


def main() -> None:
    mode, *arguments = sys.argv[1:] or ["hits"]
    if mode == "cost":
        measure_cost(*map(int, arguments))
        return
    models = Path(arguments[0] if arguments else "demo/data/models")
    count = int(arguments[1]) if len(arguments) > 1 else 300
    phantoms: list[Phantom] = []
    for folder in sorted(path.parent for path in models.glob("tiny-*/config.json")):
        model = open_model(folder)
        phantoms = phantoms or [make_phantom(number, model) for number in range(count)]
        print_hits(model, phantoms)


def make_phantom(number: int, model: VolumeModel) -> Phantom:
    rng = np.random.default_rng((SEED, number))
    scan = Scan(draw_body(rng), draw_abnormalities(rng), seed=int(rng.integers(2**32)))
    reconstruction = draw_reconstruction(-1024, rng)
    hu = render(scan, reconstruction)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scan.nii"
        spacing = reconstruction.spacing_mm
        nib.Nifti1Image(hu, np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])).to_filename(path)
        volume = read_volume(path, recipe=model.recipe)
    grid = place_patches(volume, model.recipe, model.loaded.model.config.vision.grid)
    lesions = {}
    for name in scan.abnormalities.keys() & set(VISIBLE_ABNORMALITIES):
        others = {other: side for other, side in scan.abnormalities.items() if other != name}
        without = render(dataclasses.replace(scan, abnormalities=others), reconstruction)
        lesions[name] = find_patches(np.abs(hu.astype(float) - without) > LESION_HU, grid)
    return Phantom(volume.to_input(), grid, lesions)


def find_patches(lesion: NDArray[np.bool_], grid: PatchGrid) -> NDArray[np.bool_]:
    """Patches (depth, height, width) that hold a voxel of a lesion, given on an LPS array."""
    touched = np.zeros(grid.grid, bool)
    height, width, depth = (along[at] for along, at in zip(grid.indices, np.nonzero(lesion), strict=True))
    seen = (height >= 0) & (width >= 0) & (depth >= 0)
    touched[depth[seen], height[seen], width[seen]] = True
    return touched


def split(model: VolumeModel, phantom: Phantom) -> Maps:
    latents, norms, tokens = embed_with_tokens(model.loaded.model, phantom.voxels[None])
    return split_scores(model.loaded.model, model.read_scores(latents[0]), tokens[0], norms[0]).parts.astype(float)


def occlude(model: VolumeModel, phantom: Phantom, mean: torch.Tensor) -> Maps:
    """The loss of each score when a patch is replaced by the mean of its place, one forward pass for each patch."""
    grid = phantom.grid.grid
    sides = [size // count for size, count in zip(mean.shape[1:], grid, strict=True)]
    volumes = phantom.voxels.repeat(int(np.prod(grid)) + 1, 1, 1, 1, 1)
    for number, patch in enumerate(np.ndindex(*grid), 1):
        box = (slice(None), *(slice(at * side, (at + 1) * side) for at, side in zip(patch, sides, strict=True)))
        volumes[number][box] = mean[box]
    latents, _, _ = embed_with_tokens(model.loaded.model, volumes)
    scores = np.stack([score(model, latent) for latent in latents])  # (1 + patches, 18)
    return (scores[0] - scores[1:]).T.reshape(-1, *grid)


def score(model: VolumeModel, latent: NDArray[np.float32]) -> NDArray[np.float64]:
    readout = model.read_scores(latent)
    return readout.gradients @ latent + readout.constants


def print_hits(model: VolumeModel, phantoms: list[Phantom]) -> None:
    """Prints a row for each abnormality: positives, then the shares of strongest patches that touch the lesion."""
    mean = torch.stack([phantom.voxels for phantom in phantoms]).mean(dim=0)
    started = time.perf_counter()
    parts = [split(model, phantom) for phantom in phantoms]
    between = time.perf_counter()
    losses = [occlude(model, phantom, mean) for phantom in phantoms]
    duration_s, occlusion_s = between - started, time.perf_counter() - between
    print(f"\n{model.name}, {len(phantoms)} scans: evidence {duration_s:.1f} s, occlusion {occlusion_s:.1f} s")
    print("| abnormality | positives | chance | evidence | its column | by chance | above usual | occlusion |")
    print("|---|---|---|---|---|---|---|---|")
    rows = []
    for name in VISIBLE_ABNORMALITIES:
        index = ABNORMALITIES.index(name)
        usual = np.mean([part[index] for part, p in zip(parts, phantoms, strict=True) if name not in p.lesions], axis=0)
        lesions = [phantom.lesions.get(name) for phantom in phantoms]
        columns = [find_columns(lesion) for lesion in lesions]
        at = [number for number, p in enumerate(phantoms) if name in p.lesions and p.lesions[name].any()]
        if not at:
            continue
        chance, by_column = (
            np.mean([(target[n] & phantoms[n].grid.inside).sum() / phantoms[n].grid.inside.sum() for n in at])
            for target in (lesions, columns)
        )
        lesions, columns = (
            [p.lesions.get(name) for p in phantoms],
            [find_columns(p.lesions.get(name)) for p in phantoms],
        )
        ways = ((parts, 0.0, lesions), (parts, 0.0, columns), (parts, usual, lesions), (losses, 0.0, lesions))
        shares = [
            np.mean([is_hit(maps[n][index] - less, phantoms[n].grid.inside, targets[n]) for n in at])
            for maps, less, targets in ways
        ]
        rows.append([chance, *shares[:2], by_column, *shares[2:]])
        print(f"| {name} | {len(at)} | " + " | ".join(f"{share:.0%}" for share in rows[-1]) + " |")
    print("| mean | | " + " | ".join(f"{share:.0%}" for share in np.mean(rows, axis=0)) + " |", flush=True)


def find_columns(lesion: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
    """All patches above or below those that a lesion touches."""
    return None if lesion is None else np.broadcast_to(lesion.any(axis=0), lesion.shape)


def is_hit(values: NDArray[np.float64], inside: NDArray[np.bool_], target: NDArray[np.bool_]) -> bool:
    """True if the largest value among patches of the CT is in the target."""
    return bool(target.ravel()[np.where(inside, values, -np.inf).argmax()])


def measure_cost(slices: int = 300, runs: int = 3) -> None:
    """Prints the seconds of `predict` as published on one volume, and those that evidence adds."""
    torch.manual_seed(0)
    lipro = LiPro(CTCLIPConfig()).eval()
    recipe = Recipe()
    model = VolumeModel(LoadedModel("published", lipro.trained_model, recipe, None, lipro.classifier))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scan.nii.gz"
        write_volume(path, 512, slices)
        volume = read_volume(path, recipe=recipe)
        latents, norms, tokens = embed_with_tokens(lipro.trained_model, volume.to_input()[None])

        def add_evidence() -> None:
            evidence = split_scores(lipro.trained_model, model.read_scores(latents[0]), tokens[0], norms[0])
            probabilities = model.head(latents)[0]
            write_evidence(Path(folder) / "evidence", path, volume, recipe, evidence, probabilities)

        times = in_turn({"predict": lambda: list(model.predict([path])), "evidence": add_evidence}, runs)
        size = sum(file.stat().st_size for file in (Path(folder) / "evidence").iterdir())
    print(f"512² x {slices} voxels on {machine()}, medians of {runs}")
    print(f"predict {times['predict']:.2f} s, evidence {times['evidence']:.2f} s more: ", end="")
    print(f"{times['evidence'] / times['predict']:.1%}, 19 files of {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
