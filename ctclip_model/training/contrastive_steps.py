"""Batch, forward pass and loss of one contrastive step, on this process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from numpy.random import Generator
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from ctclip_model.config import TrainingConfig
from ctclip_model.data.label_sets import CT_RATE_18, LabelSet
from ctclip_model.data.loader import copy_ahead
from ctclip_model.device import Compute, autocast_to
from ctclip_model.models.clip import CTCLIP
from ctclip_model.models.text import tokenize
from ctclip_model.training.code_book import move_codebook, start_codebook_once
from ctclip_model.training.engine.ddp_fsdp import Layout, distribute
from ctclip_model.training.engine.processes import seeded, share, world_size
from ctclip_model.training.frozen_texts import ReportStates, encode_reports, encode_states
from ctclip_model.training.losses import Latents, average_volumes, backward_in_parts, batch_loss, vocabfine_losses
from ctclip_model.training.random_streams import Stream, draw_dropout_seed, open_stream
from ctclip_model.training.samples import BatchOrder, TrainingData, draw_brightness, make_images, read_volumes
from ctclip_model.training.texts import vary_report


@dataclass(frozen=True)
class Batch:
    """This process's share of a step's samples."""

    volumes: Tensor  # int16 HU (B volumes_per_scan, depth, height, width), those of a scan as neighbours
    texts: tuple[Tensor, ...]  # ids and mask, both (B, texts, length), or states of a frozen encoder (B, texts, hidden)
    labels: Tensor  # those of the whole batch (samples, findings), NaN where unknown
    seed: int  # dropout's, different on each process


class Encoders(nn.Module):
    """Both encoders behind one `forward`, which DDP wraps.

    The temperature stays outside. It belongs to no encoder, and where latents are encoded in parts its gradient comes
    from the first pass alone.
    """

    def __init__(self, model: CTCLIP) -> None:
        super().__init__()
        self.parts = nn.ModuleList(
            [
                model.visual_transformer,
                model.pooling,
                model.to_visual_latent,
                model.text_transformer,
                model.to_text_latent,
            ]
        )
        # Functions, so that the model is no submodule. They find the methods anew each time: FSDP2 replaces them.
        self.encode_image = lambda volumes: model.encode_image(volumes)
        self.encode_text = lambda *texts: model.encode_text(*texts) if len(texts) == 2 else model.project_text(*texts)

    def forward(self, volumes: Tensor, *texts: Tensor) -> Latents:
        """Latents of volumes, and of texts as ids and mask or as states of the text encoder."""
        return self.encode_image(volumes), self.encode_text(*texts)


def encoder_layout(model: CTCLIP) -> Layout:
    """CT-CLIP for several processes. BERT's layers are no units, since they are not called as modules."""
    vision = model.visual_transformer
    layers = [*vision.enc_spatial_transformer.layers, *vision.enc_temporal_transformer.layers]
    return Layout(
        forward=Encoders(model),
        apart=[model.temperature],
        units=[*layers, model.to_visual_latent],
        methods=("encode_image", "encode_text", "project_text", "unquantized_tokens"),
    )


class PromptTargets:
    """Latents of a label set's prompts. The prompt loss moves image latents towards them, and no weight of the text.

    A text encoder that does not learn encodes the prompts once.
    """

    def __init__(
        self, model: CTCLIP, tokenizer: PreTrainedTokenizerFast, label_set: LabelSet, compute: Compute
    ) -> None:
        device, dtype = model.temperature.device, compute.precision.autocast
        self.model, self.device, self.dtype = model, device, dtype
        tokens = tokenize(tokenizer, label_set.prompts, model.config.text.max_length)
        self.tokens = [tokens[name].to(device) for name in ("input_ids", "attention_mask")]
        is_frozen = not any(parameter.requires_grad for parameter in model.text_transformer.parameters())
        states = encode_states(model, tokenizer, label_set.prompts, dtype=dtype) if is_frozen else None
        self.states = None if states is None else states.to(device)

    @torch.no_grad()
    def encode(self) -> Tensor:
        """Unit latents (2 findings, latent) by the weights of this step, "present" and "not present" in turn."""
        with autocast_to(self.device, self.dtype):
            if self.states is not None:
                return self.model.project_text(self.states)
            return self.model.encode_text(*self.tokens)


class ContrastiveSteps:
    """Batch and loss by step number. Freezes what is not trained, and puts the model on all processes."""

    def __init__(
        self, model: CTCLIP, tokenizer: PreTrainedTokenizerFast, data: TrainingData, config: TrainingConfig,
        compute: Compute, label_set: LabelSet = CT_RATE_18,
    ) -> None:  # fmt: skip
        self.model, self.tokenizer, self.data, self.config, self.compute = model, tokenizer, data, config, compute
        self.device = model.temperature.device
        self.order = BatchOrder(data.scan_ids, config.batch_size, config.seed)
        self.rows = share(self.order.batch_size)
        self.volume_rows = self._to_volumes(self.rows)
        count = self.rows.stop - self.rows.start
        volumes_at_once = compute.encoded_at_once or count * config.volumes_per_scan
        # scans in a part, which has all volumes of each
        self.at_once = min(count, max(1, volumes_at_once // config.volumes_per_scan))
        self.is_in_parts = self.at_once < count
        names = config.report_sections
        self.conclusion = names.index("impression") if "impression" in names else -1
        self.is_text_frozen = config.text_learning_rate == 0
        model.text_transformer.requires_grad_(not self.is_text_frozen)
        model.text_transformer.pooler.requires_grad_(False)
        with torch.no_grad():
            model.temperature.fill_(config.first_temperature)
        self.report_states = self._encode_reports() if config.texts_per_report else None
        self.prompts = PromptTargets(model, tokenizer, label_set, compute) if config.prompt_loss_weight else None
        self.distributed = distribute(model, encoder_layout(model), sharded=compute.sharded)

    def make_batch(self, step: int) -> Batch:
        rng = open_stream(self.config.seed, Stream.contrastive, step)
        indices = self.order.batch(step)
        volumes = read_volumes(
            self.data, self.list_volumes(step), self.volume_rows, rng if self.config.varies_samples else None
        )
        return Batch(
            volumes=copy_ahead(volumes, self.device),
            texts=self._make_texts(indices, rng),
            labels=self.data.labels[indices],
            seed=draw_dropout_seed(self.config.seed, step),
        )

    def list_volumes(self, step: int) -> list[int]:
        """Indices of the volumes that all processes encode in a step."""
        return self.order.volumes(step, self.config.volumes_per_scan)

    def compute_loss(self, batch: Batch) -> Tensor:
        """The loss of the whole batch. Encoded in parts, the gradients are added too."""
        model, config = self.model, self.config
        if self.is_text_frozen:
            model.text_transformer.eval()
        changes = None
        if config.varies_samples:
            count = self.order.batch_size * config.volumes_per_scan
            changes = draw_brightness(count, self.device)[:, self.volume_rows]
        if config.codes_from_data:
            start_codebook_once(model, batch.volumes, changes)
        starts = range(0, self.rows.stop - self.rows.start, self.at_once)
        parts = [partial(self._encode, batch, changes, start) for start in starts]
        if not self.is_in_parts:
            return self._loss_of_latents(batch, *parts[0]())
        return backward_in_parts(parts, partial(self._loss_of_latents, batch), self.distributed.accumulating)

    def after_step(self) -> None:
        move_codebook(self.model)
        if self.config.max_temperature is not None:
            with torch.no_grad():
                self.model.temperature.clamp_(max=self.config.max_temperature)

    def _loss_of_latents(self, batch: Batch, images: Tensor, texts: Tensor) -> Tensor:
        loss = batch_loss(images, texts, self.model.temperature, self.config.negatives)
        if self.prompts is None:
            return loss
        labels, weight = batch.labels.to(self.device), self.config.prompt_loss_weight
        prompts = self.prompts.encode()
        losses = vocabfine_losses(images, prompts, labels[self.rows], self.model.temperature, known_in=labels)
        return loss + weight * world_size() * losses.sum()  # a process has its samples' share of the batch's sum

    def _encode_reports(self) -> ReportStates:
        """The states of every scan's report, which are drawn from in each step."""
        reports = dict(zip(self.data.scan_ids, self.data.reports, strict=True))
        rng = open_stream(self.config.seed, Stream.report_texts)
        return encode_reports(
            self.model, self.tokenizer, reports, self.config.texts_per_report, self._write_text, rng,
            dtype=self.compute.precision.autocast,
        )  # fmt: skip

    def _make_texts(self, indices: Sequence[int], rng: Generator) -> tuple[Tensor, ...]:
        """The texts of this process's rows, as `Batch.texts`."""
        if self.report_states is not None:
            scan_ids = [self.data.scan_ids[index] for index in indices]
            return (self.report_states.draw(scan_ids, self.config.texts_per_volume, rng)[self.rows],)
        tokens = tokenize(self.tokenizer, self._draw_texts(indices, rng), self.model.config.text.max_length)
        count = self.rows.stop - self.rows.start
        return tuple(tokens[name].unflatten(0, (count, -1)) for name in ("input_ids", "attention_mask"))

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
        """Latents of the next `at_once` scans. A part's dropout has a seed, since the part is encoded twice."""
        part = slice(start, start + self.at_once)
        volumes = self._to_volumes(part)
        images = make_images(batch.volumes[volumes], None if changes is None else changes[:, volumes], self.device)
        texts = [value[part].flatten(0, 1).to(self.device) for value in batch.texts]
        seed = batch.seed + start if world_size() > 1 or self.is_in_parts else None
        with seeded(seed, self.device), autocast_to(self.device, self.compute.precision.autocast):
            volume_latents, text_latents = self.distributed.forward(images, *texts)
        image_latents = average_volumes(volume_latents, self.config.volumes_per_scan)
        return image_latents, text_latents.unflatten(0, (len(image_latents), -1))

    def _to_volumes(self, scans: slice) -> slice:
        """Rows of volumes of rows of scans."""
        count = self.config.volumes_per_scan
        return slice(scans.start * count, scans.stop * count)
