"""Encoders of other packages: what one promises, and one made of its entry point and its options."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from ctclip_model.config import ExternalConfig, Recipe
from ctclip_model.errors import ConfigurationError, CTCLIPError, EncoderError
from ctclip_model.json_config import parse_config
from ctclip_model.models.entry_points import describe_package

SHOWN_LETTERS = 300  # letters shown of an error of another package

T = TypeVar("T")


class Encoder(Protocol):
    """A frozen image encoder, which the entry point makes of the options of its model folder.

    It may also have:

    - `digest`, a text that changes whenever the latents of a volume do. Default: the version of the package and, of a
      `torch.nn.Module`, a hash of its weights.
    - `batch_size`, the most volumes that it takes at once. Default: 1.
    - `to(device)`, `eval()` and `requires_grad_`, as a `torch.nn.Module` has them. They are called.
    - `encode_text(texts)`, which gives (N, latent_dim), and `logit_scale`, the factor on similarities before the
      softmax. With both, the prompts classify volumes without a probe, and reports are retrieved.
    """

    recipe: Recipe  # the volumes that it takes
    latent_dim: int

    def encode_image(self, volumes: Tensor, /) -> Tensor:
        """Latents (B, latent_dim) of volumes (B, 1, depth, height, width), float32 HU.

        The volumes went through `recipe`. Their indices grow towards superior, left and posterior. HU are clipped to
        the recipe's window, and its lower end fills what lies outside a scan. No gradient is recorded. The latents are
        scaled to unit length afterwards.
        """
        ...


def make_encoder(point: EntryPoint, options: Mapping[str, Any]) -> tuple[Encoder, ExternalConfig]:
    """Calls an entry point with its options, and returns the encoder with its configuration as it is now.

    Raises `EncoderError` in one line for whatever the package raises, and for an encoder that lacks what it promises.
    """
    package, version = describe_package(point)
    named = f"the encoder {point.name!r} of {package} {version}"
    kind = call(f"{named} cannot be imported", point.load)
    shown = ", ".join(f"{key}={value!r}" for key, value in options.items()) or "no options"
    encoder = call(f"{named} refuses {shown}", kind, **options)
    if callable(stop_training := getattr(encoder, "eval", None)):
        call(f"{named} fails in eval()", stop_training)
    if isinstance(encoder, nn.Module):
        call(f"{named} fails in requires_grad_()", encoder.requires_grad_, False)
    return encoder, call(f"{named} breaks its promise", _describe, named, encoder, point, options)


def _describe(named: str, encoder: Any, point: EntryPoint, options: Mapping[str, Any]) -> ExternalConfig:
    """Configuration of an encoder as it is now. Raises `EncoderError` for one that lacks what it promises."""
    _check(named, encoder)
    try:
        recipe = parse_config(Recipe, dataclasses.asdict(encoder.recipe), "recipe")  # tuples, as its model folder has
    except ConfigurationError as error:
        raise EncoderError(f"{named} breaks its promise: its {error}") from error
    package, version = describe_package(point)
    digest = getattr(encoder, "digest", None)
    logit_scale = encoder.logit_scale if _reads_texts(encoder) else None
    return ExternalConfig(
        point.name, package, version, _default_digest(encoder, version) if digest is None else digest, recipe,
        encoder.latent_dim, dict(options), None if logit_scale is None else float(logit_scale),
    )  # fmt: skip


def digest_weights(module: nn.Module) -> str:
    """SHA-256 of the names, types, shapes and values of a module's weights and buffers, in hexadecimal.

    >>> import torch
    >>> from ctclip_model import digest_weights
    >>> layer = torch.nn.Linear(2, 1)
    >>> before = digest_weights(layer)
    >>> with torch.no_grad():
    ...     _ = layer.weight.add_(1)
    >>> digest_weights(layer) == before
    False
    """
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        if isinstance(value, Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def call(problem: str, function: Callable[..., T], /, *arguments: Any, **options: Any) -> T:
    """Calls a function of another package. Whatever it raises becomes an `EncoderError` of one line.

    Its prints go to standard error, because a command's own output is on standard output.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return function(*arguments, **options)
    except CTCLIPError:
        raise
    except (Exception, SystemExit) as error:
        words = " ".join(str(error).split())
        shown = words if len(words) <= SHOWN_LETTERS else f"{words[:SHOWN_LETTERS]}…"
        raise EncoderError(f"{problem}: {type(error).__name__}: {shown}".removesuffix(": ")) from error


def _check(named: str, encoder: Any) -> None:
    """Raises `EncoderError` for an encoder that lacks what it promises."""
    whole, text = "a whole number from 1", "a text that is not empty"
    faults = [
        f"its {name} is {getattr(encoder, name, None)!r}, not {expected}"
        for name, expected, is_right in (
            ("recipe", "a ctclip_model.Recipe", lambda value: isinstance(value, Recipe)),
            ("latent_dim", whole, _is_count),
            ("encode_image", "a method", callable),
            ("batch_size", whole, lambda value: value is None or _is_count(value)),
            ("digest", text, lambda value: value is None or (isinstance(value, str) and value)),
        )
        if not is_right(getattr(encoder, name, None))
    ]
    if _reads_texts(encoder) and not _is_scale(encoder.logit_scale):
        faults.append(f"its logit_scale is {encoder.logit_scale!r}, not a positive number")
    if faults:
        raise EncoderError(f"{named} breaks its promise: {'; '.join(faults)}")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_scale(value: Any) -> bool:
    try:
        return 0 < float(value) < float("inf")
    except (TypeError, ValueError):
        return False


def _reads_texts(encoder: Any) -> bool:
    return callable(getattr(encoder, "encode_text", None)) and hasattr(encoder, "logit_scale")


def _default_digest(encoder: Any, version: str) -> str:
    weights = f", weights {digest_weights(encoder)}" if isinstance(encoder, nn.Module) else ""
    return f"version {version}{weights}"
