"""Which evaluations a model can have, and an evaluation's rows; the numbers come from `ctclip_model.evaluation`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
from numpy.typing import NDArray

from ctclip_model.config import VERSIONS, EvaluationConfig, compute_fingerprint
from ctclip_model.data.abnormalities import ABNORMALITIES, label_set
from ctclip_model.data.names import EXTERNAL
from ctclip_model.errors import MissingInputError
from ctclip_model.evaluation import metrics, retrieval, zero_shot
from ctclip_model.evaluation.curves import curves
from tasks.models.find import ModelReference
from tasks.run.fingerprints import VERSION, Fingerprint
from warehouse import store

Rows = list[dict[str, Any]]
Classifier = Callable[[NDArray[np.float32]], NDArray[np.float64]]  # latents (N, latent) to probabilities (N, 18)

PUBLISHED = "published"  # every reconstruction a row, excluded ones too, thresholds chosen on the labels they score
LABEL_SOURCE = "published"
THRESHOLD_SPLIT = "train"
UNDECIDED = "patients who are not decided"  # chose the thresholds, where no train split could
HELD_OUT = ("valid", EXTERNAL)
CONFIG = EvaluationConfig()


@dataclass(frozen=True)
class Evaluation:
    """One data set's split, scored in one way."""

    dataset: str
    split: str
    fingerprint: str
    protocol: str
    unit: str  # scan, its reconstructions averaged, or volume

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


def list_evaluations(
    data_root: Path, model: ModelReference, split: str | None = None, unit: str = "scan"
) -> dict[str, Evaluation]:
    """The evaluations that a model can have now, by key: of each data set that has embedded volumes of the split, or of
    any that is held out, one of the model's own protocol and one of the published.

    Raises `MissingInputError` if there is nothing to score.
    """
    with store.read(data_root) as connection:
        inputs = connection.execute(_INPUTS, {"model_id": model.encoder_id}).fetchall()
        texts = connection.execute(_TEXTS, {"model_id": model.encoder_id}).fetchall()
    splits = HELD_OUT if split is None else (split,)
    training = [(dataset, kept) for dataset, its_split, kept, *_ in inputs if its_split == THRESHOLD_SPLIT]
    head = [model.weights_sha256] if model.kind.facts.has_head else []  # latents alone do not tell its head
    settings = [VERSIONS["evaluate"], CONFIG, LABEL_SOURCE, ABNORMALITIES, texts, *head]
    found = []
    common = {
        "reports and prompts": texts, "head": head,
        "settings": compute_fingerprint(CONFIG, LABEL_SOURCE, ABNORMALITIES),
        VERSION: VERSIONS["evaluate"],
    }  # fmt: skip
    for dataset, its_split, kept, everything, kept_parts, all_parts in inputs:
        if its_split in splits:
            own = model.kind.facts.protocol
            assert own is not None, "a model that embeds volumes has a protocol"
            content = {PUBLISHED: everything, own: [kept, training]}
            parts = {PUBLISHED: all_parts, own: kept_parts | {"train split": training}}
            for protocol, its_unit in ((own, unit), (PUBLISHED, "volume")):
                fingerprint = Fingerprint(
                    compute_fingerprint(*settings, protocol, its_unit, content[protocol]), parts[protocol] | common
                )
                found.append(Evaluation(dataset, its_split, fingerprint, protocol, its_unit))
    if not found:
        wanted = " or ".join(map(repr, splits))
        raise MissingInputError(f"{model.encoder_id} has no latents of split {wanted} yet: run `ctclip embed`")
    return {one.key: one for one in found}


def score_evaluation(data_root: Path, model: ModelReference, evaluation: Evaluation) -> dict[str, Rows]:
    """Every row of an evaluation, by table."""
    with store.read(data_root) as connection:
        samples = _load_samples(connection, model, evaluation)
        predict = _load_classifier(connection, model)
        labels = load_labels(connection)
        texts = {} if model.kind.facts.has_head else _load_latents(connection, model, "report")
        train = _load_train(connection, model, evaluation)
    items, scored = _score_items(evaluation, samples, predict, labels, train)
    stamp = {"model_id": model.model_id} | evaluation.columns
    labelled = stamp | {"label_source": LABEL_SOURCE}
    return {
        "predictions": [
            stamp | {"item": item, "abnormality": name, "probability": float(scored.probabilities[row, column])}
            for row, item in enumerate(items)
            for column, name in enumerate(scored.names)
        ],
        "metrics": _stamped(labelled, metrics.score(scored, CONFIG)),
        "curves": _stamped(labelled, curves(scored.labels, scored.probabilities, scored.names)),
        "retrieval": _stamped(stamp, _retrieval_rows(evaluation, samples, texts, labels)),
        "projections": _projection_rows(stamp, samples) if _has_projections(model, evaluation) else [],
    }


def _score_items(
    evaluation: Evaluation,
    samples: Samples,
    predict: Classifier,
    labels: dict[str, NDArray[np.float64]],
    train: tuple[str, Samples] | None,
) -> tuple[list[str], metrics.Scored]:
    """The items of an evaluation and what is to be scored of them, thresholds included.

    Thresholds come from the train split; where none is embedded, or it is what is scored, from patients whose
    decisions are then not scored.
    """
    wanted = label_set(evaluation.dataset)

    def of(samples: Samples, unit: str) -> tuple[list[str], list[str], NDArray[Any], NDArray[Any]]:
        if unit == "scan":
            items, probabilities = zero_shot.by_scan(samples.volumes, samples.scans, predict(samples.latents))
            scans, patient_of = items, dict(zip(samples.scans, samples.patients, strict=True))
            patients = [patient_of[scan] for scan in scans]
        else:
            items, scans, patients = samples.volumes, samples.scans, samples.patients
            probabilities = predict(samples.latents)
        return items, patients, wanted.merge(labels_of(labels, scans)), wanted.merge(probabilities)

    items, patients, truth, probabilities = of(samples, evaluation.unit)
    is_decided = None
    if evaluation.protocol == PUBLISHED:
        thresholds, source = metrics.choose_thresholds(truth, probabilities), "the labels that are scored"
    elif train is not None:
        dataset, others = train
        _, _, train_truth, train_probabilities = of(others, evaluation.unit)
        thresholds, source = metrics.choose_thresholds(train_truth, train_probabilities), f"{dataset} {THRESHOLD_SPLIT}"
    else:
        choosers = metrics.draw_choosers(patients, CONFIG)
        thresholds = metrics.choose_thresholds(truth[choosers], probabilities[choosers])
        is_decided, source = ~choosers, f"{evaluation.dataset} {evaluation.split}, {UNDECIDED}"
    return items, metrics.Scored(wanted.names, truth, probabilities, thresholds, source, patients, is_decided)


def _retrieval_rows(
    evaluation: Evaluation,
    samples: Samples,
    texts: dict[str, NDArray[np.float32]],
    labels: dict[str, NDArray[np.float64]],
) -> list[retrieval.RetrievalRow]:
    """Volumes against reports: by scan the mean latent of its reconstructions, else each of them."""
    names, latents = (samples.scans, samples.latents) if evaluation.unit == "volume" else _scan_latents(samples)
    kept = [row for row, scan in enumerate(names) if scan in texts]
    if not kept:
        return []
    scans = [names[row] for row in kept]
    reports = np.stack([texts[scan] for scan in scans])
    return retrieval.retrieval_rows(
        latents[kept], reports, labels_of(labels, scans), leave_query_out=evaluation.protocol != PUBLISHED
    )


def _scan_latents(samples: Samples) -> tuple[list[str], NDArray[np.float32]]:
    """Scans, and the unit mean (scans, latent) of their reconstructions' latents."""
    scans, means = zero_shot.by_scan(samples.volumes, samples.scans, samples.latents)
    unit = means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return scans, unit.astype(np.float32)


def _has_projections(model: ModelReference, evaluation: Evaluation) -> bool:
    """True for a model's own protocol, unless its latents are its parent's."""
    return evaluation.protocol != PUBLISHED and not model.kind.facts.has_head


def _projection_rows(stamp: dict[str, Any], samples: Samples) -> Rows:
    from ctclip_model.evaluation.projection import draw_items, project

    scans, latents = _scan_latents(samples)
    drawn = draw_items(len(scans), CONFIG)
    points = project(latents[drawn], CONFIG)
    return [
        stamp | {"item": scans[row], "x": float(x), "y": float(y), "count_items": len(drawn), "count_all": len(scans)}
        for row, (x, y) in zip(drawn[: len(points)], points, strict=True)
    ]


def _load_classifier(connection: duckdb.DuckDBPyConnection, model: ModelReference) -> Classifier:
    """How the model makes probabilities of latents: LiPro by its head, the others by the prompts."""
    if model.kind.facts.has_head:
        from ctclip_model.models.checkpoint import load_head

        return load_head(model.folder).probabilities
    prompts = _load_prompts(connection, model)
    return lambda latents: zero_shot.zero_shot(latents, prompts, model.logit_scale)


def _stamped(stamp: dict[str, Any], rows: Sequence[Any]) -> Rows:
    return [stamp | dataclasses.asdict(row) for row in rows]


def labels_of(labels: dict[str, NDArray[np.float64]], scans: Sequence[str]) -> NDArray[np.float64]:
    """(scans, abnormalities) in {0, 1}, nan where a scan has no label."""
    unknown = np.full(len(ABNORMALITIES), np.nan)
    return np.stack([labels.get(scan, unknown) for scan in scans])


def _load_train(
    connection: duckdb.DuckDBPyConnection, model: ModelReference, evaluation: Evaluation
) -> tuple[str, Samples] | None:
    """The samples that thresholds are chosen on and their data set, the scored one's own where it has such."""
    if evaluation.split == THRESHOLD_SPLIT or evaluation.protocol == PUBLISHED:
        return None
    rows = connection.execute(
        "select dataset from evaluation_samples where model_id = ? and split = ? "
        "order by dataset <> ?, dataset limit 1",
        [model.encoder_id, THRESHOLD_SPLIT, evaluation.dataset],
    ).fetchall()
    if not rows:
        return None
    training = dataclasses.replace(evaluation, dataset=rows[0][0], split=THRESHOLD_SPLIT)
    return rows[0][0], _load_samples(connection, model, training)


def _load_samples(connection: duckdb.DuckDBPyConnection, model: ModelReference, evaluation: Evaluation) -> Samples:
    view = "embedded_samples" if evaluation.protocol == PUBLISHED else "evaluation_samples"
    table = connection.sql(
        f"select volume_name, scan_id, patient_id, latent from {view} "
        "where model_id = $model_id and dataset = $dataset and split = $split order by volume_name",
        params={"model_id": model.encoder_id, "dataset": evaluation.dataset, "split": evaluation.split},
    ).to_arrow_table()
    flat = table["latent"].combine_chunks().flatten().to_numpy()
    volumes, scans, patients = (table[name].to_pylist() for name in ("volume_name", "scan_id", "patient_id"))
    return Samples(volumes, scans, patients, flat.reshape(len(table), -1) if len(table) else flat.reshape(0, 1))


def _load_latents(
    connection: duckdb.DuckDBPyConnection, model: ModelReference, kind: str
) -> dict[str, NDArray[np.float32]]:
    table = connection.sql(
        "select item, latent from wanted_latents where model_id = $model_id and kind = $kind",
        params={"model_id": model.encoder_id, "kind": kind},
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


def load_labels(connection: duckdb.DuckDBPyConnection) -> dict[str, NDArray[np.float64]]:
    """(18,) of each scan that has a published label, nan where one is unknown."""
    rows = connection.execute(
        "select scan_id, map(list(abnormality), list(value)) from current_published_labels group by scan_id"
    ).fetchall()
    return {
        scan: np.array([np.nan if (value := by_name.get(name)) is None else value for name in ABNORMALITIES], float)
        for scan, by_name in rows
    }


# What evaluations are computed from, as a hash for each split, without what is excluded and with it: any latent, label
# or exclusion that moves, moves it.
_INPUTS = """
with labelled as (select distinct scan_id, fingerprint from current_published_labels)
select
    dataset, split,
    coalesce(md5(string_agg(concat_ws('|', volume_name, samples.fingerprint, labelled.fingerprint), ','
        order by volume_name) filter (not is_excluded)), ''),
    md5(string_agg(concat_ws('|', volume_name, samples.fingerprint, labelled.fingerprint), ',' order by volume_name)),
    {
        latents: md5(string_agg(volume_name || samples.fingerprint, ',' order by volume_name) filter (not is_excluded)),
        labels: md5(string_agg(volume_name || labelled.fingerprint, ',' order by volume_name) filter (not is_excluded))
    },
    {
        latents: md5(string_agg(volume_name || samples.fingerprint, ',' order by volume_name)),
        labels: md5(string_agg(volume_name || labelled.fingerprint, ',' order by volume_name))
    }
from embedded_samples as samples
left join labelled using (scan_id)
where model_id = $model_id
group by dataset, split
having count(*) filter (not is_excluded) > 0
order by dataset, split
"""
_TEXTS = """
select coalesce(md5(string_agg(item || fingerprint, ',' order by kind, item)), '')
from wanted_latents
where model_id = $model_id and kind <> 'volume'
"""
