"""Decisions that evaluations leave in a model's folder, where `ctclip predict` finds them without a warehouse."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

from ctclip_model.config import DECISIONS_FILE
from ctclip_model.data.label_sets import BUILT_IN
from ctclip_model.errors import CheckpointError, MissingInputError
from ctclip_model.evaluation.decisions import Cohort, DecisionRule, Decisions, read_decisions, write_decisions
from ctclip_model.evaluation.decisions_card import write_thresholds
from ctclip_model.models.held_out import read_info
from tasks.evaluation.evaluations import list_evaluations
from tasks.labels.label_sources import DEFAULT_SOURCE, LabelSource
from tasks.models.find import ModelReference
from tasks.run.lost import is_there
from tasks.settings import PUBLISHED_LABELS
from warehouse import store

logger = logging.getLogger(__name__)


def leave_decisions(data_root: Path, model: ModelReference, source: LabelSource = DEFAULT_SOURCE) -> str:
    """Writes the model's current decisions into its folder, unless they are there. Returns the outcome in words.

    They are those on the 18 and on the label set of `source`. Those on other sets in the folder stay. A folder that is
    lost or cannot be written stays as it is, with a warning.
    """
    found = [one for each in {DEFAULT_SOURCE, source} if (one := find_decisions(data_root, model, each)) is not None]
    if not found:
        return f"{model.model_id}: no evaluation has thresholds with sensitivity and specificity"
    if not is_there(model.folder):
        return f"{model.model_id}: its folder is lost, so decisions stay in the warehouse alone"
    try:
        there = _read(model)
        own = read_info(model.folder).get("label_set", {}).get("name", BUILT_IN)
        by_set = ({} if there is None else there.by_set) | {one.label_set: one for one in found}
        first, *others = sorted(by_set.values(), key=lambda one: (one.label_set != own, one.label_set))
        kept = dataclasses.replace(first, others=tuple(others))
        if there != kept:
            write_decisions(model.folder, kept)
        if first.label_set == own:
            write_thresholds(model.folder, first)
    except OSError as error:  # the rows are recorded, and the next evaluation tries again
        logger.warning("%s: decisions stay in the warehouse alone: %s", model.model_id, error)
        return f"{model.model_id}: decisions could not be written"
    if there == kept:
        return f"{model.model_id}: decisions are there already"
    return f"{model.model_id}: decisions on {sum(len(one.rules) for one in found)} abnormalities in {DECISIONS_FILE}"


def find_decisions(data_root: Path, model: ModelReference, source: LabelSource = DEFAULT_SOURCE) -> Decisions | None:
    """The decisions of a model's weights in the warehouse on a label set, of one cohort, or None.

    The labels that the model learned go before the published ones, and these before others. The split valid goes before
    external data, then the cohort with more decided abnormalities, then with more patients.
    """
    label_set = source.label_set
    key = {
        "model_id": model.model_id, "weights": model.weights_sha256, "names": list(label_set.names),
        "label_set": label_set.name, "fingerprints": _list_fingerprints(data_root, model, source),
    }  # fmt: skip
    rows = store.query(data_root, store.load_sql(__package__, "decisions"), key)
    count = len(dataclasses.fields(Cohort))
    by_cohort: dict[Cohort, list[DecisionRule]] = {}
    for row in rows:
        by_cohort.setdefault(Cohort(*row[:count]), []).append(DecisionRule(*row[count:]))
    if not by_cohort:
        return None
    sql = "select config ->> '$.labels_of' from current_models where model_id = ?"
    learned = [name for (name,) in store.query(data_root, sql, [model.model_id])]

    def rank(cohort: Cohort) -> tuple[bool, bool, str, bool, int, int]:
        name = cohort.label_source
        by_labels = (name not in learned, name != PUBLISHED_LABELS, name)
        return (*by_labels, cohort.split != "valid", -len(by_cohort[cohort]), -cohort.count_patients)

    cohort = min(by_cohort, key=rank)
    rules = sorted(by_cohort[cohort], key=lambda rule: label_set.names.index(rule.abnormality))
    return Decisions(model.weights_sha256, cohort, tuple(rules), label_set.name, label_set.fingerprint)


def _list_fingerprints(data_root: Path, model: ModelReference, source: LabelSource) -> list[str] | None:
    """Fingerprints of the evaluations by a set's present prompts. None: every one, since the 18 never change."""
    if source.label_set.is_built_in:
        return None
    try:
        found = [list_evaluations(data_root, model, unit=unit, source=source) for unit in ("scan", "volume")]
    except MissingInputError:
        return []
    return [evaluation.fingerprint for evaluations in found for evaluation in evaluations.values()]


def _read(model: ModelReference) -> Decisions | None:
    try:
        return read_decisions(model.folder, model.weights_sha256)
    except CheckpointError:
        return None  # damaged, or of older weights
