"""Fine-tuning of a trained CT-CLIP on labels: VocabFine trains both encoders by their prompts, LiPro a linear head."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from ctclip_model.config import LiProConfig, TrainingConfig, VocabFineConfig
from ctclip_model.data.abnormalities import ABNORMALITIES, prompt_pair
from ctclip_model.data.loader import to_model_input
from ctclip_model.device import Compute, autocast_to
from ctclip_model.errors import ConfigurationError, MissingInputError
from ctclip_model.models.clip import CTCLIP, similarity
from ctclip_model.models.heads import LiPro
from ctclip_model.models.kinds import ModelKind
from ctclip_model.models.model_folder import load_model_folder, save_model_folder
from ctclip_model.models.text import tokenize
from ctclip_model.training.contrastive import move_codebook, prepare_model
from ctclip_model.training.engine.checkpoints import Checkpoints, storing
from ctclip_model.training.engine.curve import RunLog, TrainingResult, last_loss
from ctclip_model.training.engine.loop import Run, StepRecord, run_steps, split_decay
from ctclip_model.training.engine.model_card import describe_data, write_card
from ctclip_model.training.engine.processes import rank, share, world_size
from ctclip_model.training.engine.state import state_of
from ctclip_model.training.samples import (
    BatchOrder,
    TrainingData,
    change_brightness,
    draw_brightness,
    draw_shifts,
    read_training_data,
    shift_volumes,
)

PROMPTS = [prompt for name in ABNORMALITIES for prompt in prompt_pair(name)]
GROUP = 6  # abnormalities; each group has a loss of its own


def train_vocabfine(
    manifest: Path,
    data_root: Path,
    parent: Path,
    config: VocabFineConfig,
    folder: Path,
    *,
    compute: Compute = Compute(),
    origin: Mapping[str, str] | None = None,
    on_step: Callable[[StepRecord], None] | None = None,
) -> TrainingResult:
    """Fine-tunes the CT-CLIP of the folder `parent` on the manifest's train samples; writes a model folder like it.

    A killed run goes on from `state_of(folder)`, which stays until `discard_state`; of several processes, each holds
    the whole model, and the first writes. Raises `MissingInputError` where no label is known, `ConfigurationError`
    where the model is to be `sharded`.
    """
    if compute.sharded:
        raise ConfigurationError("VocabFine keeps the whole model on each process: leave `sharded` off")
    data = read_training_data(manifest, data_root, TrainingConfig().report_sections)
    _require_labels(data.labels, manifest)
    loaded = load_model_folder(parent, CTCLIP)
    model = prepare_model(loaded.model, compute)
    checkpoints = Checkpoints(state_of(folder) / "checkpoints", compute.checkpoints_kept)
    log = RunLog(folder, on_step)
    steps = teach_prompts(
        model, loaded.tokenizer, data, config, compute=compute, checkpoints=checkpoints, on_step=log.add
    )
    curve = log.curve()
    result = _result(folder, model, model.temperature, steps, curve)
    if rank() == 0:
        facts = {"parent": parent.name, "steps": steps}
        card = _card(
            result, "VocabFine, both encoders trained by pairs of prompts", parent, config, curve, origin or {}
        )
        with storing(folder):
            save_model_folder(
                folder, model.eval(), loaded.tokenizer, kind=ModelKind.vocabfine, extra=loaded.info | facts,
                card=card, metrics=curve,
            )  # fmt: skip
    return result


def teach_prompts(
    model: CTCLIP,
    tokenizer: PreTrainedTokenizerFast,
    data: TrainingData,
    config: VocabFineConfig,
    *,
    compute: Compute = Compute(),
    checkpoints: Checkpoints | None = None,
    on_step: Callable[[StepRecord], None] | None = None,
) -> int:
    """Trains both encoders on the right one of each pair of prompts; returns the number of steps.

    A step encodes its volumes once, so many at once as `compute` says, and all prompts once: the sum of the groups'
    losses has the gradients that a backward pass a group adds up to. The code book moves as in training, for the
    encoder does. Of several processes, each encodes its share of a batch.
    """
    device = model.temperature.device
    prompts = tokenize(tokenizer, PROMPTS, model.config.text.max_length)
    ids, mask = prompts["input_ids"].to(device), prompts["attention_mask"].to(device)
    order = BatchOrder(data.scan_ids, config.batch_size, config.seed)
    rows = share(order.batch_size)
    at_once = compute.encoded_at_once or order.batch_size
    steps = config.epochs * order.batches
    torch.manual_seed(config.seed)

    def batch_of(step: int) -> tuple[Tensor, Tensor]:
        indices = order.batch(step)
        volumes = data.volumes(indices[rows])
        if config.varies_samples:
            rng = np.random.default_rng([config.seed, 3, step])
            volumes = shift_volumes(volumes, draw_shifts(len(indices), volumes.shape[1:], rng)[rows])
        return volumes, data.labels[indices]

    def loss_of(batch: tuple[Tensor, Tensor]) -> Tensor:
        volumes, labels = batch[0], batch[1].to(device)  # this process's share, and the labels of all
        changes = draw_brightness(len(labels), device)[:, rows] if config.varies_samples else None
        with autocast_to(device, compute.precision.autocast):
            prompt_latents = model.encode_text(ids, mask)
        prompts_once = prompt_latents.detach().requires_grad_()
        total = torch.zeros((), device=device)
        for start in range(0, len(volumes), at_once):
            part = slice(start, start + at_once)
            images = to_model_input(volumes[part], device)
            if changes is not None:
                images = change_brightness(images, changes[:, part])
            with autocast_to(device, compute.precision.autocast):
                latents = model.encode_image(images)
            losses = vocabfine_losses(latents, prompts_once, labels[rows][part], model.temperature, known_in=labels)
            loss = world_size() * losses.sum()  # of which the mean over the processes is that of the whole batch
            loss.backward()
            total += loss.detach()
        prompt_latents.backward(prompts_once.grad)
        return total

    run_steps(
        Run(
            phase="vocabfine",
            model=model,
            optimizer=torch.optim.AdamW(split_decay(model.parameters(), config.learning_rate, config.weight_decay)),
            batch_of=batch_of,
            loss_of=loss_of,
            adds_gradients=True,
            steps=steps,
            batch_size=order.batch_size,
            warm_up_share=min(1.0, config.warm_up_steps / steps),
            final_rate=config.final_rate,
            max_gradient_norm=config.max_gradient_norm,
            after_step=lambda: move_codebook(model),
            after_skip=model.visual_transformer.vq.forget,
            tolerated_skips=config.skipped_steps,
            names_of=lambda step: [data.names[index] for index in order.batch(step)],
            checkpoints=checkpoints,
            steps_per_checkpoint=config.steps_per_checkpoint,
            on_step=on_step,
        )
    )
    return steps


def vocabfine_losses(
    image_latents: Tensor,
    prompt_latents: Tensor,
    labels: Tensor,
    logit_scale: Tensor,
    *,
    known_in: Tensor | None = None,
) -> Tensor:
    """The published loss of each group of six abnormalities, (3,): the mean squared error between the softmax over an
    abnormality's (right, wrong) prompts and (1, 0).

    `image_latents` (B, latent); `prompt_latents` (36, latent), of "present" and "not present" in turn; `labels`
    (B, 18) say which of the two is right, and where they are NaN, a pair counts for nothing. The mean is over the
    known labels of these samples, or of the batch `known_in` (N, 18) that they are a share of.
    """
    scores = similarity(image_latents, prompt_latents, logit_scale).unflatten(1, (-1, 2))  # (B, 18, 2)
    known = ~labels.isnan()
    is_present = labels == 1
    wrong = torch.where(is_present[..., None], scores, scores.flip(-1)).softmax(-1)[..., 1]  # (B, 18)
    # The right prompt misses 1 by what the wrong one exceeds 0, so that the mean of their squares is either's.
    errors = wrong.square().where(known, 0.0).unflatten(1, (-1, GROUP))  # (B, 3, 6)
    counted = known if known_in is None else ~known_in.isnan()
    return errors.sum((0, 2)) / counted.unflatten(1, (-1, GROUP)).sum((0, 2)).clamp(min=1)


def _require_labels(labels: Tensor, manifest: Path) -> None:
    if labels.isnan().all():
        raise MissingInputError(f"{manifest}: no label of the train split is known")


def _result(folder: Path, model: CTCLIP | LiPro, logit_scale: Tensor, steps: int, curve: pa.Table) -> TrainingResult:
    count = sum(parameter.numel() for parameter in model.parameters())
    return TrainingResult(folder, count, logit_scale.exp().item(), steps, last_loss(curve))


def _card(
    result: TrainingResult,
    what: str,
    parent: Path,
    config: VocabFineConfig | LiProConfig,
    curve: pa.Table,
    origin: Mapping[str, str],
) -> str:
    samples = curve["samples"][-1].as_py() if len(curve) else 0
    return write_card(
        result.folder.name,
        tags=["chest-ct", "image-classification"],
        description=f"{what}, of the CT-CLIP `{parent.name}` (arXiv 2403.17834).",
        facts={
            "Data": describe_data(origin, "labelled volumes of the train split"),
            "Model": f"{result.count_parameters:,} parameters.",
            "Training": f"{result.steps:,} steps on {samples:,} samples, AdamW at {config.learning_rate:g}, "
            f"seed {config.seed}, epochs: {config.epochs}.",
        },
        metrics={"loss, mean of the last steps": f"{result.loss:.4f}"},
    )
