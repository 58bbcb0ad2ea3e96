"""VocabFine: fine-tuning of both encoders of a CT-CLIP on the prompts of known labels (arXiv 2403.17834)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from ctclip_model.config import TrainingConfig, VocabFineConfig
from ctclip_model.data.label_sets import CT_RATE_18, LabelSet
from ctclip_model.data.loader import copy_ahead
from ctclip_model.device import Compute, autocast_to
from ctclip_model.errors import ConfigurationError
from ctclip_model.models.clip import CTCLIP
from ctclip_model.models.kinds import ModelKind
from ctclip_model.models.model_folder import describe_label_set, load_model_folder, save_model_folder
from ctclip_model.models.text import tokenize
from ctclip_model.training.code_book import move_codebook
from ctclip_model.training.contrastive import prepare_model
from ctclip_model.training.engine.checkpoints import Checkpoints, storage_errors
from ctclip_model.training.engine.curve import RunLog, TrainingResult, summarise_run
from ctclip_model.training.engine.loop import Run, StepRecord, run_steps, split_decay
from ctclip_model.training.engine.processes import rank, share, world_size
from ctclip_model.training.engine.state import state_folder
from ctclip_model.training.fine_tuned import keep_facts, require_labels, write_fine_tuned_card
from ctclip_model.training.losses import vocabfine_losses
from ctclip_model.training.random_streams import Stream, open_stream
from ctclip_model.training.samples import (
    BatchOrder,
    TrainingData,
    draw_brightness,
    make_images,
    read_training_data,
    read_volumes,
)


def train_vocabfine(
    manifest: Path,
    data_root: Path,
    parent: Path,
    config: VocabFineConfig,
    folder: Path,
    *,
    label_set: LabelSet = CT_RATE_18,
    compute: Compute = Compute(),
    origin: Mapping[str, str] | None = None,
    on_step: Callable[[StepRecord], None] | None = None,
) -> TrainingResult:
    """Fine-tunes the CT-CLIP of the folder `parent` on the manifest's train samples and writes a model folder.

    The prompts are those of `label_set`, in whose order the manifest has the labels.

    A killed run continues from `state_folder(folder)`, which stays until `discard_state`. With several processes,
    each holds the whole model, and the first one writes. Raises `MissingInputError` where no label is known, and
    `ConfigurationError` for a `sharded` model.
    """
    if compute.sharded:
        raise ConfigurationError("VocabFine keeps the whole model on each process: leave `sharded` off")
    data = read_training_data(manifest, data_root, TrainingConfig().report_sections)
    require_labels(data.labels, manifest)
    loaded = load_model_folder(parent, CTCLIP)
    model = prepare_model(loaded.model, compute)
    log = RunLog(folder, on_step)
    checkpoints = Checkpoints(state_folder(folder) / "checkpoints", compute.checkpoints_kept)
    steps = teach_prompts(
        model,
        loaded.tokenizer,
        data,
        config,
        label_set=label_set,
        compute=compute,
        checkpoints=checkpoints,
        on_step=log.add,
    )
    curve = log.curve()
    result = summarise_run(folder, model, model.logit_scale, steps, curve)
    if rank() == 0:
        info = keep_facts(loaded.info) | describe_label_set(label_set) | {"parent": parent.name, "steps": steps}
        method = "VocabFine, both encoders trained by pairs of prompts"
        card = write_fine_tuned_card(result, method, parent, config, curve, origin or {}, label_set)
        with storage_errors(folder):
            save_model_folder(
                folder, model.eval(), loaded.tokenizer, kind=ModelKind.vocabfine, extra=info, card=card, metrics=curve
            )
    return result


def teach_prompts(
    model: CTCLIP,
    tokenizer: PreTrainedTokenizerFast,
    data: TrainingData,
    config: VocabFineConfig,
    *,
    label_set: LabelSet = CT_RATE_18,
    compute: Compute = Compute(),
    checkpoints: Checkpoints | None = None,
    on_step: Callable[[StepRecord], None] | None = None,
) -> int:
    """Trains both encoders to prefer the right one of each pair of prompts. Returns the number of steps."""
    batches = PromptSteps(model, tokenizer, data, config, label_set, compute)
    order = batches.order
    steps = config.epochs * order.batches
    torch.manual_seed(config.seed)
    run_steps(
        Run(
            phase="vocabfine",
            model=model,
            optimizer=torch.optim.AdamW(
                split_decay(model.parameters(), config.learning_rate, config.weight_decay),
                fused=model.temperature.is_cuda,
            ),
            make_batch=batches.make_batch,
            compute_loss=batches.compute_loss,
            runs_backward=True,
            after_step=lambda: move_codebook(model),
            after_skip=model.visual_transformer.vq.forget,
            name_samples=lambda step: [data.names[index] for index in order.batch(step)],
            steps=steps,
            batch_size=order.batch_size,
            warm_up_share=min(1.0, config.warm_up_steps / steps),
            final_rate=config.final_rate,
            max_gradient_norm=config.max_gradient_norm,
            tolerated_skips=config.skipped_steps,
            checkpoints=checkpoints,
            steps_per_checkpoint=config.steps_per_checkpoint,
            on_step=on_step,
        )
    )
    return steps


@dataclass(frozen=True)
class LabelledBatch:
    """Volumes of this process's share, and labels of the whole batch."""

    volumes: Tensor  # int16 HU (B, depth, height, width)
    labels: Tensor  # (samples, findings), NaN where unknown


class PromptSteps:
    """Batch and loss by step number.

    The published code runs a backward pass for each group of abnormalities. Here a step encodes each volume and each
    prompt once: the gradient of the sum of the groups' losses is the sum of their gradients.
    """

    def __init__(
        self, model: CTCLIP, tokenizer: PreTrainedTokenizerFast, data: TrainingData, config: VocabFineConfig,
        label_set: LabelSet, compute: Compute,
    ) -> None:  # fmt: skip
        self.model, self.data, self.config = model, data, config
        self.device, self.dtype = model.temperature.device, compute.precision.autocast
        self.order = BatchOrder(data.scan_ids, config.batch_size, config.seed)
        self.rows = share(self.order.batch_size)
        self.at_once = compute.encoded_at_once or self.order.batch_size
        tokens = tokenize(tokenizer, label_set.prompts, model.config.text.max_length)
        self.ids, self.mask = (tokens[name].to(self.device) for name in ("input_ids", "attention_mask"))

    def make_batch(self, step: int) -> LabelledBatch:
        indices = self.order.batch(step)
        rng = open_stream(self.config.seed, Stream.vocabfine, step) if self.config.varies_samples else None
        volumes = read_volumes(self.data, indices, self.rows, rng)
        return LabelledBatch(copy_ahead(volumes, self.device), self.data.labels[indices])

    def compute_loss(self, batch: LabelledBatch) -> Tensor:
        """The loss of the whole batch. Adds the gradients, for `at_once` volumes at a time.

        Gradients by the prompts' latents are summed over these parts, then carried through the text encoder at once.
        """
        labels = batch.labels.to(self.device)
        changes = draw_brightness(len(labels), self.device)[:, self.rows] if self.config.varies_samples else None
        with autocast_to(self.device, self.dtype):
            encoded_prompts = self.model.encode_text(self.ids, self.mask)
        prompts = encoded_prompts.detach().requires_grad_()
        total = torch.zeros((), device=self.device)
        for start in range(0, len(batch.volumes), self.at_once):
            part = slice(start, start + self.at_once)
            images = make_images(batch.volumes[part], None if changes is None else changes[:, part], self.device)
            with autocast_to(self.device, self.dtype):
                latents = self.model.encode_image(images)
            part_labels = labels[self.rows][part]
            losses = vocabfine_losses(latents, prompts, part_labels, self.model.temperature, known_in=labels)
            loss = world_size() * losses.sum()  # the processes' mean of these sums is the loss of the whole batch
            loss.backward()
            total += loss.detach()
        encoded_prompts.backward(prompts.grad)
        return total
