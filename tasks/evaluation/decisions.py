"""Decisions that evaluations leave in a model's folder, where `ctclip predict` finds them without a warehouse."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

from ctclip_model.config import DECISIONS_FILE
from ctclip_model.data.abnormalities import ABNORMALITIES
from ctclip_model.errors import CheckpointError
from ctclip_model.evaluation.decisions import (
    Cohort,
    DecisionRule,
    Decisions,
    read_decisions,
    write_decisions,
)
from ctclip_model.evaluation.decisions_card import write_thresholds
from tasks.models.find import ModelReference
from tasks.run.lost import is_there
from warehouse import store

logger = logging.getLogger(__name__)


def leave_decisions(data_root: Path, model: ModelReference) -> str:
    """Writes the model's current decisions into its folder, unless they are there. Returns the outcome in words.

    A folder that is lost or cannot be written stays as it is, with a warning.
    """
    found = find_decisions(data_root, model)
    if found is None:
        return f"{model.model_id}: no evaluation has thresholds with sensitivity and specificity"
    if not is_there(model.folder):
        return f"{model.model_id}: its folder is lost, so decisions stay in the warehouse alone"
    try:
        if _read(model) == found:
            write_thresholds(model.folder, found)
            return f"{model.model_id}: decisions are there already"
        write_decisions(model.folder, found)
        write_thresholds(model.folder, found)
    except OSError as error:  # the rows are recorded, and the next evaluation tries again
        logger.warning("%s: decisions stay in the warehouse alone: %s", model.model_id, error)
        return f"{model.model_id}: decisions could not be written"
    return f"{model.model_id}: decisions on {len(found.rules)} abnormalities in {DECISIONS_FILE}"


def find_decisions(data_root: Path, model: ModelReference) -> Decisions | None:
    """The decisions of a model's weights in the warehouse, of one cohort, or None.

    The split valid goes before external data, then the cohort with more decided abnormalities, then with more patients.
    """
    key = {"model_id": model.model_id, "weights": model.weights_sha256, "names": list(ABNORMALITIES)}
    rows = store.query(data_root, store.load_sql(__package__, "decisions"), key)
    count = len(dataclasses.fields(Cohort))
    by_cohort: dict[Cohort, list[DecisionRule]] = {}
    for row in rows:
        by_cohort.setdefault(Cohort(*row[:count]), []).append(DecisionRule(*row[count:]))
    if not by_cohort:
        return None
    cohort = min(by_cohort, key=lambda one: (one.split != "valid", -len(by_cohort[one]), -one.count_patients))
    rules = sorted(by_cohort[cohort], key=lambda rule: ABNORMALITIES.index(rule.abnormality))
    return Decisions(model.weights_sha256, cohort, tuple(rules))


def _read(model: ModelReference) -> Decisions | None:
    try:
        return read_decisions(model.folder, model.weights_sha256)
    except CheckpointError:
        return None  # damaged, or of older weights
