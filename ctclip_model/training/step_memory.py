"""Memory of a training step, estimated without allocating it: the real step on tensors that have only shapes."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from ctclip_model.config import Preset
from ctclip_model.device import Compute, autocast_to
from ctclip_model.models.clip import CTCLIP, contrastive_loss
from ctclip_model.training.losses import average_volumes

ADAM_BYTES = 8  # bytes a trainable weight: two moments in float32
SHARE_USED = 0.9  # share of the free memory; the rest is for libraries and gaps of the allocator


@dataclass(frozen=True)
class StepMemory:
    """Peak memory of a step, in bytes."""

    fixed: int  # weights, gradients, optimizer's moments, and all else that does not grow with the volumes
    per_volume: int  # a volume encoded at once, with its share of the longest report

    def count_fitting(self, free_bytes: int) -> int:
        """The number of volumes that can be encoded at once in the free memory; 0 for none."""
        return max(0, int(free_bytes * SHARE_USED - self.fixed) // self.per_volume)


def estimate_step(preset: Preset, compute: Compute) -> StepMemory:
    """The memory of a contrastive step of a preset, from a step of one scan and a step of two."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # scratch memory of kernels differs
    one, two = (_peak_bytes(preset, compute, device, count) for count in (1, 2))
    return StepMemory(fixed=2 * one - two, per_volume=-(-(two - one) // preset.training.volumes_per_scan))


def _peak_bytes(preset: Preset, compute: Compute, device: torch.device, count: int) -> int:
    with FakeTensorMode(), device:
        model = CTCLIP(preset.model).train()
        vision = model.visual_transformer
        vision.vq.eval()  # its counts in training would depend on values
        vision.recompute = compute.recompute
        model.text_transformer.requires_grad_(preset.training.text_learning_rate != 0)
        volumes_per_scan = preset.training.volumes_per_scan
        volumes = torch.empty(count * volumes_per_scan, 1, *preset.recipe.shape, dtype=torch.int16)
        ids = torch.zeros(count, preset.model.text.max_length, dtype=torch.int64)
        learned = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        held = sum(tensor.nbytes for tensor in model.state_dict().values())
        with _Peak() as peak:
            with autocast_to(device, compute.precision.autocast):
                images = average_volumes(model.encode_image(volumes), volumes_per_scan)
                if preset.training.texts_per_report:  # encoded before the first step
                    texts = model.project_text(torch.empty(count, preset.model.text.hidden_size))
                else:
                    texts = model.encode_text(ids, torch.ones_like(ids))
            contrastive_loss(images, texts, model.temperature).backward()
    return held + ADAM_BYTES * learned + 2 * volumes.nbytes + peak.max  # the next batch is copied ahead


class _Peak(TorchDispatchMode):
    """Counts the bytes of all living tensors that were made inside the context."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.max = 0
        self.live: set[int] = set()

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {_key(tensor) for tensor in _tensors((args, kwargs))}
        for tensor in _tensors(result):
            if _key(tensor) not in given | self.live:  # a view shares the storage of an argument
                storage = tensor.untyped_storage()
                self.live.add(_key(tensor))
                self.now += storage.nbytes()
                self.max = max(self.max, self.now)
                weakref.finalize(storage, self._free, _key(tensor), storage.nbytes())
        return result

    def _free(self, key: int, size: int) -> None:
        self.live.discard(key)
        self.now -= size


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _tensors(tree: Any) -> list[Tensor]:
    found: list[Tensor] = []
    tree_map_only(Tensor, found.append, tree)
    return found
