"""Comparisons that a model can have: with each older model that is scored alike. Imports no PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ctclip_model.config import VERSIONS, compute_fingerprint
from ctclip_model.data.label_sets import BUILT_IN, LabelSet
from ctclip_model.evaluation.protocols import NAMED_PROTOCOLS
from tasks.labels.label_sources import mark_labels, read_recorded_sets
from tasks.models.find import ModelReference
from tasks.run.fingerprints import VERSION, Fingerprint
from tasks.settings import PUBLISHED_LABELS
from warehouse import store


@dataclass(frozen=True)
class Comparison:
    """A model beside an older model, both scored on the same split and labels, each by its own protocol."""

    dataset: str
    split: str
    unit: str
    protocol: str
    other_model_id: str
    other_protocol: str
    scored_as: str  # fingerprint of the model's evaluation
    other_scored_as: str  # fingerprint of the other model's evaluation
    label_source: str = PUBLISHED_LABELS
    label_set: str = BUILT_IN

    @property
    def key(self) -> str:
        scored = f"{self.dataset}/{self.split}/{self.protocol}/{self.unit}"
        return f"{scored} against {self.other_model_id}/{self.other_protocol}{mark_labels(self.label_source)}"

    @property
    def fingerprint(self) -> str:
        parts = {"scores": self.scored_as, "the other's scores": self.other_scored_as, VERSION: VERSIONS["evaluate"]}
        return Fingerprint(compute_fingerprint(VERSIONS["evaluate"], self.scored_as, self.other_scored_as), parts)


def list_comparisons(data_root: Path, model: ModelReference) -> dict[str, Comparison]:
    """Lists the comparisons that a model can have now, by key: with each older model that is scored alike.

    Each pair is compared once, by the younger model. A rebuild scores models from old to new, so both are scored then.
    A pair that was scored on other findings than its label set has now waits for new evaluations.
    """
    key = {"model_id": model.model_id, "named": [*NAMED_PROTOCOLS]}
    rows = store.query(data_root, store.load_sql(__package__, "comparison_pairs"), key)
    sets = read_recorded_sets(data_root) if rows else {}
    comparisons = [Comparison(*row[:-1]) for row in rows if _is_scored_on(row[-1], sets.get(row[-2]))]
    return {comparison.key: comparison for comparison in comparisons}


def _is_scored_on(names: Sequence[str], label_set: LabelSet | None) -> bool:
    """Are these the findings that a set has now? Those of the built-in set depend on the data set, and never change."""
    return label_set is not None and (label_set.is_built_in or {*names} == {*label_set.names})
