"""Batch, forward pass and loss of one contrastive step, on this process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from numpy.random import Generator
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from ctclip_model.config import TrainingConfig
from ctclip_model.data.loader import copy_ahead
from ctclip_model.device import Compute, autocast_to
from ctclip_model.models.clip import CTCLIP
from ctclip_model.models.text import tokenize
from ctclip_model.training.engine.ddp_fsdp import Layout, distribute
from ctclip_model.training.engine.processes import gather, seeded, share, sum_over_processes, world_size
from ctclip_model.training.losses import Latents, backward_in_parts, batch_loss
from ctclip_model.training.random_streams import Stream, draw_dropout_seed, open_stream
from ctclip_model.training.samples import BatchOrder, TrainingData, draw_brightness, make_images, read_volumes
from ctclip_model.training.texts import vary_report


@dataclass(frozen=True)
class Batch:
    """This process's share of a step's samples."""

    volumes: Tensor  # int16 HU (B, depth, height, width)
    tokens: dict[str, Tensor]  # (B, texts, length)
    seed: int  # dropout's, different on each process


class Encoders(nn.Module):
    """Both encoders behind one `forward`, which DDP wraps.

    The temperature stays outside. It belongs to no encoder, and where latents are encoded in parts its gradient comes
    from the first pass alone.
    """

    def __init__(self, model: CTCLIP) -> None:
        super().__init__()
        self.parts = nn.ModuleList(
            [model.visual_transformer, model.to_visual_latent, model.text_transformer, model.to_text_latent]
        )
        # A function, so that the model is no submodule. It finds the methods anew each time: FSDP2 replaces them.
        self.encode = lambda volumes, ids, mask: (model.encode_image(volumes), model.encode_text(ids, mask))

    def forward(self, volumes: Tensor, ids: Tensor, mask: Tensor) -> Latents:
        return self.encode(volumes, ids, mask)


def encoder_layout(model: CTCLIP) -> Layout:
    """CT-CLIP for several processes. BERT's layers are no units, since they are not called as modules."""
    vision = model.visual_transformer
    layers = [*vision.enc_spatial_transformer.layers, *vision.enc_temporal_transformer.layers]
    return Layout(
        forward=Encoders(model),
        apart=[model.temperature],
        units=[*layers, model.to_visual_latent],
        methods=("encode_image", "encode_text", "unquantized_tokens"),
    )


class ContrastiveSteps:
    """Batch and loss by step number. Freezes what is not trained, and puts the model on all processes."""

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
        names = config.report_sections
        self.conclusion = names.index("impression") if "impression" in names else -1
        self.is_text_frozen = config.text_learning_rate == 0
        model.text_transformer.requires_grad_(not self.is_text_frozen)
        model.text_transformer.pooler.requires_grad_(False)
        with torch.no_grad():
            model.temperature.fill_(config.first_temperature)
        self.distributed = distribute(model, encoder_layout(model), sharded=compute.sharded)

    def make_batch(self, step: int) -> Batch:
        rng = open_stream(self.config.seed, Stream.contrastive, step)
        indices = self.order.batch(step)
        volumes = read_volumes(self.data, indices, self.rows, rng if self.config.varies_samples else None)
        tokens = tokenize(self.tokenizer, self._draw_texts(indices, rng), self.model.config.text.max_length)
        return Batch(
            volumes=copy_ahead(volumes, self.device),
            tokens={name: value.unflatten(0, (len(volumes), -1)) for name, value in tokens.items()},
            seed=draw_dropout_seed(self.config.seed, step),
        )

    def compute_loss(self, batch: Batch) -> Tensor:
        """The loss of the whole batch. Encoded in parts, the gradients are added too."""
        model, config = self.model, self.config
        if self.is_text_frozen:
            model.text_transformer.eval()
        changes = None
        if config.varies_samples:
            changes = draw_brightness(self.order.batch_size, self.device)[:, self.rows]
        if config.codes_from_data and not model.visual_transformer.vq._codebook.cluster_size.any():
            start_codebook(model, make_images(batch.volumes, changes, self.device))
        starts = range(0, len(batch.volumes), self.at_once)
        parts = [partial(self._encode, batch, changes, start) for start in starts]
        if not self.is_in_parts:
            return batch_loss(*parts[0](), model.temperature, config.negatives)
        return backward_in_parts(parts, model.temperature, config.negatives, self.distributed.accumulating)

    def after_step(self) -> None:
        move_codebook(self.model)
        if self.config.max_temperature is not None:
            with torch.no_grad():
                self.model.temperature.clamp_(max=self.config.max_temperature)

    def _draw_texts(self, indices: Sequence[int], rng: Generator) -> list[str]:
        """The texts of this process's rows, sample after sample.

        Drawn for the whole batch, so that a sample's texts do not depend on the number of processes.
        """
        reports = [self.data.reports[index] for index in indices]
        views = [
            [self._write_text(report, rng) for report in reports] for _ in range(self.config.texts_per_volume)
        ]  # (texts, batch)
        by_sample = list(zip(*views, strict=True))
        return [text for texts in by_sample[self.rows] for text in texts]

    def _write_text(self, sections: list[list[str]], rng: Generator) -> str:
        if self.config.varies_samples:
            return vary_report(sections, self.config.short_text_share, rng, conclusion=self.conclusion)
        return "".join(" ".join(section) for section in sections)  # sections without a space between, as published

    def _encode(self, batch: Batch, changes: Tensor | None, start: int) -> Latents:
        """Latents of the next `at_once` samples. A part's dropout has a seed, since the part is encoded twice."""
        part = slice(start, start + self.at_once)
        images = make_images(batch.volumes[part], None if changes is None else changes[:, part], self.device)
        ids, mask = (batch.tokens[name][part].flatten(0, 1).to(self.device) for name in ("input_ids", "attention_mask"))
        seed = batch.seed + start if world_size() > 1 or self.is_in_parts else None
        with seeded(seed, self.device), autocast_to(self.device, self.compute.precision.autocast):
            image_latents, text_latents = self.distributed.forward(images, ids, mask)
        return image_latents, text_latents.unflatten(0, (len(image_latents), -1))


def move_codebook(model: CTCLIP) -> None:
    """Moves the codes towards the tokens that all processes have seen since the last move."""
    sum_over_processes(model.visual_transformer.vq.statistics or ())
    model.update_codebook()


@torch.no_grad()
def start_codebook(model: CTCLIP, images: Tensor) -> None:
    """Sets the codes to randomly drawn tokens of the images (B, 1, depth, height, width), before the first step.

    No token is drawn twice while others are left: between equal codes rounding would decide, differently on each
    machine.
    """
    tokens = gather(model.unquantized_tokens(images).flatten(0, -2))
    codes = model.visual_transformer.vq._codebook.embed[0]
    chosen = torch.randperm(len(tokens), device=tokens.device)[torch.arange(len(codes)) % len(tokens)]
    codes.copy_(F.normalize(tokens[chosen], dim=-1))
