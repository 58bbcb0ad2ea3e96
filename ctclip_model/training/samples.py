"""What training sees: the samples of a manifest, in which order, and how each is varied."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from numpy.random import Generator
from torch import Tensor

from ctclip_model.config import TrainingConfig
from ctclip_model.data.abnormalities import ABNORMALITIES
from ctclip_model.data.loader import BatchReader, ScanSampler, VolumeDataset, read_samples
from ctclip_model.data.reports import report_sentences
from ctclip_model.errors import MissingInputError

PADDING_HU = -1000
READING_THREADS = 4  # decoding holds no lock
PRELOADED_BYTES = 2**30  # volumes that take less are decoded once and kept
SHIFT_SHARE = 0.05  # of the volume's size, at most, along each axis
GAIN, OFFSET = 0.05, 0.03  # standard deviations of the change of contrast and brightness


@dataclass(frozen=True)
class TrainingData:
    """What a manifest holds for training: volumes, and beside each its report's sentences and labels."""

    # int16 HU (B, depth, height, width) of sample indices; the second call after may overwrite them (`BatchReader`)
    volumes: Callable[[Sequence[int]], Tensor]
    scan_ids: list[str]
    reports: list[list[list[str]]]  # by sample, by section, sentences
    labels: Tensor  # (samples, 18), NaN where unknown
    names: list[str] = field(default_factory=list)
    patient_ids: list[str] = field(default_factory=list)

    def take(self, indices: Sequence[int]) -> TrainingData:
        """Those samples alone."""
        return TrainingData(
            volumes=lambda rows: self.volumes([indices[row] for row in rows]),
            scan_ids=[self.scan_ids[index] for index in indices],
            reports=[self.reports[index] for index in indices],
            labels=self.labels[torch.as_tensor(indices, dtype=torch.int64)],
            names=[self.names[index] for index in indices],
            patient_ids=[self.patient_ids[index] for index in indices],
        )


def read_training_data(manifest: Path, data_root: Path, sections: Sequence[str]) -> TrainingData:
    """The train split of a manifest, of whose reports those sections are read; volumes that fit are kept in memory."""
    columns = ["volume_name", "patient_id", "split", "scan_id", "findings", "impression", "labels"]
    table = pq.read_table(manifest, columns=columns)
    rows = [(index, row) for index, row in enumerate(table.to_pylist()) if row["split"] == "train"]
    if not rows:
        raise MissingInputError(f"{manifest}: holds no sample of the train split: run convert")
    samples = read_samples(manifest)
    dataset = VolumeDataset([samples[index] for index, _ in rows], data_root)
    unknown = [None] * len(ABNORMALITIES)
    labels = [[np.nan if label is None else label for label in row["labels"] or unknown] for _, row in rows]
    read: Callable[[Sequence[int]], Tensor] = BatchReader(
        dataset, threads=READING_THREADS, pinned=torch.cuda.is_available()
    )
    if len(rows) * 2 * int(np.prod(dataset.shape)) <= PRELOADED_BYTES:
        kept = dataset.read_batch(range(len(rows)), threads=READING_THREADS)
        read = lambda indices: kept[torch.as_tensor(indices)]  # noqa: E731

    return TrainingData(
        volumes=read,
        scan_ids=[row["scan_id"] for _, row in rows],
        reports=[report_sentences(row["findings"], row["impression"], sections) for _, row in rows],
        labels=torch.tensor(labels, dtype=torch.float32),
        names=[row["volume_name"] for _, row in rows],
        patient_ids=[row["patient_id"] for _, row in rows],
    )


def hold_out(data: TrainingData, config: TrainingConfig) -> tuple[TrainingData, TrainingData | None]:
    """What to train on, and, where there is validation, a volume each of some scans whose patients stay out of it.

    Patients are drawn by the seed until they have as many scans with known labels as the configuration asks for.
    Raises `MissingInputError` where no patient is left to train on, or no label is known.
    """
    if not config.steps_per_validation:
        return data, None
    first_of_scan = {scan_id: index for index, scan_id in reversed(list(enumerate(data.scan_ids)))}
    labelled: dict[str, list[int]] = {}
    for index in sorted(first_of_scan.values()):
        if not data.labels[index].isnan().all():
            labelled.setdefault(data.patient_ids[index], []).append(index)
    chosen: list[int] = []
    held: set[str] = set()
    for patient in np.random.default_rng([config.seed, 5]).permutation(sorted(labelled)).tolist():
        if len(chosen) >= config.validation_scans:
            break
        chosen += labelled[patient]
        held.add(patient)
    rest = [index for index, patient in enumerate(data.patient_ids) if patient not in held]
    if not chosen or not rest:
        raise MissingInputError(
            f"{len(labelled)} patients have labels: too few to hold out {config.validation_scans} scans for validation"
        )
    return data.take(rest), data.take(chosen)


class BatchOrder:
    """Which samples a step sees, from its number alone: a scan once an epoch, by one of its reconstructions.

    An epoch is of whole batches, so that no batch holds a scan twice; what is left over differs each time.
    """

    def __init__(self, scan_ids: Sequence[str], batch_size: int, seed: int) -> None:
        self.sampler = ScanSampler(scan_ids, seed=seed)
        self.batch_size = min(batch_size, len(self.sampler))
        self.batches = len(self.sampler) // self.batch_size
        self._epoch = lru_cache(maxsize=2)(self._draw)

    def batch(self, step: int) -> list[int]:
        epoch, place = divmod(step, self.batches)
        return self._epoch(epoch)[place * self.batch_size : (place + 1) * self.batch_size]

    def _draw(self, epoch: int) -> list[int]:
        self.sampler.set_epoch(epoch)
        return list(self.sampler)


def draw_shifts(count: int, sizes: Sequence[int], rng: Generator) -> list[list[int]]:
    """How far each of `count` volumes of those sizes moves along each axis, in voxels from the farthest."""
    return [[int(rng.integers(0, 2 * extent + 1)) for extent in _most_shift(sizes)] for _ in range(count)]


def _most_shift(sizes: Sequence[int]) -> list[int]:
    return [max(1, round(size * SHIFT_SHARE)) for size in sizes]


def shift_volumes(volumes: Tensor, shifts: Sequence[Sequence[int]]) -> Tensor:
    """Each volume of int16 HU (B, depth, height, width) moved as `draw_shifts` has drawn; air fills what it leaves."""
    sizes = volumes.shape[1:]
    most = _most_shift(sizes)
    padded = F.pad(volumes, [side for extent in reversed(most) for side in (extent, extent)], value=PADDING_HU)
    shifted = torch.empty_like(volumes)
    for index, (volume, starts) in enumerate(zip(padded, shifts, strict=True)):
        depth, height, width = (slice(start, start + size) for start, size in zip(starts, sizes, strict=True))
        shifted[index] = volume[depth, height, width]
    return shifted


def draw_brightness(count: int, device: torch.device) -> Tensor:
    """Factors and summands, (2, count), that change brightness a little."""
    factors = 1 + GAIN * torch.randn((count, 1, 1, 1, 1), device=device)
    summands = OFFSET * torch.randn((count, 1, 1, 1, 1), device=device)
    return torch.stack([factors, summands]).flatten(1)


def change_brightness(images: Tensor, changes: Tensor) -> Tensor:
    """Each image (B, 1, depth, height, width) with the contrast and brightness of `draw_brightness` (2, B)."""
    factors, summands = changes.view(2, -1, 1, 1, 1, 1)
    return (images * factors + summands).clamp_(-1, 1)
