"""The numeric core: volumes, shards, CT-CLIP, training and evaluation. It runs alone on a bare GPU machine.

The public functions are imported on first use, so that `import ctclip_model` itself imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ctclip_model.config import Recipe
    from ctclip_model.data.volume import load_volume
    from ctclip_model.evaluation.predict import open_model
    from ctclip_model.labelling.labeller import Labeller, load_labeller
    from ctclip_model.models.encoders import Encoder, digest_weights
    from ctclip_model.models.weights import load_ctclip

__all__ = [
    "Encoder", "Labeller", "Recipe", "digest_weights", "load_ctclip", "load_labeller", "load_volume", "open_model",
]  # fmt: skip

_MODULES = {
    "Encoder": "models.encoders",
    "Labeller": "labelling.labeller",
    "Recipe": "config",
    "digest_weights": "models.encoders",
    "load_ctclip": "models.weights",
    "load_labeller": "labelling.labeller",
    "load_volume": "data.volume",
    "open_model": "evaluation.predict",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
