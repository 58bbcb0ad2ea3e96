"""Scores a labeller on a file of hand labels, without the reports that trained it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctclip_model.config import VERSIONS, EvaluationConfig, compute_fingerprint
from ctclip_model.data.abnormalities import ABNORMALITIES
from ctclip_model.data.names import EXTERNAL
from ctclip_model.data.reports import report_sha256
from ctclip_model.device import Precision, choose_device
from ctclip_model.errors import ConfigurationError, EndpointUnavailableError
from ctclip_model.labelling.questions import Questionnaire
from tasks.labels.answers import THRESHOLD, read_answers
from tasks.labels.endpoint_address import Endpoint
from tasks.labels.hand_labels import read_hand_labels
from tasks.labels.label import read_reports
from tasks.labels.labellers import LabellerReference, read_trained_on, reading_version
from tasks.labels.reports import LabelledReports
from tasks.run.pending import plan_items
from tasks.run.publish import publish
from tasks.run.stage_run import StageRun
from tasks.settings import HAND
from warehouse import store

CONFIG = EvaluationConfig()
SCORED = {"dataset": "hand-labels", "split": EXTERNAL, "protocol": "labeller", "unit": "report"}


@dataclass(frozen=True)
class HandScoring:
    """Reports that score a labeller. None of them trained it."""

    reports: LabelledReports
    fingerprint: str


def record_trained_on(run: StageRun, labeller_id: str, path: Path) -> None:
    """Records the training reports of an imported labeller from a file of them, and keeps those recorded before."""
    columns = ("model_id", "sample_id", "fingerprint", "split")
    rows = store.query(
        run.data_root, f"select {', '.join(columns)} from current_model_samples where model_id = ?", [labeller_id]
    )
    known = [dict(zip(columns, row, strict=True)) for row in rows]
    new = read_hand_labels(path).without({row["fingerprint"] for row in known}).sample_rows(labeller_id)
    if new:
        by_name = {row["sample_id"]: row for row in (*known, *new)}
        run.record("model_samples", list(by_name.values()))
        publish(run.data_root)


def plan_scoring(
    run: StageRun, labeller_id: str, path: Path, dtype: Precision, *, force: bool, is_trained_here: bool = True
) -> HandScoring | None:
    """Plans the scoring. None: neither the labeller nor a report or label of the file has changed.

    A general language model (`is_trained_here` false) is scored on every report, unless --trained-on names some.
    Raises `ConfigurationError` if the labeller's training reports are unknown, or the file holds no other report.
    """
    trained_on = read_trained_on(run.data_root, labeller_id)
    if trained_on is None and not is_trained_here:
        trained_on = frozenset()
    if trained_on is None:
        raise ConfigurationError(
            f"the reports that trained {labeller_id} are not recorded, and must not score it: give them as a file with "
            "--trained-on"
        )
    everything = read_hand_labels(path)
    _record_hand_labels(run, everything, path)
    reports = everything.without(trained_on)
    if not reports.texts:
        raise ConfigurationError(f"--hand-labels {path}: every report of the file trained {labeller_id}")
    fingerprint = compute_fingerprint(
        labeller_id, reading_version(run.data_root, labeller_id), VERSIONS["evaluate"], CONFIG, reports.scans,
        reports.texts, reports.labels.tolist(), *dtype.fingerprint_parts,
    )  # fmt: skip
    key = "/".join(SCORED.values())
    return HandScoring(reports, fingerprint) if plan_items(run, labeller_id, {key: fingerprint}, force=force) else None


def score_labeller(
    run: StageRun, reference: LabellerReference, scoring: HandScoring, device: str, dtype: Precision
) -> None:
    """Labels the reports and records the predictions and, at the labeller's own thresholds, the metrics."""
    from ctclip_model.evaluation.metrics import require_probabilities  # imported late: no plan needs SciPy
    from ctclip_model.labelling.labeller import load_labeller

    labeller = load_labeller(reference.folder, device=str(choose_device(device)))
    probabilities = labeller.label(scoring.reports.texts, dtype=dtype.autocast).astype(float)
    require_probabilities(probabilities, reference.labeller_id)
    _record_scores(run, reference.labeller_id, scoring, scoring.reports, probabilities, labeller.thresholds)


def score_answers(
    run: StageRun, questionnaire: Questionnaire, scoring: HandScoring, endpoint: Endpoint, **client_options: Any
) -> None:
    """The same for a language model. Reports without a valid answer are left out, and counted in the run's detail."""
    texts = {report: (text, "") for report, text in zip(scoring.reports.scans, scoring.reports.texts, strict=True)}
    answers = read_answers(run, questionnaire, texts, endpoint, **client_options)
    if not answers:
        raise EndpointUnavailableError(f"{endpoint.url} gives no valid answer to any of {len(texts)} reports")
    reports = scoring.reports.choose(answers)
    values = np.array([answers[report] for report in reports.scans], float)
    thresholds = np.full(len(questionnaire.findings), THRESHOLD)
    _record_scores(run, questionnaire.labeller_id, scoring, reports, values, thresholds)
    run.detail = f"{len(texts) - len(answers)} reports without a valid answer" if len(answers) < len(texts) else ""


def _record_scores(
    run: StageRun, labeller_id: str, scoring: HandScoring, reports: LabelledReports, probabilities: NDArray[np.float64],
    thresholds: NDArray[np.float64],
) -> None:  # fmt: skip
    """Records predictions and metrics. For intervals a text counts as one patient: copies of a report stay together."""
    from ctclip_model.evaluation.metrics import Scored, score  # imported late: no plan needs SciPy

    scored = Scored(
        ABNORMALITIES, reports.labels.astype(float), probabilities, thresholds, "the labeller's own",
        [report_sha256(text) for text in reports.texts],
    )  # fmt: skip
    stamp: dict[str, Any] = {"model_id": labeller_id, "fingerprint": scoring.fingerprint} | SCORED
    run.record(
        "predictions",
        [
            stamp | {"item": report, "abnormality": name, "probability": float(value)}
            for report, row in zip(reports.scans, probabilities, strict=True)
            for name, value in zip(ABNORMALITIES, row, strict=True)
        ],
    )
    rows = score(scored, CONFIG)
    run.record("metrics", [stamp | {"label_source": HAND} | dataclasses.asdict(row) for row in rows])
    run.count_done += 1


def _record_hand_labels(run: StageRun, reports: LabelledReports, path: Path) -> None:
    """Records the new and changed hand labels, each with the scan whose report has the same text, if any."""
    scans = {report_sha256(text): scan for scan, text in reversed(read_reports(run.data_root).items())}
    known = set(store.query(run.data_root, "select report_id, fingerprint from current_hand_labels"))
    rows = []
    for report_id, text, values in zip(reports.scans, reports.texts, reports.labels.tolist(), strict=True):
        sha256 = report_sha256(text)
        row = {
            "report_id": report_id, "text_sha256": sha256, "scan_id": scans.get(sha256),
            "fingerprint": compute_fingerprint(sha256, scans.get(sha256), values), "source": path.name,
        }  # fmt: skip
        if (report_id, row["fingerprint"]) not in known:
            rows += [
                row | {"abnormality": name, "value": value} for name, value in zip(ABNORMALITIES, values, strict=True)
            ]
    if rows:
        run.record("hand_labels", rows)
