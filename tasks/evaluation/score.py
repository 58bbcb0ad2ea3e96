"""Rows of an evaluation, computed by `ctclip_model`: predictions, metrics, curves, decisions, retrieval, a map."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
from numpy.typing import NDArray

from ctclip_model.data.abnormalities import ScoredNames
from ctclip_model.errors import ConfigurationError, MissingInputError
from ctclip_model.evaluation import metrics, retrieval, zero_shot
from ctclip_model.evaluation.curves import curves
from ctclip_model.evaluation.fit_decisions import fit_rules
from ctclip_model.evaluation.protocols import PUBLISHED
from tasks.evaluation.evaluations import CONFIG, HELD_OUT, THRESHOLD_SPLIT, Evaluation, choose_names
from tasks.evaluation.samples import (
    Labels,
    Latents,
    Samples,
    load_labels,
    load_latents,
    load_prompts,
    load_samples,
    load_texts,
    load_threshold_samples,
    stack_labels,
)
from tasks.labels.label_sources import LabelSource
from tasks.models.find import ModelReference
from warehouse import store

Rows = list[dict[str, Any]]
Classifier = Callable[[NDArray[np.float32]], NDArray[np.float64]]  # latents (N, latent) -> probabilities (N, 18)

UNDECIDED = (
    "patients who are not decided"  # end of a threshold source: those that chose the thresholds are not scored by them
)


@dataclass(frozen=True)
class Predictions:
    """Probabilities of a split beside its labels, in rows of scans or of volumes."""

    items: list[str]
    patients: list[str]
    labels: NDArray[np.floating]  # (items, labels of the data set), nan for an unknown label
    probabilities: NDArray[np.floating]  # (items, labels of the data set)


def score_evaluation(data_root: Path, model: ModelReference, evaluation: Evaluation) -> dict[str, Rows]:
    """Scores an evaluation and returns all of its rows, as {table: rows}."""
    with store.read(data_root) as connection:
        samples = load_samples(connection, model, evaluation)
        predict = _load_classifier(connection, model, evaluation.source)
        labels = load_labels(connection, evaluation.source)
        is_default = evaluation.source.is_default
        reports = load_latents(connection, model, "report") if model.reads_texts and is_default else {}
        texts = load_texts(connection, reports)
        train = load_threshold_samples(connection, model, evaluation)
    is_projected = is_default and evaluation.is_own and not model.kind.facts.has_head  # labels change nothing
    common = {"model_id": model.model_id} | evaluation.columns
    unlabelled = {name: value for name, value in common.items() if name != "label_set"}
    labelled = common | {"label_source": evaluation.source.name}
    found = _score_retrieval(evaluation, samples, reports, texts, labels)
    if evaluation.is_retrieval:
        if not found:
            raise MissingInputError(f"{model.model_id} has no latents of reports yet: run `ctclip embed`")
        return {"retrieval": _make_rows(unlabelled, found)}
    items, scored = _score_items(evaluation, samples, predict, labels, train)
    return {
        "predictions": [
            common | {"item": item, "abnormality": name, "probability": float(scored.probabilities[row, column])}
            for row, item in enumerate(items)
            for column, name in enumerate(scored.names)
        ],
        "metrics": _make_rows(labelled, metrics.score(scored, CONFIG)),
        "curves": _make_rows(labelled, curves(scored.labels, scored.probabilities, scored.names)),
        "retrieval": _make_rows(unlabelled, found),
        "projections": _project_scans(unlabelled, samples) if is_projected else [],
        "decisions": _fit_decisions(model, evaluation, samples, predict, labels),
    }


def _load_classifier(connection: duckdb.DuckDBPyConnection, model: ModelReference, source: LabelSource) -> Classifier:
    """Classifier of a model's latents: a LiPro's trained head, or the prompts of any other model.

    It raises `CheckpointError` for probabilities that are not numbers.
    """
    if model.kind.facts.has_head:
        from ctclip_model.models.model_folder import load_head, read_label_set_of

        learned = read_label_set_of(model.folder)
        if source.label_set != learned:
            raise ConfigurationError(
                f"{model.model_id} is a LiPro of {learned.name} as it was learned: score {source.label_set.name} of "
                f"{source.name!r} with the model that it was made of"
            )

        answer: Classifier = load_head(model.folder).probabilities
    else:
        assert model.logit_scale is not None, "a model that is scored by prompts has a text side"
        answer = partial(
            zero_shot.zero_shot,
            prompt_latents=load_prompts(connection, model, source.label_set),
            logit_scale=model.logit_scale,
        )

    def classify(latents: NDArray[np.float32]) -> NDArray[np.float64]:
        probabilities = answer(latents)
        metrics.require_probabilities(probabilities, model.model_id)
        return probabilities

    return classify


def _score_items(
    evaluation: Evaluation, samples: Samples, predict: Classifier, labels: Labels, train: tuple[str, Samples] | None
) -> tuple[list[str], metrics.Scored]:
    """Items of an evaluation, and their labels, probabilities and thresholds.

    Thresholds come from one of three sources:

    - Published protocol: the labels that are scored.
    - Any other, with latents of a train split: the train split.
    - Any other, without: a part of the scored patients, whose decisions are then not scored.
    """
    names = choose_names(evaluation.dataset, evaluation.source.label_set)
    scored = _predict(samples, evaluation.unit, predict, labels, names)
    is_decided = None
    if evaluation.protocol == PUBLISHED:
        source = "the labels that are scored"
        thresholds = metrics.choose_thresholds(scored.labels, scored.probabilities, grid=metrics.PUBLISHED_THRESHOLDS)
    elif train is not None:
        dataset, train_samples = train
        source = f"{dataset} {THRESHOLD_SPLIT}"
        choosing = _predict(train_samples, evaluation.unit, predict, labels, names)
        thresholds = metrics.choose_thresholds(choosing.labels, choosing.probabilities)
    else:
        source = f"{evaluation.dataset} {evaluation.split}, {UNDECIDED}"
        choosers = metrics.draw_choosers(scored.patients, CONFIG)
        thresholds = metrics.choose_thresholds(scored.labels[choosers], scored.probabilities[choosers])
        is_decided = ~choosers
    return scored.items, metrics.Scored(
        names.names, scored.labels, scored.probabilities, thresholds, source, scored.patients, is_decided
    )


def _predict(samples: Samples, unit: str, predict: Classifier, labels: Labels, names: ScoredNames) -> Predictions:
    """Predictions of the samples: a row per volume, or a row per scan with the mean of its volumes' probabilities."""
    items, scans, patients = samples.volumes, samples.scans, samples.patients
    probabilities = predict(samples.latents)  # (volumes, 18)
    if unit == "scan":
        items, probabilities = zero_shot.by_scan(samples.volumes, samples.scans, probabilities)
        patient_of_scan = dict(zip(samples.scans, samples.patients, strict=True))
        scans, patients = items, [patient_of_scan[scan] for scan in items]
    return Predictions(
        items, patients, names.merge(stack_labels(labels, scans, probabilities.shape[1])), names.merge(probabilities)
    )


def _fit_decisions(
    model: ModelReference, evaluation: Evaluation, samples: Samples, predict: Classifier, labels: Labels
) -> Rows:
    """Rules for decisions on single volumes, by the model's own protocol on patients who did not train it."""
    if not evaluation.is_own or evaluation.split not in HELD_OUT:
        return []
    names = choose_names(evaluation.dataset, evaluation.source.label_set)
    found = _predict(samples, "volume", predict, labels, names)
    rules = fit_rules(names.names, found.labels, found.probabilities, found.patients, CONFIG)
    common = {
        "model_id": model.model_id,
        "weights_sha256": model.weights_sha256,
        "label_source": evaluation.source.name,
    }
    return _make_rows(common | evaluation.columns | {"unit": "volume"}, rules)


def _score_retrieval(
    evaluation: Evaluation, samples: Samples, reports: Latents, texts: Mapping[str, str], labels: Labels
) -> list[retrieval.RetrievalRow]:
    """Retrieval between volumes and reports. In units of scans, a scan's latent is the mean of its reconstructions.

    Reports of one text count as one, except by the published protocol.
    """
    is_published = evaluation.protocol == PUBLISHED
    scans, latents = (samples.scans, samples.latents) if evaluation.unit == "volume" else _average_scans(samples)
    rows = [row for row, scan in enumerate(scans) if scan in reports]
    if not rows:
        return []
    scans = [scans[row] for row in rows]
    return retrieval.retrieval_rows(
        latents[rows], np.stack([reports[scan] for scan in scans]), stack_labels(labels, scans),
        texts=None if is_published else [texts[scan] for scan in scans], leave_query_out=not is_published,
    )  # fmt: skip


def _average_scans(samples: Samples) -> tuple[list[str], NDArray[np.float32]]:
    """Scans, and the normalised mean (scans, latent) of their reconstructions' latents."""
    scans, means = zero_shot.by_scan(samples.volumes, samples.scans, samples.latents)
    unit = means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return scans, unit.astype(np.float32)


def _project_scans(common: dict[str, Any], samples: Samples) -> Rows:
    """Points of the scans on a plane, as rows of `projections`."""
    from ctclip_model.evaluation.projection import draw_items, project

    scans, latents = _average_scans(samples)
    drawn = draw_items(len(scans), CONFIG)
    points = project(latents[drawn], CONFIG)
    return [
        common | {"item": scans[row], "x": float(x), "y": float(y), "count_items": len(drawn), "count_all": len(scans)}
        for row, (x, y) in zip(drawn[: len(points)], points, strict=True)
    ]


def _make_rows(common: dict[str, Any], rows: Sequence[Any]) -> Rows:
    return [common | dataclasses.asdict(row) for row in rows]
