"""Contrastive training of CT-CLIP on a manifest's volumes and reports (arXiv 2403.17834), ending in a model folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from numpy.random import Generator
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from ctclip_model.config import Preset, TrainingConfig
from ctclip_model.data.loader import ScanSampler, VolumeDataset, read_samples, to_model_input
from ctclip_model.device import Compute, autocast_to, choose_device
from ctclip_model.errors import MissingInputError
from ctclip_model.models.checkpoint import save_model_folder
from ctclip_model.models.clip import CTCLIP
from ctclip_model.models.text import tokenize, train_tokenizer
from ctclip_model.training.distributed import gather, rank, share, sum_over_processes, world_size
from ctclip_model.training.loop import Run, StepRecord, run_steps, split_decay
from ctclip_model.training.losses import Latents, backward_in_parts, batch_loss
from ctclip_model.training.text_pretraining import pretrain_text
from ctclip_model.training.texts import report_sentences, vary_report

PADDING_HU = -1000
PRELOADED_BYTES = 2**30  # volumes that take less are decoded once and kept
SHIFT_SHARE = 0.05  # of the volume's size, at most, along each axis
GAIN, OFFSET = 0.05, 0.03  # standard deviations of the change of contrast and brightness


@dataclass(frozen=True)
class TrainingResult:
    """What a finished run says about its model."""

    folder: Path
    count_parameters: int
    logit_scale: float  # exp(temperature)
    steps: int
    loss: float  # mean of the last 50 steps


@dataclass(frozen=True)
class TrainingData:
    """What a manifest holds for training: volumes, and beside each its report's sentences and labels."""

    volumes: Callable[[Sequence[int]], Tensor]  # int16 HU (B, depth, height, width) of sample indices
    scan_ids: list[str]
    reports: list[list[list[str]]]  # by sample, by section, sentences
    labels: Tensor  # (samples, 18), NaN where unknown


def train_contrastive(
    manifest: Path,
    data_root: Path,
    preset: Preset,
    folder: Path,
    *,
    compute: Compute = Compute(),
    on_step: Callable[[StepRecord], None] | None = None,
) -> TrainingResult:
    """Trains CT-CLIP from random weights on the manifest's train samples and writes the model folder.

    Where the preset says so, the text encoder first learns the labels of the train split's reports (it stands for the
    published system's pretrained CXR-BERT). A killed run goes on from its checkpoints, beside the folder in
    `<folder>.work`. Raises `MissingInputError` without a train sample.
    """
    data = read_training_data(manifest, data_root, preset.training)
    work = folder.with_name(f"{folder.name}.work")
    work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(preset.training.seed)
    tokenizer = _make_tokenizer(data, preset, work / "tokenizer")
    model = prepare_model(CTCLIP(preset.model), compute)
    losses: list[float] = []

    def record(step: StepRecord) -> None:
        losses.append(step.loss)
        if on_step is not None:
            on_step(step)

    teach_text(model, tokenizer, data, preset.training, checkpoint=work / "text.checkpoint", on_step=on_step)
    steps = teach_contrast(
        model,
        tokenizer,
        data,
        preset.training,
        compute=compute,
        checkpoint=work / "contrastive.checkpoint",
        on_step=record,
    )
    loss = float(np.mean(losses[-50:])) if losses else float("nan")
    info = {"preset": preset.name, "recipe": asdict(preset.recipe), "steps": steps}  # the recipe that its volumes need
    save_model_folder(folder, model.eval(), tokenizer, extra=info)
    for name in ("text.checkpoint", "contrastive.checkpoint"):
        (work / name).unlink(missing_ok=True)
    shutil.rmtree(work / "tokenizer", ignore_errors=True)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return TrainingResult(folder, parameters, model.temperature.exp().item(), steps, loss)


def prepare_model(model: CTCLIP, compute: Compute) -> CTCLIP:
    """The model on its device, its image encoder told how to compute."""
    model.visual_transformer.recompute = compute.recompute
    if compute.compile:
        model.visual_transformer.compile_layers()
    return model.to(choose_device(compute.device))


def read_training_data(manifest: Path, data_root: Path, config: TrainingConfig) -> TrainingData:
    """The train split of a manifest; volumes are kept in memory where they fit."""
    table = pq.read_table(manifest, columns=["split", "scan_id", "findings", "impression", "labels"])
    rows = [(index, row) for index, row in enumerate(table.to_pylist()) if row["split"] == "train"]
    if not rows:
        raise MissingInputError(f"{manifest}: holds no sample of the train split: run convert")
    samples = read_samples(manifest)
    dataset = VolumeDataset([samples[index] for index, _ in rows], data_root)
    unknown = [None] * 18
    labels = [[np.nan if label is None else label for label in row["labels"] or unknown] for _, row in rows]
    read = dataset.read_batch
    if len(rows) * 2 * int(np.prod(dataset.shape)) <= PRELOADED_BYTES:
        kept = dataset.read_batch(range(len(rows)))

        def read(indices: Sequence[int]) -> Tensor:
            return kept[torch.as_tensor(indices)]

    return TrainingData(
        volumes=read,
        scan_ids=[row["scan_id"] for _, row in rows],
        reports=[report_sentences(row["findings"], row["impression"], config.report_sections) for _, row in rows],
        labels=torch.tensor(labels, dtype=torch.float32),
    )


def teach_text(
    model: CTCLIP,
    tokenizer: PreTrainedTokenizerFast,
    data: TrainingData,
    config: TrainingConfig,
    *,
    checkpoint: Path | None = None,
    on_step: Callable[[StepRecord], None] | None = None,
) -> None:
    """Pretrains the text encoder on the scans whose labels are known, if the configuration asks for it."""
    first_of_scan = {scan_id: index for index, scan_id in reversed(list(enumerate(data.scan_ids)))}
    usable = [
        index
        for index in sorted(first_of_scan.values())
        if not data.labels[index].isnan().all() and any(data.reports[index])
    ]
    if config.text_pretraining_samples and usable:
        reports = [data.reports[index] for index in usable]
        pretrain_text(model, tokenizer, reports, data.labels[usable], config, checkpoint=checkpoint, on_step=on_step)


@dataclass(frozen=True)
class Batch:
    """This process's share of a step's samples."""

    volumes: Tensor  # int16 HU (B, depth, height, width)
    tokens: dict[str, Tensor]
    seed: int  # of dropout, where that must not be another's


def teach_contrast(
    model: CTCLIP,
    tokenizer: PreTrainedTokenizerFast,
    data: TrainingData,
    config: TrainingConfig,
    *,
    compute: Compute = Compute(),
    checkpoint: Path | None = None,
    on_step: Callable[[StepRecord], None] | None = None,
) -> int:
    """Trains both encoders, or the image encoder alone where the text rate is 0; returns the number of steps."""
    device = model.temperature.device
    order = BatchOrder(data.scan_ids, config.batch_size, config.seed)
    rows = share(order.batch_size)
    steps = config.samples // order.batch_size
    is_text_fixed = config.text_learning_rate == 0
    model.text_transformer.requires_grad_(not is_text_fixed)
    model.text_transformer.pooler.requires_grad_(False)
    with torch.no_grad():
        model.temperature.fill_(config.first_temperature)

    def batch_of(step: int) -> Batch:
        # Random numbers are drawn for the whole batch, so that a sample has the same on however many processes.
        rng = np.random.default_rng([config.seed, 2, step])
        indices = order.batch(step)
        volumes = data.volumes(indices[rows])
        if config.varies_samples:
            volumes = shift_volumes(volumes, draw_shifts(len(indices), volumes.shape[1:], rng)[rows])
        short_share = config.short_text_share if config.varies_samples else 0.0
        texts = [_text(data.reports[index], config, short_share, rng) for index in indices][rows]
        seed = int(np.random.default_rng([config.seed, 4, step, rank()]).integers(2**31))
        return Batch(volumes, tokenize(tokenizer, texts, model.config.text.max_length), seed)

    def loss_of(batch: Batch) -> Tensor:
        if is_text_fixed:
            model.text_transformer.eval()
        changes = draw_brightness(order.batch_size, device)[:, rows] if config.varies_samples else None
        if config.codes_from_data and not model.visual_transformer.vq._codebook.cluster_size.any():
            start_codebook(model, _images(batch.volumes, device, changes))
        at_once = compute.encoded_at_once or len(batch.volumes)
        starts = range(0, len(batch.volumes), at_once)
        is_alone = world_size() == len(starts) == 1

        def encode(start: int) -> Latents:
            part = slice(start, start + at_once)
            images = _images(batch.volumes[part], device, None if changes is None else changes[:, part])
            ids, mask = (batch.tokens[name][part].to(device) for name in ("input_ids", "attention_mask"))
            seed = None if is_alone else batch.seed + start
            with _dropout_of(seed, device), autocast_to(device, compute.precision.autocast):
                return model.encode_image(images), model.encode_text(ids, mask)

        if len(starts) == 1:
            return batch_loss(*encode(0), model.temperature, config.negatives)
        return backward_in_parts([partial(encode, start) for start in starts], model.temperature, config.negatives)

    def after_step() -> None:
        move_codebook(model)
        if config.max_temperature is not None:
            with torch.no_grad():
                model.temperature.clamp_(max=config.max_temperature)

    run_steps(
        Run(
            phase="contrastive",
            model=model,
            optimizer=_make_optimizer(model, config),
            batch_of=batch_of,
            loss_of=loss_of,
            steps=steps,
            batch_size=order.batch_size,
            warm_up_share=config.warm_up_share,
            final_rate=config.final_rate,
            max_gradient_norm=config.max_gradient_norm,
            adds_gradients=(compute.encoded_at_once or rows.stop) < rows.stop - rows.start,
            after_step=after_step,
            checkpoint=checkpoint,
            steps_per_checkpoint=config.steps_per_checkpoint,
            on_step=on_step,
        )
    )
    return steps


def move_codebook(model: CTCLIP) -> None:
    """Moves the codes by the tokens that all processes have seen since they moved last."""
    sum_over_processes(model.visual_transformer.vq.statistics or ())
    model.update_codebook()


def _images(volumes: Tensor, device: torch.device, changes: Tensor | None) -> Tensor:
    images = to_model_input(volumes, device)
    return images if changes is None else change_brightness(images, changes)


@contextmanager
def _dropout_of(seed: int | None, device: torch.device) -> Iterator[None]:
    """Random numbers of that seed, the same each time; None goes on with those that are in use."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


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


@torch.no_grad()
def start_codebook(model: CTCLIP, images: Tensor) -> None:
    """Puts the codes where tokens are: on some that the images have, drawn at random, before the first step."""
    encoder = model.visual_transformer
    tokens = gather(encoder.encode(encoder.embed(images)).flatten(0, -2))
    codes = encoder.vq._codebook.embed[0]
    chosen = torch.randint(len(tokens), (len(codes),), device=tokens.device)
    codes.copy_(F.normalize(tokens[chosen], dim=-1))


def _text(sections: list[list[str]], config: TrainingConfig, short_share: float, rng: Generator) -> str:
    if config.varies_samples:
        return vary_report(sections, short_share, rng)
    return "".join(" ".join(section) for section in sections)  # with nothing between, as published


def _make_optimizer(model: CTCLIP, config: TrainingConfig) -> torch.optim.Optimizer:
    text = set(model.text_transformer.parameters())
    rest = (parameter for parameter in model.parameters() if parameter not in text)
    groups = split_decay(rest, config.learning_rate, config.weight_decay)
    text_rate = config.learning_rate if config.text_learning_rate is None else config.text_learning_rate
    if text_rate:
        groups += split_decay(model.text_transformer.parameters(), text_rate, config.weight_decay)
    return torch.optim.AdamW(groups, betas=config.betas)


def _make_tokenizer(data: TrainingData, preset: Preset, folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of the train reports; a run that goes on takes the one that it began with."""
    if not (folder / "tokenizer.json").exists():
        texts = [" ".join(sentence for section in report for sentence in section) for report in data.reports]
        tokenizer = train_tokenizer(texts, preset.model.text.vocab_size)
        temporary = folder.with_suffix(".tmp")
        tokenizer.save_pretrained(temporary)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)
