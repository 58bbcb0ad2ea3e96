"""Contrastive training of CT-CLIP on a manifest's volumes and reports (arXiv 2403.17834), ending in a model folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from numpy.random import Generator
from torch import Tensor
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from transformers import PreTrainedTokenizerFast

from ctclip_model.config import Preset, TrainingConfig
from ctclip_model.data.loader import to_model_input
from ctclip_model.device import Compute, autocast_to, choose_device
from ctclip_model.models.clip import CTCLIP
from ctclip_model.models.model_folder import save_model_folder
from ctclip_model.models.text import tokenize, train_tokenizer
from ctclip_model.training.engine.checkpoints import WHOLE, Checkpoints, WeightAverage, storing
from ctclip_model.training.engine.curve import RunLog, TrainingResult, last_loss
from ctclip_model.training.engine.ddp_fsdp import spread
from ctclip_model.training.engine.loop import Run, StepRecord, Validation, run_steps, split_decay
from ctclip_model.training.engine.model_card import describe_data, write_card
from ctclip_model.training.engine.processes import (
    dropout_of,
    gather,
    rank,
    share,
    sum_over_processes,
    wait_for_all,
    world_size,
)
from ctclip_model.training.engine.state import state_of
from ctclip_model.training.losses import Latents, backward_in_parts, batch_loss
from ctclip_model.training.samples import (
    BatchOrder,
    TrainingData,
    change_brightness,
    draw_brightness,
    draw_shifts,
    hold_out,
    read_training_data,
    shift_volumes,
)
from ctclip_model.training.text_encoder import pretrain_text
from ctclip_model.training.texts import vary_report
from ctclip_model.training.validation import validate


def train_contrastive(
    manifest: Path,
    data_root: Path,
    preset: Preset,
    folder: Path,
    *,
    compute: Compute = Compute(),
    origin: Mapping[str, str] | None = None,
    on_step: Callable[[StepRecord], None] | None = None,
) -> TrainingResult:
    """Trains CT-CLIP from random weights on the manifest's train samples and writes the model folder.

    Where the preset says so, the text encoder first learns the labels of the train split's reports (it stands for the
    published system's pretrained CXR-BERT). A killed run goes on from `state_of(folder)`, which stays until
    `discard_state`; of several processes the first writes. `origin` is what the model card says of the data. Raises
    `MissingInputError` without a train sample.
    """
    config = preset.training
    data, held_out = hold_out(read_training_data(manifest, data_root, config.report_sections), config)
    state = state_of(folder)
    torch.manual_seed(config.seed)
    tokenizer = _make_tokenizer(data, preset, state / "tokenizer")
    model = prepare_model(CTCLIP(preset.model), compute)
    log = RunLog(folder, on_step, tensorboard=compute.tensorboard)
    phases = {name: Checkpoints(state / name, compute.checkpoints_kept) for name in ("text", "checkpoints")}
    teach_text(model, tokenizer, data, config, checkpoints=phases["text"], on_step=log.add)
    steps = teach_contrast(
        model, tokenizer, data, config, held_out=held_out, compute=compute, checkpoints=phases["checkpoints"],
        on_step=log.add,
    )  # fmt: skip
    weights = get_model_state_dict(model, options=WHOLE)
    curve = log.curve()
    count_parameters = sum(parameter.numel() for parameter in model.parameters())
    temperature = model.temperature.exp().item()
    result = TrainingResult(folder, count_parameters, temperature, steps, last_loss(curve))
    if rank() == 0:
        facts = {"preset": preset.name, "recipe": asdict(preset.recipe), "steps": steps}  # what its volumes need
        card = _card(preset, result, curve, origin or {})
        with storing(folder):
            save_model_folder(folder, model.eval(), tokenizer, extra=facts, card=card, weights=weights, metrics=curve)
    log.close()
    return result


def _card(preset: Preset, result: TrainingResult, curve: pa.Table, origin: Mapping[str, str]) -> str:
    training, vision, recipe = preset.training, preset.model.vision, preset.recipe
    metrics = {
        "loss, mean of the last steps": f"{result.loss:.4f}",
        "exp(temperature)": f"{result.logit_scale:.2f}",
    }
    if aurocs := [auroc for auroc in curve["validation_auroc"].to_pylist() if auroc is not None]:
        metrics["macro zero-shot AUROC on held-out scans of the train split"] = f"{aurocs[-1]:.3f}"
    return write_card(
        result.folder.name,
        tags=["chest-ct", "contrastive", "zero-shot-classification"],
        description="CT-CLIP (arXiv 2403.17834): an image and a text encoder whose latents agree on a chest CT and its "
        "report.",
        facts={
            "Data": describe_data(origin, "volumes of the train split"),
            "Model": f"preset `{preset.name}`, {result.count_parameters:,} parameters; volumes of {vision.depth} x "
            f"{vision.image_size} x {vision.image_size} voxels at {' x '.join(map(str, recipe.spacing_mm))} mm, recipe "
            f"`{recipe.recipe_id}`.",
            "Training": f"{result.steps:,} steps of {training.batch_size}, AdamW at {training.learning_rate:g}, "
            f"negatives of the {training.negatives} batch, report sections {' and '.join(training.report_sections)}, "
            f"seed {training.seed}.",
        },
        metrics=metrics,
    )


def prepare_model(model: CTCLIP, compute: Compute) -> CTCLIP:
    """The model on its device, its image encoder told how to compute."""
    model.visual_transformer.recompute = compute.recompute
    if compute.compile:
        model.visual_transformer.compile_layers()
    return model.to(choose_device(compute.device))


def teach_text(
    model: CTCLIP,
    tokenizer: PreTrainedTokenizerFast,
    data: TrainingData,
    config: TrainingConfig,
    *,
    checkpoints: Checkpoints | None = None,
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
        pretrain_text(model, tokenizer, reports, data.labels[usable], config, checkpoints=checkpoints, on_step=on_step)


@dataclass(frozen=True)
class Batch:
    """This process's share of a step's samples."""

    volumes: Tensor  # int16 HU (B, depth, height, width)
    tokens: dict[str, Tensor]  # (B, texts, length)
    seed: int  # of dropout, where that must not be another's


def teach_contrast(
    model: CTCLIP,
    tokenizer: PreTrainedTokenizerFast,
    data: TrainingData,
    config: TrainingConfig,
    *,
    held_out: TrainingData | None = None,
    compute: Compute = Compute(),
    checkpoints: Checkpoints | None = None,
    on_step: Callable[[StepRecord], None] | None = None,
) -> int:
    """Trains both encoders, or the image encoder alone where the text rate is 0; returns the number of steps.

    With `average_decay` the model then is the average of its weights.
    """
    steps = Steps(model, tokenizer, data, config, compute)
    average = WeightAverage(model, config.average_decay) if config.average_decay is not None else None

    def validate_now() -> Validation:
        assert held_out is not None
        with average.applied() if average is not None else nullcontext():  # what the model would be
            return validate(model, tokenizer, held_out, dtype=compute.precision.autocast)

    run = Run(
        phase="contrastive",
        model=model,
        optimizer=_make_optimizer(model, config),
        batch_of=steps.batch_of,
        loss_of=steps.loss_of,
        steps=config.samples // steps.order.batch_size,
        batch_size=steps.order.batch_size,
        warm_up_share=config.warm_up_share,
        final_rate=config.final_rate,
        max_gradient_norm=config.max_gradient_norm,
        adds_gradients=steps.is_in_parts,
        averaged=steps.spread.averaged,
        after_step=steps.after_step,
        after_skip=model.visual_transformer.vq.forget,
        tolerated_skips=config.skipped_steps,
        names_of=lambda step: [data.names[index] for index in steps.order.batch(step)],
        average=average,
        checkpoints=checkpoints,
        steps_per_checkpoint=config.steps_per_checkpoint,
        validate=validate_now if held_out is not None else None,
        steps_per_validation=config.steps_per_validation,
        on_step=on_step,
    )
    run_steps(run)
    if average is not None:
        average.apply()
    return run.steps


class Steps:
    """The batch and the loss of each step, on this process."""

    def __init__(
        self, model: CTCLIP, tokenizer: PreTrainedTokenizerFast, data: TrainingData, config: TrainingConfig,
        compute: Compute,
    ) -> None:  # fmt: skip
        self.model, self.tokenizer, self.data, self.config, self.compute = model, tokenizer, data, config, compute
        self.device = model.temperature.device
        self.order = BatchOrder(data.scan_ids, config.batch_size, config.seed)
        self.rows = share(self.order.batch_size)
        count = self.rows.stop - self.rows.start
        self.at_once = min(count, compute.encoded_at_once or count)
        self.is_in_parts = self.at_once < count
        self.is_text_fixed = config.text_learning_rate == 0
        model.text_transformer.requires_grad_(not self.is_text_fixed)
        model.text_transformer.pooler.requires_grad_(False)
        with torch.no_grad():
            model.temperature.fill_(config.first_temperature)
        self.spread = spread(model, sharded=compute.sharded)

    def batch_of(self, step: int) -> Batch:
        # Random numbers are drawn for the whole batch, so that a sample has the same on however many processes.
        config, rows = self.config, self.rows
        rng = np.random.default_rng([config.seed, 2, step])
        indices = self.order.batch(step)
        volumes = self.data.volumes(indices[rows])
        if config.varies_samples:
            volumes = shift_volumes(volumes, draw_shifts(len(indices), volumes.shape[1:], rng)[rows])
        short_share = config.short_text_share if config.varies_samples else 0.0
        views = range(config.texts_per_volume)
        draws = [[_text(self.data.reports[index], config, short_share, rng) for index in indices] for _ in views]
        texts = [text for of_volume in list(zip(*draws, strict=True))[rows] for text in of_volume]
        seed = int(np.random.default_rng([config.seed, 4, step, rank()]).integers(2**31))
        tokens = tokenize(self.tokenizer, texts, self.model.config.text.max_length)
        return Batch(volumes, {name: value.unflatten(0, (len(volumes), -1)) for name, value in tokens.items()}, seed)

    def loss_of(self, batch: Batch) -> Tensor:
        model, device, at_once = self.model, self.device, self.at_once
        if self.is_text_fixed:
            model.text_transformer.eval()
        changes = draw_brightness(self.order.batch_size, device)[:, self.rows] if self.config.varies_samples else None
        if self.config.codes_from_data and not model.visual_transformer.vq._codebook.cluster_size.any():
            start_codebook(model, _images(batch.volumes, device, changes))
        is_alone = world_size() == 1 and not self.is_in_parts

        def encode(start: int) -> Latents:
            part = slice(start, start + at_once)
            images = _images(batch.volumes[part], device, None if changes is None else changes[:, part])
            ids, mask = (batch.tokens[name][part].flatten(0, 1).to(device) for name in ("input_ids", "attention_mask"))
            seed = None if is_alone else batch.seed + start
            with dropout_of(seed, device), autocast_to(device, self.compute.precision.autocast):
                latents, of_texts = self.spread.encode(images, ids, mask)
            return latents, of_texts.unflatten(0, (len(latents), -1))

        if not self.is_in_parts:
            return batch_loss(*encode(0), model.temperature, self.config.negatives)
        parts = [partial(encode, start) for start in range(0, len(batch.volumes), at_once)]
        return backward_in_parts(parts, model.temperature, self.config.negatives, self.spread.accumulating)

    def after_step(self) -> None:
        move_codebook(self.model)
        if self.config.max_temperature is not None:
            with torch.no_grad():
                self.model.temperature.clamp_(max=self.config.max_temperature)


def move_codebook(model: CTCLIP) -> None:
    """Moves the codes by the tokens that all processes have seen since they moved last."""
    sum_over_processes(model.visual_transformer.vq.statistics or ())
    model.update_codebook()


def _images(volumes: Tensor, device: torch.device, changes: Tensor | None) -> Tensor:
    images = to_model_input(volumes, device)
    return images if changes is None else change_brightness(images, changes)


@torch.no_grad()
def start_codebook(model: CTCLIP, images: Tensor) -> None:
    """Puts the codes where tokens are: on some that the images have, drawn at random, before the first step.

    No token is drawn twice while there are others: of equal codes rounding would choose one, on each machine its own.
    """
    tokens = gather(model.unquantized_tokens(images).flatten(0, -2))
    codes = model.visual_transformer.vq._codebook.embed[0]
    chosen = torch.randperm(len(tokens), device=tokens.device)[torch.arange(len(codes)) % len(tokens)]
    codes.copy_(F.normalize(tokens[chosen], dim=-1))


def _text(sections: list[list[str]], config: TrainingConfig, short_share: float, rng: Generator) -> str:
    if config.varies_samples:
        return vary_report(sections, short_share, rng)
    return "".join(" ".join(section) for section in sections)  # with nothing between, as published


def _make_optimizer(model: CTCLIP, config: TrainingConfig) -> torch.optim.Optimizer:
    # The temperature is a group of its own: where the others are shared out, it is not, and no kernel takes both.
    apart = {model.temperature, *model.text_transformer.parameters()}
    rest = (parameter for parameter in model.parameters() if parameter not in apart)
    groups = split_decay(rest, config.learning_rate, config.weight_decay)
    groups += split_decay([model.temperature], config.learning_rate, config.weight_decay)
    text_rate = config.learning_rate if config.text_learning_rate is None else config.text_learning_rate
    if text_rate:
        groups += split_decay(model.text_transformer.parameters(), text_rate, config.weight_decay)
    return torch.optim.AdamW([group for group in groups if group["params"]], betas=config.betas)


def _make_tokenizer(data: TrainingData, preset: Preset, folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of the train reports; a run that goes on takes the one that it began with."""
    if rank() == 0 and not (folder / "tokenizer.json").exists():
        texts = [" ".join(sentence for section in report for sentence in section) for report in data.reports]
        tokenizer = train_tokenizer(texts, preset.model.text.vocab_size)
        temporary = folder.with_suffix(".tmp")
        tokenizer.save_pretrained(temporary)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    wait_for_all()
    return PreTrainedTokenizerFast.from_pretrained(folder)
