"""Training samples of a manifest: their order, and the small random changes of each."""

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
from ctclip_model.data.loader import (
    BatchReader,
    ScanSampler,
    VolumeDataset,
    count_reading_processes,
    read_samples,
    to_model_input,
)
from ctclip_model.data.reports import report_sentences
from ctclip_model.errors import MissingInputError
from ctclip_model.training.random_streams import Stream, open_stream

PADDING_HU = -1000
READING_THREADS = 4  # threads that decode volumes on a machine without a GPU
PRELOADED_BYTES = 2**30  # limit below which all volumes are decoded once and kept in memory
MAX_SHIFT_SHARE = 0.05  # share of the volume's size along each axis
GAIN_STD, OFFSET_STD = 0.05, 0.03  # standard deviations of the random contrast and brightness
COLUMNS = ["volume_name", "patient_id", "split", "scan_id", "findings", "impression", "labels"]


@dataclass(frozen=True)
class TrainingData:
    """Samples of a manifest: volumes, the sentences of their reports, and labels."""

    # int16 HU (B, depth, height, width) of sample indices; the second call after may overwrite them (`BatchReader`)
    volumes: Callable[[Sequence[int]], Tensor]
    scan_ids: list[str]
    reports: list[list[list[str]]]  # sentences, by sample and section
    labels: Tensor  # (samples, findings), NaN where unknown
    names: list[str] = field(default_factory=list)
    patient_ids: list[str] = field(default_factory=list)

    def take(self, indices: Sequence[int]) -> TrainingData:
        """A selection of the samples."""
        return TrainingData(
            volumes=lambda rows: self.volumes([indices[row] for row in rows]),
            scan_ids=[self.scan_ids[index] for index in indices],
            reports=[self.reports[index] for index in indices],
            labels=self.labels[torch.as_tensor(indices, dtype=torch.int64)],
            names=[self.names[index] for index in indices],
            patient_ids=[self.patient_ids[index] for index in indices],
        )


def read_training_data(manifest: Path, data_root: Path, sections: Sequence[str]) -> TrainingData:
    """The train split of a manifest, with some sections of its reports. Small data sets are kept in memory."""
    table = pq.read_table(manifest, columns=COLUMNS)
    rows = [(index, row) for index, row in enumerate(table.to_pylist()) if row["split"] == "train"]
    if not rows:
        raise MissingInputError(f"{manifest}: holds no sample of the train split: run convert")
    samples = read_samples(manifest)
    dataset = VolumeDataset([samples[index] for index, _ in rows], data_root)
    unknown = [None] * max([len(row["labels"]) for _, row in rows if row["labels"]], default=len(ABNORMALITIES))
    labels = [[np.nan if label is None else label for label in row["labels"] or unknown] for _, row in rows]
    has_gpu = torch.cuda.is_available()
    processes = count_reading_processes() if has_gpu else 0
    read: Callable[[Sequence[int]], Tensor] = BatchReader(
        dataset, threads=READING_THREADS, processes=processes, pinned=has_gpu
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


def first_of_each_scan(scan_ids: Sequence[str]) -> list[int]:
    """The index of the first sample of each scan, in order."""
    return sorted({scan_id: index for index, scan_id in reversed(list(enumerate(scan_ids)))}.values())


def hold_out(data: TrainingData, config: TrainingConfig) -> tuple[TrainingData, TrainingData | None]:
    """Splits off validation samples: one volume a scan, of patients that training never sees.

    The seed draws patients until they have `validation_scans` labelled scans. Without validation, all samples train.
    Raises `MissingInputError` where no patient is left to train on, or no label is known.
    """
    if not config.steps_per_validation:
        return data, None
    labelled: dict[str, list[int]] = {}
    for index in first_of_each_scan(data.scan_ids):
        if not data.labels[index].isnan().all():
            labelled.setdefault(data.patient_ids[index], []).append(index)
    chosen: list[int] = []
    held: set[str] = set()
    for patient in open_stream(config.seed, Stream.hold_out).permutation(sorted(labelled)).tolist():
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
    """The samples of each step, from its number alone. An epoch has each scan once, by one of its reconstructions.

    An epoch ends with its last full batch, so that no batch holds a scan twice. Each epoch leaves out other scans.
    `volumes` are a step's samples with more reconstructions of their scans.
    """

    def __init__(self, scan_ids: Sequence[str], batch_size: int, seed: int) -> None:
        self.sampler = ScanSampler(scan_ids, seed=seed)
        self.batch_size = min(batch_size, len(self.sampler))
        self.batches = len(self.sampler) // self.batch_size
        self._epoch = lru_cache(maxsize=2)(self._draw)
        self._scan_of = {index: scan for scan in self.sampler.scans for index in scan}

    def batch(self, step: int) -> list[int]:
        epoch, number = divmod(step, self.batches)
        return self._epoch(epoch)[number * self.batch_size : (number + 1) * self.batch_size]

    def volumes(self, step: int, volumes_per_scan: int) -> list[int]:
        """`volumes_per_scan` neighbouring indices for each of the step's samples, the sample itself first.

        The others follow it in the scan's list of reconstructions, where the first comes after the last. They are all
        different where the scan has that many. Otherwise the list is repeated.
        """
        return [volume for index in self.batch(step) for volume in self._follow(index, volumes_per_scan)]

    def _follow(self, index: int, count: int) -> list[int]:
        scan = self._scan_of[index]
        first = scan.index(index)
        return [scan[(first + offset) % len(scan)] for offset in range(count)]

    def _draw(self, epoch: int) -> list[int]:
        self.sampler.set_epoch(epoch)
        return list(self.sampler)


def read_volumes(data: TrainingData, indices: Sequence[int], rows: slice, rng: Generator | None) -> Tensor:
    """This process's `rows` of a batch as int16 HU (B, depth, height, width), each shifted at random with an `rng`.

    Shifts are drawn for the whole batch, so that a sample's shift does not depend on the number of processes.
    """
    volumes = data.volumes(indices[rows])
    if rng is None:
        return volumes
    return shift_volumes(volumes, draw_shifts(len(indices), volumes.shape[1:], rng)[rows])


def draw_shifts(count: int, sizes: Sequence[int], rng: Generator) -> list[list[int]]:
    """A start for each of `count` volumes along each axis, in voxels of the padded volume of `shift_volumes`."""
    return [[int(rng.integers(0, 2 * extent + 1)) for extent in _max_shift(sizes)] for _ in range(count)]


def _max_shift(sizes: Sequence[int]) -> list[int]:
    return [max(1, round(size * MAX_SHIFT_SHARE)) for size in sizes]


def shift_volumes(volumes: Tensor, shifts: Sequence[Sequence[int]]) -> Tensor:
    """Moves each volume of int16 HU (B, depth, height, width) as `draw_shifts` has drawn. Air fills the gap."""
    sizes = volumes.shape[1:]
    padding = [voxels for extent in reversed(_max_shift(sizes)) for voxels in (extent, extent)]
    padded = F.pad(volumes, padding, value=PADDING_HU)
    shifted = torch.empty_like(volumes)
    for index, (volume, starts) in enumerate(zip(padded, shifts, strict=True)):
        depth, height, width = (slice(start, start + size) for start, size in zip(starts, sizes, strict=True))
        shifted[index] = volume[depth, height, width]
    return shifted


def make_images(volumes: Tensor, changes: Tensor | None, device: torch.device) -> Tensor:
    """The model's input (B, 1, depth, height, width) of int16 HU, with `change_brightness` if there are changes.

    Without changes it stays int16, which the model scales a few volumes at a time.
    """
    if changes is None:
        return volumes.to(device, non_blocking=True).unsqueeze(1)
    return change_brightness(to_model_input(volumes, device), changes)


def draw_brightness(count: int, device: torch.device) -> Tensor:
    """Factors near 1 and summands near 0, (2, count), for `change_brightness`."""
    factors = 1 + GAIN_STD * torch.randn((count, 1, 1, 1, 1), device=device)
    summands = OFFSET_STD * torch.randn((count, 1, 1, 1, 1), device=device)
    return torch.stack([factors, summands]).flatten(1)


def change_brightness(images: Tensor, changes: Tensor) -> Tensor:
    """Scales and offsets images (B, 1, depth, height, width) by `changes` (2, B), clamped to [-1, 1]."""
    factors, summands = changes.view(2, -1, 1, 1, 1, 1)
    return (images * factors + summands).clamp_(-1, 1)
