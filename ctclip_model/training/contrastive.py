"""Contrastive training of CT-CLIP on a manifest's volumes and reports (arXiv 2403.17834), ending in a model folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
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
from ctclip_model.device import Compute, Precision, autocast_to, choose_device
from ctclip_model.errors import MissingInputError
from ctclip_model.models.checkpoint import save_model_folder
from ctclip_model.models.clip import CTCLIP
from ctclip_model.models.text import tokenize, train_tokenizer
from ctclip_model.training.loop import Run, StepRecord, run_steps, split_decay
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
        precision=compute.precision,
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


def teach_contrast(
    model: CTCLIP,
    tokenizer: PreTrainedTokenizerFast,
    data: TrainingData,
    config: TrainingConfig,
    *,
    precision: Precision = Precision.float32,
    checkpoint: Path | None = None,
    on_step: Callable[[StepRecord], None] | None = None,
) -> int:
    """Trains both encoders, or the image encoder alone where the text rate is 0; returns the number of steps."""
    device = model.temperature.device
    order = BatchOrder(data.scan_ids, config.batch_size, config.seed)
    steps = config.samples // order.batch_size
    is_text_fixed = config.text_learning_rate == 0
    model.text_transformer.requires_grad_(not is_text_fixed)
    model.text_transformer.pooler.requires_grad_(False)
    with torch.no_grad():
        model.temperature.fill_(config.first_temperature)

    def batch_of(step: int) -> tuple[Tensor, dict[str, Tensor]]:
        rng = np.random.default_rng([config.seed, 2, step])
        indices = order.batch(step)
        volumes = data.volumes(indices)
        if config.varies_samples:
            volumes = shift_volumes(volumes, rng)
        short_share = config.short_text_share if config.varies_samples else 0.0
        texts = [_text(data.reports[index], config, short_share, rng) for index in indices]
        return volumes, tokenize(tokenizer, texts, model.config.text.max_length)

    def loss_of(batch: tuple[Tensor, dict[str, Tensor]]) -> Tensor:
        volumes, tokens = batch
        images = to_model_input(volumes, device)
        if config.varies_samples:
            images = change_brightness(images)
        if is_text_fixed:
            model.text_transformer.eval()
        if config.codes_from_data and not model.visual_transformer.vq._codebook.cluster_size.any():
            start_codebook(model, images)
        ids, mask = tokens["input_ids"].to(device), tokens["attention_mask"].to(device)
        with autocast_to(device, precision.autocast):
            loss: Tensor = model(images, ids, mask)
        return loss

    def after_step() -> None:
        model.update_codebook()
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
            after_step=after_step,
            checkpoint=checkpoint,
            steps_per_checkpoint=config.steps_per_checkpoint,
            on_step=on_step,
        )
    )
    return steps


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


def shift_volumes(volumes: Tensor, rng: Generator) -> Tensor:
    """Each volume of int16 HU (B, depth, height, width) moved a little along each axis; air fills what it leaves."""
    sizes = volumes.shape[1:]
    most = [max(1, round(size * SHIFT_SHARE)) for size in sizes]
    padded = F.pad(volumes, [side for extent in reversed(most) for side in (extent, extent)], value=PADDING_HU)
    shifted = torch.empty_like(volumes)
    for index, volume in enumerate(padded):
        starts = [int(rng.integers(0, 2 * extent + 1)) for extent in most]
        depth, height, width = (slice(start, start + size) for start, size in zip(starts, sizes, strict=True))
        shifted[index] = volume[depth, height, width]
    return shifted


def change_brightness(images: Tensor) -> Tensor:
    """Each image (B, 1, depth, height, width) with a little more or less contrast and brightness."""
    shape = (len(images), 1, 1, 1, 1)
    gain = 1 + GAIN * torch.randn(shape, device=images.device)
    return (images * gain + OFFSET * torch.randn(shape, device=images.device)).clamp_(-1, 1)


@torch.no_grad()
def start_codebook(model: CTCLIP, images: Tensor) -> None:
    """Puts the codes where tokens are: on some that the images have, drawn at random, before the first step."""
    encoder = model.visual_transformer
    tokens = encoder.encode(encoder.embed(images)).flatten(0, -2)
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
