"""The numeric core: volumes, shards, CT-CLIP, training and evaluation. It runs alone on a bare GPU machine.

The public functions are imported on first use, so that `import ctclip_model` itself imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ctclip_model.data.volume import load_volume
    from ctclip_model.evaluation.predict import open_model
    from ctclip_model.labelling.labeller import Labeller, load_labeller
    from ctclip_model.models.weights import load_ctclip

__all__ = ["Labeller", "load_ctclip", "load_labeller", "load_volume", "open_model"]

_MODULES = {
    "Labeller": "labelling.labeller",
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
