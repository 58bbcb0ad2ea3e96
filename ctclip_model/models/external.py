"""A frozen encoder of another package as a model here: the same calls as CT-CLIP's, and every answer checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctclip_model.config import HU_PER_UNIT, ExternalConfig
from ctclip_model.errors import EncoderError
from ctclip_model.models.encoders import Encoder, call, make_encoder
from ctclip_model.models.entry_points import find_entry_point


class ExternalModel(nn.Module):
    """An encoder of another package, which stays in that package: the model's own `state_dict` is empty.

    The package is asked for the encoder once, by `open` or by the first volume.
    """

    anchor: Tensor

    def __init__(self, config: ExternalConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("anchor", torch.empty(0), persistent=False)  # moves with the model, to know its device
        self._opened: list[Encoder] = []  # in a list: a module's weights would be the model's own
        self._moved_to: torch.device | None = None

    @property
    def device(self) -> torch.device:
        return self.anchor.device

    @property
    def logit_scale(self) -> float | None:
        """The factor on similarities. None without a text side."""
        return self.config.logit_scale

    @property
    def batch_size(self) -> int:
        """The most volumes that the encoder takes at once."""
        return getattr(self.open(), "batch_size", None) or 1

    def open(self) -> Encoder:
        """Asks the package for the encoder, on the model's device.

        Raises `MissingInputError` for a package that is not installed, and `EncoderError` for an encoder that fails, or
        that is not the one whose model folder was made.
        """
        if not self._opened:
            point = find_entry_point(self.config.encoder, self.config.package)
            encoder, present = make_encoder(point, self.config.options)
            _require_same(self.config, present)
            self._opened.append(encoder)
        encoder = self._opened[0]
        if self._moved_to != self.device and callable(move := getattr(encoder, "to", None)):
            call(f"{self.named} cannot be moved to {self.device}", move, self.device)
        self._moved_to = self.device
        return encoder

    @property
    def named(self) -> str:
        return f"the encoder {self.config.encoder!r} of {self.config.package}"

    def encode_image(self, volume: Tensor) -> Tensor:
        """Unit latents (B, latent) of volumes (B, 1, depth, height, width), int16 HU or floats in HU / 1000.

        Raises `EncoderError` if the encoder fails, or returns anything else than a latent of each volume.
        """
        hu = volume.float() * HU_PER_UNIT if volume.is_floating_point() else volume.float()
        return self._encode(self.open().encode_image, hu, f"volumes {tuple(volume.shape)}")

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Unit latents (N, latent) of texts. Raises `EncoderError`, also without a text side."""
        if self.logit_scale is None:
            raise EncoderError(f"{self.named} has no text side")
        return self._encode(getattr(self.open(), "encode_text"), list(texts), f"{len(texts)} texts")  # noqa: B009

    def _encode(self, function: Any, inputs: Any, shown: str) -> Tensor:
        with torch.inference_mode():
            latents = call(f"{self.named} fails on {shown}", function, inputs)
            expected = (len(inputs), self.config.latent_dim)
            if not isinstance(latents, Tensor):
                raise EncoderError(f"{self.named} returns {type(latents).__name__} for {shown}, not a Tensor")
            if tuple(latents.shape) != expected:
                raise EncoderError(f"{self.named} returns {tuple(latents.shape)} for {shown}, not {expected}")
            if not latents.is_floating_point():
                raise EncoderError(f"{self.named} returns {latents.dtype} for {shown}, not floating-point numbers")
            return F.normalize(latents.to(self.device).float(), dim=-1)


def _require_same(recorded: ExternalConfig, present: ExternalConfig) -> None:
    """Raises `EncoderError` for an encoder that is not as its model folder says."""
    now = dataclasses.replace(present, package=recorded.package)  # spelled as it was
    moved = [name for name, value in recorded.identity.items() if now.identity[name] != value]
    if moved:
        changes = ", ".join(f"{name} {_show(recorded, name)} → {_show(now, name)}" for name in moved)
        raise EncoderError(
            f"the encoder {recorded.encoder!r} of {recorded.package} {present.version} is not the one that the model "
            f"was made of ({changes}): make a model of it with `ctclip import-model --encoder {recorded.encoder}`"
        )


def _show(config: ExternalConfig, name: str) -> str:
    value = str(getattr(config, name))
    return value if len(value) <= 40 else f"{value[:40]}…"
