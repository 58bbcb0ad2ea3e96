"""The score of a training on samples that it has not learned from, beside baselines that learn little or nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctclip_model.json_config import parse_config


@dataclass(frozen=True)
class HeldOut:
    """A score between 0 and 1, and the same score of each baseline on the same samples, by the baseline's name."""

    metric: str
    score: float
    baselines: dict[str, float]

    @property
    def unbeaten(self) -> list[str]:
        """The baselines that are as good or better. No baseline is better than a perfect score."""
        return [name for name, score in self.baselines.items() if not (self.score > score or self.score == 1)]

    @property
    def warning(self) -> str | None:
        """A sentence for a training that has not beaten every baseline, or None."""
        if not self.unbeaten:
            return None
        return f"has learnt no more than {' and '.join(self.unbeaten)}: {self}"

    def __str__(self) -> str:
        others = ", ".join(f"{name} {score:.3f}" for name, score in self.baselines.items())
        return f"{self.metric} {self.score:.3f} ({others})"


def read_info(folder: Path) -> dict[str, Any]:
    """The facts of a model's maker in its folder. Empty for a folder of another program. Imports no torch."""
    try:
        info = json.loads((folder / "config.json").read_text("utf-8"))["info"]
    except (OSError, KeyError, TypeError, ValueError):
        return {}
    return info if isinstance(info, dict) else {}


def read_held_out(folder: Path) -> HeldOut | None:
    """The held-out score in a model folder. None: its training held nothing out, or another program made the model."""
    found = read_info(folder).get("held_out")
    try:
        return parse_config(HeldOut, found, "held_out") if isinstance(found, Mapping) else None
    except (KeyError, TypeError, ValueError):
        return None


def read_count_cut(folder: Path) -> int | None:
    """The number of training reports of which a part was beyond the model's limit of tokens. None: not known."""
    count = read_info(folder).get("count_cut_texts")
    return count if isinstance(count, int) else None
