"""Which models a model is compared with, and a comparison's rows: paired, on what both have predicted."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from ctclip_model.config import VERSIONS, compute_fingerprint
from ctclip_model.data.abnormalities import label_set
from ctclip_model.evaluation import metrics
from tasks.evaluation.score import CONFIG, LABEL_SOURCE, PUBLISHED, UNDECIDED, Rows, labels_of, load_labels
from tasks.models.find import ModelReference
from tasks.run.fingerprints import VERSION, Fingerprint
from warehouse import store


@dataclass(frozen=True)
class Comparison:
    """A model beside one made before it, both scored on the same data set's split, each by its own protocol."""

    dataset: str
    split: str
    unit: str
    protocol: str
    other_model_id: str
    other_protocol: str
    scored_as: str  # the fingerprints of both evaluations, of which one holds all that a comparison depends on
    other_scored_as: str

    @property
    def key(self) -> str:
        scored = f"{self.dataset}/{self.split}/{self.protocol}/{self.unit}"
        return f"{scored} against {self.other_model_id}/{self.other_protocol}"

    @property
    def fingerprint(self) -> str:
        parts = {"scores": self.scored_as, "the other's scores": self.other_scored_as, VERSION: VERSIONS["evaluate"]}
        return Fingerprint(compute_fingerprint(VERSIONS["evaluate"], self.scored_as, self.other_scored_as), parts)


@dataclass(frozen=True)
class Side:
    """What one of the two has predicted of the items, and what is known of these."""

    items: list[str]
    scored: metrics.Scored

    def restrict(self, items: set[str], decided: set[str], is_unknown: np.ndarray) -> metrics.Scored:
        """The items alone, of which `decided` count for decisions, and of no label whose threshold is unknown (L,)."""
        rows = [row for row, item in enumerate(self.items) if item in items]
        return dataclasses.replace(
            self.scored,
            labels=self.scored.labels[rows],
            probabilities=self.scored.probabilities[rows],
            patients=[self.scored.patients[row] for row in rows],
            thresholds=np.where(is_unknown, np.nan, self.scored.thresholds),
            is_decided=np.array([self.items[row] in decided for row in rows], bool),
        )

    @property
    def decided(self) -> set[str]:
        """The items that did not choose the thresholds."""
        mask = self.scored.is_decided
        return {item for row, item in enumerate(self.items) if mask is None or mask[row]}


def list_comparisons(data_root: Path, model: ModelReference) -> dict[str, Comparison]:
    """The comparisons that a model can have now, by key: with every model made before it that is scored alike.

    So each pair is compared once, and, where a rebuild scores models in the order in which they were made, after both.
    """
    with store.read(data_root) as connection:
        rows = connection.execute(_PAIRS, {"model_id": model.model_id, "published": PUBLISHED}).fetchall()
    comparisons = [Comparison(*row) for row in rows]
    return {one.key: one for one in comparisons}


def score_comparison(data_root: Path, model: ModelReference, comparison: Comparison) -> Rows:
    """The rows of a comparison, of the items that both have predicted."""
    with store.read(data_root) as connection:
        one = _load_side(connection, comparison, model.model_id, comparison.protocol)
        other = _load_side(connection, comparison, comparison.other_model_id, comparison.other_protocol)
    shared = set(one.items) & set(other.items)
    decided = one.decided & other.decided
    is_unknown = np.isnan(one.scored.thresholds) | np.isnan(other.scored.thresholds)
    ours, theirs = (side.restrict(shared, decided, is_unknown) for side in (one, other))
    stamp = {"model_id": model.model_id, "label_source": LABEL_SOURCE, "fingerprint": comparison.fingerprint}
    stamp |= dataclasses.asdict(comparison)
    return [stamp | dataclasses.asdict(row) for row in metrics.compare(ours, theirs, CONFIG)]


def _load_side(connection: duckdb.DuckDBPyConnection, comparison: Comparison, model_id: str, protocol: str) -> Side:
    wanted = label_set(comparison.dataset)
    scored = {
        "model_id": model_id, "protocol": protocol, "dataset": comparison.dataset, "split": comparison.split,
        "unit": comparison.unit,
    }  # fmt: skip
    names = list(wanted.names)
    rows = connection.execute(_PREDICTIONS, scored | {"names": names}).fetchall()
    items, scans, patients, probabilities = (list(column) for column in zip(*rows, strict=True))
    chosen: dict[str, tuple[Any, Any]] = {
        name: (threshold, source)
        for name, threshold, source in connection.execute(
            _THRESHOLDS, scored | {"label_source": LABEL_SOURCE}
        ).fetchall()
    }
    thresholds = np.array([chosen[name][0] for name in names], float)
    source = chosen[names[0]][1]
    is_decided = ~metrics.draw_choosers(patients, CONFIG) if source.endswith(UNDECIDED) else None
    truth = wanted.merge(labels_of(load_labels(connection), scans))
    return Side(items, metrics.Scored(names, truth, np.array(probabilities), thresholds, source, patients, is_decided))


_PAIRS = """
with scored as (
    select distinct model_id, dataset, split, unit, protocol, metrics.fingerprint, models.run_id as made_by
    from current_metrics as metrics
    join current_models as models using (model_id)
    where protocol <> $published
)
select
    dataset, split, unit, mine.protocol, others.model_id, others.protocol, mine.fingerprint, others.fingerprint
from scored as mine
join scored as others using (dataset, split, unit)
where mine.model_id = $model_id and (others.made_by, others.model_id) < (mine.made_by, mine.model_id)
order by all
"""
_PREDICTIONS = """
with items as (
    select volume_name as item, scan_id, patient_id from current_volumes where $unit = 'volume'
    union
    select scan_id, scan_id, patient_id from current_volumes where $unit = 'scan'
)
select item, scan_id, patient_id, list(probability order by list_position($names, abnormality))
from current_predictions
join items using (item)
where model_id = $model_id and protocol = $protocol and dataset = $dataset and split = $split and unit = $unit
group by item, scan_id, patient_id
order by item
"""
_THRESHOLDS = """
select abnormality, any_value(threshold), any_value(threshold_source)
from current_metrics
where model_id = $model_id and protocol = $protocol and dataset = $dataset and split = $split and unit = $unit
    and label_source = $label_source and threshold_source is not null
group by abnormality
"""
