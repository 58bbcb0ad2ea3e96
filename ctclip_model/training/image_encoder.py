"""Pretraining of the image encoder on the train split's labels, by a linear head that is dropped afterwards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctclip_model.config import TrainingConfig
from ctclip_model.data.loader import copy_ahead
from ctclip_model.device import Compute, autocast_to
from ctclip_model.models.clip import CTCLIP
from ctclip_model.training.code_book import move_codebook, start_codebook_once
from ctclip_model.training.engine.checkpoints import Checkpoints
from ctclip_model.training.engine.loop import Run, StepRecord, run_steps, split_decay
from ctclip_model.training.engine.processes import share, world_size
from ctclip_model.training.random_streams import Stream, open_stream
from ctclip_model.training.samples import BatchOrder, TrainingData, draw_brightness, make_images, read_volumes


class VolumeClassifier(nn.Module):
    """CT-CLIP's image encoder and a linear layer from the latent before normalisation to the labels."""

    def __init__(self, model: CTCLIP, labels: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList([model.visual_transformer, model.pooling, model.to_visual_latent])
        self.head = nn.Linear(model.config.latent_dim, labels)
        # A function, so that the whole model is no submodule.
        self.encode = lambda volumes: model.project_image(model.visual_transformer.pooled(volumes, model.pooling))

    def forward(self, volumes: Tensor) -> Tensor:
        """Logits (B, labels) of volumes (B, 1, depth, height, width)."""
        logits: Tensor = self.head(self.encode(volumes))
        return logits


def pretrain_image(
    model: CTCLIP,
    data: TrainingData,
    config: TrainingConfig,
    *,
    compute: Compute = Compute(),
    checkpoints: Checkpoints | None = None,
    on_step: Callable[[StepRecord], None] | None = None,
) -> None:
    """Trains the image encoder, its pooling and its linear map on the samples' labels, NaN where unknown.

    A process takes its share of each batch. Labels may be of any number of findings.
    """
    classifier = VolumeClassifier(model, data.labels.shape[1]).to(model.temperature.device)
    batches = LabelSteps(model, classifier, data, config, compute)
    order = batches.order
    optimizer = torch.optim.AdamW(
        split_decay(classifier.parameters(), config.image_pretraining_learning_rate, config.weight_decay),
        betas=config.betas,
    )
    run_steps(
        Run(
            phase="image",
            model=classifier,
            optimizer=optimizer,
            make_batch=batches.make_batch,
            compute_loss=batches.compute_loss,
            runs_backward=True,
            after_step=lambda: move_codebook(model),
            after_skip=model.visual_transformer.vq.forget,
            tolerated_skips=config.skipped_steps,
            name_samples=lambda step: [data.names[index] for index in order.batch(step)],
            steps=config.image_pretraining_samples // order.batch_size,
            batch_size=order.batch_size,
            warm_up_share=0.1,
            final_rate=0.0,
            max_gradient_norm=config.max_gradient_norm,
            checkpoints=checkpoints,
            steps_per_checkpoint=config.steps_per_checkpoint,
            on_step=on_step,
        )
    )


@dataclass(frozen=True)
class LabelledVolumes:
    """This process's volumes of a step, and the labels of the whole batch."""

    volumes: Tensor  # int16 HU (B, depth, height, width)
    labels: Tensor  # (samples, labels), NaN where unknown


class LabelSteps:
    """Batch and loss by step number, a few volumes in memory at a time."""

    def __init__(
        self, model: CTCLIP, classifier: VolumeClassifier, data: TrainingData, config: TrainingConfig, compute: Compute
    ) -> None:
        self.model, self.classifier, self.data, self.config = model, classifier, data, config
        self.device, self.dtype = model.temperature.device, compute.precision.autocast
        self.order = BatchOrder(data.scan_ids, config.image_pretraining_batch_size, config.seed)
        self.rows = share(self.order.batch_size)
        self.at_once = compute.encoded_at_once or self.order.batch_size

    def make_batch(self, step: int) -> LabelledVolumes:
        indices = self.order.batch(step)
        rng = open_stream(self.config.seed, Stream.image_pretraining, step) if self.config.varies_samples else None
        volumes = read_volumes(self.data, indices, self.rows, rng)
        return LabelledVolumes(copy_ahead(volumes, self.device), self.data.labels[indices])

    def compute_loss(self, batch: LabelledVolumes) -> Tensor:
        """The loss of the whole batch, whose gradients are added."""
        labels = batch.labels.to(self.device)
        count = (~labels.isnan()).sum().clamp(min=1)
        changes = draw_brightness(len(labels), self.device)[:, self.rows] if self.config.varies_samples else None
        if self.config.codes_from_data:
            start_codebook_once(self.model, batch.volumes, changes)
        total = torch.zeros((), device=self.device)
        for start in range(0, len(batch.volumes), self.at_once):
            part = slice(start, start + self.at_once)
            images = make_images(batch.volumes[part], None if changes is None else changes[:, part], self.device)
            targets = labels[self.rows][part]
            with autocast_to(self.device, self.dtype):
                logits = self.classifier(images)
            known = ~targets.isnan()
            summed = F.binary_cross_entropy_with_logits(logits.float()[known], targets[known], reduction="sum")
            loss = world_size() * summed / count  # the processes' mean of these is the loss of the whole batch
            loss.backward()
            total += loss.detach()
        return total
