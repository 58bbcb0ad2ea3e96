"""Device, preset and random inputs of the sections, and how they report results."""

from __future__ import annotations

import json
import statistics
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from measure import seconds
from torch import Tensor

from ctclip_model.config import Preset, published, tiny

HAS_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if HAS_GPU else "cpu")
PRESET: Preset = published() if HAS_GPU else tiny()
BF16 = torch.bfloat16
RESULT = "RESULT "  # begins a line of output that is a result


def report(section: str, name: str, **figures: Any) -> None:
    """Prints one result as a line of JSON, which the parent process collects."""
    print(RESULT + json.dumps({"section": section, "name": name, **figures}), flush=True)


def median_s(way: Callable[[], object], *, runs: int = 5, warm: int = 2) -> float:
    """Median seconds of a call, the GPU's work included."""
    for _ in range(warm):
        way()
    return statistics.median(seconds(way) for _ in range(runs))


@contextmanager
def attempt(section: str, name: str) -> Iterator[None]:
    """Reports a failure as a result, so that the rest still runs."""
    try:
        yield
    except torch.OutOfMemoryError:
        report(section, name, failed="does not fit in memory")
    except Exception as error:  # noqa: BLE001
        traceback.print_exc(limit=-4)
        report(section, name, failed=f"{type(error).__name__}: {str(error)[:200]}")
    finally:
        if HAS_GPU:
            torch.cuda.empty_cache()


def random_hu(count: int) -> Tensor:
    """Volumes int16 HU (count, depth, height, width) of smooth noise."""
    return torch.randint(-1000, 1000, (count, *PRESET.recipe.shape), dtype=torch.int16, device=DEVICE)


def random_tokens(count: int, length: int) -> tuple[Tensor, Tensor]:
    ids = torch.randint(5, PRESET.model.text.vocab_size, (count, length))
    return ids, torch.ones_like(ids)
