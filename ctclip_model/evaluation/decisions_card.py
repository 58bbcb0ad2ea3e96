"""Thresholds in a model's card: the decisions of an evaluation as a table for people."""

from __future__ import annotations

from pathlib import Path

from ctclip_model.config import CARD_FILE
from ctclip_model.evaluation.decisions import DecisionRule, Decisions
from ctclip_model.files import whole_file
from ctclip_model.models.model_card import set_section

THRESHOLDS = "Thresholds"


def describe_thresholds(decisions: Decisions) -> str:
    """The cohort, and a table with a row for each abnormality: threshold, sensitivity and specificity (95 % interval).

    The same values, with the calibration, are in `decisions.json`.
    """
    fitted_on, counted_on = decisions.cohort.lines
    rows = [
        f"| {rule.abnormality}{' *' if rule.has_few_patients else ''} | {rule.threshold:.3f} "
        f"| {_share(rule.sensitivity, rule.sensitivity_low, rule.sensitivity_high)} "
        f"| {_share(rule.specificity, rule.specificity_low, rule.specificity_high)} "
        f"| {_brier(rule)} | {rule.n_positive:,} of {rule.n:,} |"
        for rule in decisions.rules
    ]
    few = ["", "\\* Fewer than 5 counted patients have it, or lack it."] if "*" in "".join(rows) else []
    return "\n".join(
        [
            f"{fitted_on}, {counted_on}. A score from the threshold on counts as present. `decisions.json` has the "
            "same rules and the calibration, and `predict` applies them.",
            "",
            "| abnormality | threshold | sensitivity | specificity | Brier score, calibrated | with it |",
            "|---|---|---|---|---|---|",
            *rows,
            *few,
        ]
    )


def write_thresholds(folder: Path, decisions: Decisions) -> bool:
    """Puts the thresholds in the card of a model folder. Returns False if they are there, or if there is no card."""
    path = folder / CARD_FILE
    if not path.is_file():
        return False
    card = path.read_text(encoding="utf-8", errors="surrogateescape")
    changed = set_section(card, THRESHOLDS, describe_thresholds(decisions))
    if changed == card:
        return False
    with whole_file(path) as file:
        file.write(changed.encode(errors="surrogateescape"))
    return True


def _share(value: float, low: float | None, high: float | None) -> str:
    return f"{value:.2f}" if low is None or high is None else f"{value:.2f} ({low:.2f} to {high:.2f})"


def _brier(rule: DecisionRule) -> str:
    return "" if rule.brier_calibrated is None else f"{rule.brier_calibrated:.3f}"
