"""Rows of `ctclip predict`: a JSON object or a line of CSV for each volume."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ctclip_model.data.abnormalities import ABNORMALITIES
from ctclip_model.errors import ConfigurationError
from ctclip_model.evaluation.evidence_files import PICTURE
from ctclip_model.evaluation.predict import EmbeddedVolume, PredictedVolume, VolumeModel

FACTS = ("file", "spacing_mm", "orientation", "doubts", "evidence")
VALUES = ("", "_score", "_present")  # ends of an abnormality's columns: calibrated probability, score, decision


def describe_volume(volume: EmbeddedVolume) -> dict[str, Any]:
    """A volume's file, spacing, orientation and doubts, and the patient's identifiers if they were asked for."""
    facts = {
        "file": str(volume.path),
        "spacing_mm": list(volume.spacing_mm),
        "orientation": volume.turn,
        "doubts": volume.doubts,
    }
    return facts | ({"ids": dict(volume.ids)} if volume.ids else {})


def describe_prediction(volume: PredictedVolume) -> dict[str, Any]:
    """A volume with its scores, decisions and evidence, as JSON."""
    decisions = {decision.abnormality: decision.as_json() for decision in volume.decisions}
    row = describe_volume(volume) | {"probabilities": volume.by_abnormality, "decisions": decisions}
    return row | ({"evidence": volume.evidence.as_json()} if volume.evidence else {})


def describe_rules(model: VolumeModel) -> dict[str, Any]:
    """The meaning of the probabilities, and the cohort of the decisions, or None without an evaluation."""
    cohort = None if model.decisions is None else asdict(model.decisions.cohort)
    return {"probabilities_are": score_words(model), "evaluation": cohort}


def score_words(model: VolumeModel) -> str:
    """The kind of a model's scores: a softmax over both prompts, or the logistic function of a head."""
    return f"uncalibrated {'softmax' if model.loaded.head is None else 'sigmoid'} scores"


def csv_columns(names: Sequence[str] = ABNORMALITIES) -> list[str]:
    """Columns of the CSV. An abnormality has three: its probability is empty without an evaluation.

    Raises `ConfigurationError` for names that would give two columns of one name.
    """
    plain = (name.lower().replace(" ", "_") for name in names)
    columns = [*FACTS, *(name + end for name in plain for end in VALUES)]
    if doubled := [column for column in columns if columns.count(column) > 1]:
        raise ConfigurationError(f"two columns of the CSV would be called {doubled[0]!r}: rename a finding")
    return columns


def csv_cells(row: Mapping[str, Any]) -> list[Any]:
    """Cells of a row of `describe_prediction`, in the order of `csv_columns`."""
    spacing = " ".join(f"{value:g}" for value in row["spacing_mm"])
    evidence = Path(row["evidence"]["picture"]).parent if "evidence" in row else ""
    facts = (row["file"], spacing, row["orientation"], "; ".join(row["doubts"]), evidence)
    values = (
        (decision["probability"], decision["score"], None if is_present is None else int(is_present))
        for decision in row["decisions"].values()
        for is_present in (decision["is_present"],)
    )
    return [*map(printable, facts), *(value for triple in values for value in triple)]  # csv writes None as nothing


def evidence_folder(row: Mapping[str, Any]) -> Path | None:
    """The folder of evidence in a row of JSON or of CSV, or None."""
    found = row.get("evidence")
    if not found:
        return None
    return Path(found) if isinstance(found, str) else Path(found["picture"]).parent


def has_evidence(row: Mapping[str, Any], folder: Path | None) -> bool:
    """True if a row's evidence lies in `folder`, or if none is asked for (None)."""
    found = evidence_folder(row)
    return folder is None or (found is not None and found.parent == folder and (found / PICTURE).is_file())


def csv_line(cells: Iterable[Any]) -> str:
    """One line of CSV (RFC 4180, with a line feed)."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


def printable(path: Path | str) -> str:
    """Path or text in printable characters. Others are escaped: a line feed is `\\n`."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in str(path)
    )
