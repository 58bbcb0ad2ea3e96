"""Unwrapping of weights: the state dict of a model, out of what trainers and wrappers put around it.

Nested mappings become dotted names, so that `{"state_dict": {"model.temperature": ...}}` and the prefix
`state_dict.model.` are one case. The names that all our models share decide where a prefix ends.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ctclip_model.errors import CheckpointError
from ctclip_model.models.weights_files import describe_keys, list_names, name_keys

logger = logging.getLogger(__name__)

_CTCLIP = r"(?:visual_transformer\.|text_transformer\.|to_(?:visual|text)_latent(?:_extra)?\.|temperature$)"
_LABELLER = r"(?:model\.(?:embeddings|encoder|pooler)\.|classifier\.(?:weight|bias)$)"
# A prefix of whole segments, then the first segment of CT-CLIP's, LiPro's or a labeller's names.
NAME = re.compile(rf"(?P<prefix>(?:[^.]+\.)*?)(?:(?:trained_model\.)?{_CTCLIP}|{_LABELLER})")
# Segments that wrappers of PyTorch add inside a name: torch.compile, DDP, FSDP, activation checkpoints, DeepSpeed.
WRAPPER = re.compile(
    r"(?<=\.)(?:_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\.(?=.)"
)
# Words of snake_case ("model_ema", "ema0.9999") and of camelCase ("modelEMA", "emaModel").
AVERAGE = re.compile(
    r"(?:^|[._])(?i:ema|swa|avg|averaged?|shadow|polyak|mean)(?:[._\d]|$|(?=[A-Z]))"
    r"|(?<=[a-z])(?:EMA|SWA|Ema|Swa|Avg|Averaged?|Shadow|Polyak|Mean)(?![a-z])"
)
OPTIMIZER = re.compile(
    r"(?:^|\.)(?:opt(?:im\w*|_\w+)?|(?:max_)?exp_avg(?:_sq)?|square_avg|acc_delta|momentum_buffer)(?:\.|$)",
    re.IGNORECASE,
)
STRAY_SHARE = 0.1  # Share of the largest set of names. Fewer names under a prefix are no model.
DEEPEST = 6  # levels of mappings that are looked into


def unwrap_weights(content: Any, path: object) -> tuple[dict[str, Tensor], str]:
    """The state dict in a file's content, and the words by which errors name its origin.

    `content` is what the file holds. Names keep no prefix of wrappers and trainers. Where a trainer stored an average
    of the weights beside them, the weights are taken, with a warning. Optimizers, counters and texts are left out. A
    mapping of tensors without a name of our models stays as it is.

    Raises `CheckpointError` for a content without tensors, for names in bytes, and for several models in one file.
    """
    if not isinstance(content, Mapping):
        what = f"a single tensor of shape {tuple(content.shape)}" if isinstance(content, Tensor) else _type(content)
        raise CheckpointError(f"{path}: is not a state dict, a mapping of names to tensors, but {what}")
    tensors = {name: value for name, value in _flatten(content, path).items() if not OPTIMIZER.search(name)}
    if not tensors:
        raise CheckpointError(
            f"{path}: is not a state dict, a mapping of names to tensors: it holds {_describe(content)}"
            f"{describe_keys(content)}"
        )
    tensors = _without_wrappers(tensors)
    prefix, others = _choose_prefix(tensors, content, path)
    weights = {
        name.removeprefix(prefix): value.detach()
        for name, value in tensors.items()
        if name.startswith(prefix) and not any(name.startswith(other) for other in others)
    }
    is_nested = any(isinstance(value, Mapping) for value in content.values())
    places = [f"under {prefix.rstrip('.')}"] * bool(prefix) + [name_keys(content)] * is_nested
    return weights, f"{path} ({'; '.join(places)})" if places else str(path)


def _type(value: Any) -> str:
    length = f" of length {len(value)}" if isinstance(value, list | tuple) else ""
    return f"an object of type {type(value).__name__}{length}"


def _describe(content: Mapping[Any, Any]) -> str:
    if any(OPTIMIZER.search(str(name)) for name in content) or _is_optimizer(content):
        return "the state of an optimizer and no weights: name the file of the weights beside it"
    return "no tensors" if content else "nothing"


def _is_optimizer(content: Mapping[Any, Any]) -> bool:
    return "param_groups" in content


def _flatten(content: Mapping[Any, Any], path: object, depth: int = 0) -> dict[str, Tensor]:
    """Tensors in nested mappings by dotted names, without those of optimizers."""
    tensors: dict[str, Tensor] = {}
    if depth > DEEPEST or _is_optimizer(content):
        return tensors
    for key, value in content.items():
        if isinstance(key, bytes) and isinstance(value, Tensor | Mapping):
            raise CheckpointError(f"{path}: the name {key!r} is bytes and no text: save the names decoded")
        if isinstance(value, Tensor):
            tensors[str(key)] = value
        elif isinstance(value, Mapping):
            tensors |= {f"{key}.{name}": inside for name, inside in _flatten(value, path, depth + 1).items()}
    return tensors


def _without_wrappers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors without the segments that wrappers add inside names, unless two names would become one."""
    plain = {WRAPPER.sub("", name): value for name, value in tensors.items()}
    return plain if len(plain) == len(tensors) else tensors


def _choose_prefix(
    tensors: Mapping[str, Tensor], content: Mapping[Any, Any], path: object
) -> tuple[str, tuple[str, ...]]:
    """The prefix of the model's names, and the prefixes of averages that lie below it. Raises `CheckpointError`."""
    counts = Counter(match["prefix"] for name in tensors if (match := NAME.match(name)))
    if not counts:
        return "", ()
    largest = max(counts.values())
    whole = [prefix for prefix, count in counts.items() if count >= STRAY_SHARE * largest]
    live = [prefix for prefix in whole if not AVERAGE.search(prefix.rstrip("."))] if len(whole) > 1 else whole
    if len(live) != 1:
        sets = list_names(prefix.rstrip(".") or "no prefix" for prefix in whole)
        raise CheckpointError(
            f"{path}: holds several sets of weights ({sets}): save the state_dict() of one alone"
            f"{describe_keys(content)}"
        )
    prefix, others = live[0], tuple(other for other in whole if other != live[0])
    if others:
        logger.warning(
            "%s: the average of the weights (%s) is left out, and the weights beside it are loaded", path,
            list_names(other.rstrip(".") for other in others),
        )  # fmt: skip
    if prefix and (left := [name for name in tensors if not name.startswith((prefix, *others))]):
        logger.warning("%s: tensors outside of %s are left out: %s", path, prefix.rstrip("."), list_names(left))
    return prefix, others
