"""One self-contained page about CT volumes of one's own: slices, evidence and decisions."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from ctclip_model.errors import StorageError
from ctclip_model.evaluation.decisions import Cohort, Decision
from ctclip_model.evaluation.predict import PredictedVolume
from ctclip_model.files import whole_file
from tasks.report.render import MISSING, make_environment

PICTURE_BYTES = 20_000_000  # largest size of all pictures of a page
QUALITY = 80  # quality of a WebP
CUTS = {"axial": "seen from the feet", "coronal": "seen from the front", "sagittal": "seen from the patient's left"}


@dataclass
class OwnPage:
    """A page that grows by volumes. Pictures beyond `PICTURE_BYTES` are left out, and the page says so."""

    model: str
    score_words: str
    cohort: Cohort | None
    volumes: list[dict[str, Any]] = field(default_factory=list)
    size_bytes: int = 0

    def add(self, volume: PredictedVolume, name: str) -> None:
        """Adds a volume that `predict` was asked to draw."""
        pictures = [self._draw(volume, shown.index, shown.panels) for shown in volume.slices]
        size = sum(len(uri) for picture in pictures for _, uri, _ in picture["panels"])
        has_room = self.size_bytes + size <= PICTURE_BYTES
        self.size_bytes += size if has_room else 0
        present = [decision.abnormality for decision in volume.decisions if decision.is_present]
        spacing = " x ".join(f"{value:.4g}" for value in volume.spacing_mm)
        self.volumes.append(
            {
                "name": name, "doubts": volume.doubts, "facts": f"spacing {spacing} mm, axes {volume.turn}",
                "summary": self._summarise(present), "has_room": has_room, "pictures": pictures if has_room else [],
                "rows": [self._describe(decision) for decision in volume.decisions],
            }
        )  # fmt: skip

    def arrange(self, names: Sequence[str]) -> None:
        """Puts the volumes into the order of these names."""
        places = {name: place for place, name in enumerate(names)}
        self.volumes.sort(key=lambda volume: places[volume["name"]])

    def write(self, path: Path, failed: Sequence[tuple[str, str]]) -> None:
        """Writes the page, complete or not at all, with the names of failed files and their reasons.

        Raises `StorageError`, such as for a full disk.
        """
        count = len(self.volumes)
        title = self.volumes[0]["name"] if count == 1 and not failed else f"{count} CT volumes"
        html = make_environment().get_template("own_ct.html").render(
            title=title, model=self.model, score_words=self.score_words, volumes=self.volumes, failed=failed,
            cohort=None if self.cohort is None else self.cohort.lines,
        )  # fmt: skip
        try:
            with whole_file(path) as file:
                file.write(html.encode())
        except OSError as error:
            raise StorageError(f"{path}: the page cannot be written: {error.strerror}") from error

    def _summarise(self, present: Sequence[str]) -> str:
        if self.cohort is None:
            return "not decided"
        return ", ".join(present) or "nothing present"

    def _describe(self, decision: Decision) -> dict[str, str]:
        rule = decision.rule
        mark = "" if self.cohort is None else "+" if rule is None else "*" if rule.has_few_patients else ""
        return {
            "name": decision.abnormality + mark, "word": decision.word, "value": _value(decision),
            "sensitivity": MISSING if rule is None else f"{rule.sensitivity:.2f}",
            "specificity": MISSING if rule is None else f"{rule.specificity:.2f}",
        }  # fmt: skip

    def _draw(self, volume: PredictedVolume, index: int, panels: Sequence[tuple[str, Image.Image]]) -> dict[str, Any]:
        decision = volume.decisions[index]
        kind = "score" if decision.probability is None else "probability"
        word = "" if decision.is_present is None else f": {decision.word}"
        alt = f"slice through the strongest patch for {decision.abnormality.lower()}"
        return {
            "title": f"{decision.abnormality}{word}, {kind} {_value(decision)}",
            "panels": [(plane, encode(picture), f"{plane} {alt}, {CUTS[plane]}") for plane, picture in panels],
        }


def encode(picture: Image.Image) -> str:
    """A picture as the data URI of a WebP."""
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=QUALITY)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _value(decision: Decision) -> str:
    return f"{decision.score if decision.probability is None else decision.probability:.3f}"
