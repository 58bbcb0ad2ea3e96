"""From the warehouse's latents and labels to an evaluation's rows; the numbers come from `ctclip_model.evaluation`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
from numpy.typing import NDArray

from ctclip_model.config import VERSIONS, fingerprint
from ctclip_model.data.abnormalities import ABNORMALITIES
from ctclip_model.errors import MissingInputError
from ctclip_model.evaluation import metrics, retrieval, zero_shot
from tasks.models import ModelReference
from warehouse import store

Rows = list[dict[str, Any]]
Classifier = Callable[[NDArray[np.float32]], NDArray[np.float64]]  # latents (N, latent) to probabilities (N, 18)

PROTOCOLS = {"ct-clip": "zero-shot", "vocabfine": "vocabfine", "lipro": "lipro"}  # by the kind of the model
UNIT = "scan"
LABEL_SOURCE = "published"
THRESHOLD_SPLIT = "train"  # never the split that is scored


@dataclass(frozen=True)
class Evaluation:
    """One data set's split, scored in one way."""

    dataset: str
    split: str
    fingerprint: str
    protocol: str
    unit: str = UNIT

    @property
    def key(self) -> str:
        return f"{self.dataset}/{self.split}/{self.protocol}/{self.unit}"

    @property
    def columns(self) -> dict[str, str]:
        return {
            "dataset": self.dataset, "split": self.split, "protocol": self.protocol, "unit": self.unit,
            "fingerprint": self.fingerprint,
        }  # fmt: skip


@dataclass(frozen=True)
class Samples:
    """The volumes of one split that have a latent, and what is known of them, row by row."""

    volumes: list[str]
    scans: list[str]
    patients: list[str]
    latents: NDArray[np.float32]  # (volumes, latent)

    def __len__(self) -> int:
        return len(self.volumes)


def list_evaluations(data_root: Path, model: ModelReference, split: str) -> dict[str, Evaluation]:
    """The evaluations that a model can have now, by key: one a data set that has embedded volumes of the split.

    Raises `MissingInputError` if there is nothing to score.
    """
    with store.read(data_root) as connection:
        inputs = connection.execute(_INPUTS, {"model_id": model.latents_of, "split": split}).fetchall()
    if not inputs:
        raise MissingInputError(f"{model.latents_of} has no latents of split {split!r} yet: run `ctclip embed`")
    protocol = PROTOCOLS[model.kind]
    settings = [VERSIONS["evaluate"], protocol, UNIT, LABEL_SOURCE, ABNORMALITIES]
    if model.kind == "lipro":
        settings.append(model.weights_sha256)  # latents alone do not tell its head
    found = [Evaluation(dataset, split, fingerprint(*settings, content), protocol) for dataset, content in inputs]
    return {one.key: one for one in found}


def score_evaluation(data_root: Path, model: ModelReference, evaluation: Evaluation) -> dict[str, Rows]:
    """Every row of an evaluation, by table. Thresholds come from the train split, which is not scored."""
    with store.read(data_root) as connection:
        scored = _load_samples(connection, model, evaluation.dataset, evaluation.split)
        train = _load_samples(connection, model, evaluation.dataset, THRESHOLD_SPLIT)
        predict = _load_classifier(connection, model)
        labels = _load_labels(connection)
        texts = _load_latents(connection, model, "report") if model.kind != "lipro" else {}
    scans, probabilities = _predict_scans(scored, predict)
    truth = _labels_of(labels, scans)
    thresholds = np.full(len(ABNORMALITIES), np.nan)
    if len(train):
        train_scans, train_probabilities = _predict_scans(train, predict)
        thresholds = metrics.choose_thresholds(_labels_of(labels, train_scans), train_probabilities)
    patient = dict(zip(scored.scans, scored.patients, strict=True))
    metric_rows = metrics.score(
        truth, probabilities, ABNORMALITIES, thresholds=thresholds, threshold_source=THRESHOLD_SPLIT,
        patients=[patient[scan] for scan in scans],
    )  # fmt: skip
    stamp = {"model_id": model.model_id} | evaluation.columns
    labelled = stamp | {"label_source": LABEL_SOURCE}
    return {
        "predictions": [
            stamp | {"item": scan, "abnormality": name, "probability": float(probabilities[row, column])}
            for row, scan in enumerate(scans)
            for column, name in enumerate(ABNORMALITIES)
        ],
        "metrics": _stamped(labelled, metric_rows),
        "curves": _stamped(labelled, metrics.curves(truth, probabilities, ABNORMALITIES)),
        "retrieval": _retrieval_rows(evaluation, model, scored, texts, labels),
    }


def _load_classifier(connection: duckdb.DuckDBPyConnection, model: ModelReference) -> Classifier:
    """How the model makes probabilities of latents: LiPro by its head, the others by the prompts."""
    if model.kind == "lipro":
        from ctclip_model.models.checkpoint import load_head

        return load_head(model.folder).probabilities
    prompts = _load_prompts(connection, model)
    return lambda latents: zero_shot.zero_shot(latents, prompts, model.logit_scale)


def _predict_scans(samples: Samples, predict: Classifier) -> tuple[list[str], NDArray[np.float64]]:
    return zero_shot.by_scan(samples.volumes, samples.scans, predict(samples.latents))


def _retrieval_rows(
    evaluation: Evaluation,
    model: ModelReference,
    samples: Samples,
    texts: dict[str, NDArray[np.float32]],
    labels: dict[str, NDArray[np.float64]],
) -> Rows:
    """A scan's first reconstruction against its report: both sides hold a scan once."""
    first = {scan: row for row, scan in reversed(list(enumerate(samples.scans))) if scan in texts}
    scans = sorted(first)
    if not scans:
        return []
    images = samples.latents[[first[scan] for scan in scans]]
    reports = np.stack([texts[scan] for scan in scans])
    rows = retrieval.retrieval_rows(images, reports, _labels_of(labels, scans))
    stamp = {
        "model_id": model.model_id, "dataset": evaluation.dataset, "split": evaluation.split,
        "fingerprint": evaluation.fingerprint,
    }  # fmt: skip
    return _stamped(stamp, rows)


def _stamped(stamp: dict[str, Any], rows: Sequence[Any]) -> Rows:
    return [stamp | dataclasses.asdict(row) for row in rows]


def _labels_of(labels: dict[str, NDArray[np.float64]], scans: Sequence[str]) -> NDArray[np.float64]:
    """(scans, abnormalities) in {0, 1}, nan where a scan has no label."""
    unknown = np.full(len(ABNORMALITIES), np.nan)
    return np.stack([labels.get(scan, unknown) for scan in scans])


def _load_samples(connection: duckdb.DuckDBPyConnection, model: ModelReference, dataset: str, split: str) -> Samples:
    table = connection.sql(
        "select volume_name, scan_id, patient_id, latent from evaluation_samples "
        "where model_id = $model_id and dataset = $dataset and split = $split order by volume_name",
        params={"model_id": model.latents_of, "dataset": dataset, "split": split},
    ).to_arrow_table()
    flat = table["latent"].combine_chunks().flatten().to_numpy()
    volumes, scans, patients = (table[name].to_pylist() for name in ("volume_name", "scan_id", "patient_id"))
    return Samples(volumes, scans, patients, flat.reshape(len(table), -1) if len(table) else flat.reshape(0, 1))


def _load_latents(
    connection: duckdb.DuckDBPyConnection, model: ModelReference, kind: str
) -> dict[str, NDArray[np.float32]]:
    table = connection.sql(
        "select item, latent from wanted_latents where model_id = $model_id and kind = $kind",
        params={"model_id": model.latents_of, "kind": kind},
    ).to_arrow_table()
    if not len(table):
        return {}
    latents = table["latent"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
    return dict(zip(table["item"].to_pylist(), latents, strict=True))


def _load_prompts(connection: duckdb.DuckDBPyConnection, model: ModelReference) -> NDArray[np.float32]:
    latents = _load_latents(connection, model, "prompt")
    missing = [name for name in ABNORMALITIES for side in ("present", "absent") if f"{side}:{name}" not in latents]
    if missing:
        raise MissingInputError(f"{model.model_id} has no latents of the prompts yet: run `ctclip embed`")
    return np.stack([np.stack([latents[f"present:{name}"], latents[f"absent:{name}"]]) for name in ABNORMALITIES])


def _load_labels(connection: duckdb.DuckDBPyConnection) -> dict[str, NDArray[np.float64]]:
    rows = connection.execute(
        "select scan_id, list(value order by list_position($names, abnormality)) from current_published_labels "
        f"where list_contains($names, abnormality) group by scan_id having count(*) = {len(ABNORMALITIES)}",
        {"names": list(ABNORMALITIES)},
    ).fetchall()
    return {scan: np.array(values, np.float64) for scan, values in rows}


# What an evaluation is computed from, as one hash a data set: any latent, label or exclusion that moves, moves it.
_INPUTS = """
with labelled as (select distinct scan_id, fingerprint from current_published_labels)
select
    samples.dataset,
    md5(string_agg(concat_ws('|', samples.volume_name, samples.fingerprint, labelled.fingerprint), ','
        order by samples.volume_name))
    || coalesce((select md5(string_agg(item || fingerprint, ',' order by kind, item)) from wanted_latents
        where model_id = $model_id and kind <> 'volume'), '')
from evaluation_samples as samples
left join labelled using (scan_id)
where samples.model_id = $model_id
group by samples.dataset
having bool_or(samples.split = $split)
order by samples.dataset
"""
