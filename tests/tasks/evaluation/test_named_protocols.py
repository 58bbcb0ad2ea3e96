"""Named protocols of the literature: their items are scored, kept up, and stand beside equals."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from support.records import label_rows, report_row, volume_row, write_embedding, write_run

from ctclip_model.config import EvaluationConfig
from ctclip_model.data.abnormalities import ABNORMALITIES
from ctclip_model.errors import ConfigurationError
from ctclip_model.evaluation.protocols import NAMED_PROTOCOLS, ON_REQUEST
from ctclip_model.evaluation.zero_shot import zero_shot
from ctclip_model.models.kinds import ModelKind
from flows.evaluate import plan_evaluation
from tasks.evaluation import score as score_module
from tasks.evaluation.evaluations import list_asked_protocols, list_evaluations
from tasks.evaluation.score import score_evaluation
from tasks.labels.label_sources import DEFAULT_SOURCE
from tasks.models.find import ModelReference
from tasks.report import subgroups
from tasks.report.facts import collect_facts
from tasks.run.stage_run import open_run
from warehouse import store
from warehouse.store import load_query, query

MODEL = ModelReference("m", ModelKind.ct_clip, "tiny", Path(), "r", 5.0, "f", "w", "m")
RNG = np.random.default_rng(3)
SCANS = [f"valid_{number}_a" for number in range(1, 26)]
VOLUMES = [f"{scan}_{number}" for scan in SCANS for number in (1, 2)]
EXCLUDED = [VOLUMES[0], VOLUMES[2], VOLUMES[3]]  # one reconstruction of a scan, and a scan as a whole


def unit(latents: np.ndarray) -> np.ndarray:
    return (latents / np.linalg.norm(latents, axis=-1, keepdims=True)).astype(np.float32)


REPORTS = unit(RNG.standard_normal((len(SCANS), 8)))
LATENTS = unit(np.stack([REPORTS[SCANS.index(name[:-2])] for name in VOLUMES]) + RNG.normal(0, 0.3, (len(VOLUMES), 8)))
PROMPTS = unit(RNG.standard_normal((18, 2, 8)))
LABELS = (RNG.random((len(SCANS), 18)) < 0.5).astype(int)


@pytest.fixture
def data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Scans of CT-RATE's validation split with two reconstructions. The first five have the same Findings."""
    monkeypatch.setattr(
        score_module, "CONFIG", EvaluationConfig(noise_draws=20, jackknife_groups=5, projection_steps=250)
    )
    root = tmp_path / "data"
    write_run(
        root, 0, "ingest", sources=[{"source": "ct-rate:/x", "kind": "ct-rate", "fingerprint": "f"}],
        volumes=[volume_row(name, patient_sex="FM"[index % 4 // 2]) for index, name in enumerate(VOLUMES)],
        reports=[
            report_row(scan, "A nodule." if row < 5 else "", source="ct-rate:/x") for row, scan in enumerate(SCANS)
        ],
        exclusions=[{"volume_name": name, "reason": "no_chest"} for name in EXCLUDED],
        published_labels=[row | {"fingerprint": "f"} for row in label_rows(SCANS, LABELS)],
    )  # fmt: skip
    items = {("volume", name): latent for name, latent in zip(VOLUMES, LATENTS, strict=True)}
    items |= {("report", scan): latent for scan, latent in zip(SCANS, REPORTS, strict=True)}
    items |= {
        ("prompt", f"{side}:{name}"): PROMPTS[row, column]
        for row, name in enumerate(ABNORMALITIES) for column, side in enumerate(("present", "absent"))
    }  # fmt: skip
    model = {"model_id": "m", "kind": "ct-clip", "preset": "tiny", "fingerprint": "f", "weights_sha256": "w"}
    write_run(root, 1, "train", models=[model])
    write_embedding(root, 2, items)
    with open_run(root, "embed", "m"):
        pass  # publishes
    return root


def evaluate(data_root: Path, *protocols: str) -> list[str]:
    """Scores and publishes what is pending, and returns its keys."""
    with open_run(data_root, "evaluate", "m") as run:
        pending = plan_evaluation(run, MODEL, None, "scan", False, DEFAULT_SOURCE, protocols)
        for evaluation in pending:
            for table, rows in score_evaluation(data_root, MODEL, evaluation).items():
                run.record(table, rows)
    return [evaluation.key for evaluation in pending]


def macro_of(volumes: list[str], by_scan: bool) -> float:
    """Macro AUROC of volumes, or of the means of the scans' volumes, computed plainly."""
    rows = [VOLUMES.index(name) for name in volumes]
    probabilities = zero_shot(LATENTS[rows], PROMPTS, MODEL.logit_scale)
    scans = [name[:-2] for name in volumes]
    if by_scan:
        found = sorted(set(scans))
        probabilities = np.stack([probabilities[[one == scan for one in scans]].mean(axis=0) for scan in found])
        scans = found
    labels = LABELS[[SCANS.index(scan) for scan in scans]]
    return float(np.mean([roc_auc_score(labels[:, column], probabilities[:, column]) for column in range(18)]))


def test_each_protocol_scores_its_items(data_root):
    keys = {f"ct-rate/valid/{name}/{NAMED_PROTOCOLS[name].unit}" for name in ON_REQUEST}
    assert set(evaluate(data_root, *ON_REQUEST)) == keys | {
        "ct-rate/valid/zero-shot/scan",
        "ct-rate/valid/published/volume",
    }
    kept = [name for name in VOLUMES if name not in EXCLUDED]
    sql = "select protocol, value, n from current_metrics where metric = 'auroc' and abnormality = 'macro' order by all"
    assert query(data_root, sql) == [
        ("published", pytest.approx(macro_of(VOLUMES, False)), 50),
        ("scans-1551", pytest.approx(macro_of(kept, True)), 24),
        ("scans-1564", pytest.approx(macro_of(VOLUMES, True)), 25),
        ("volumes-3002", pytest.approx(macro_of(kept, False)), 47),
        ("zero-shot", pytest.approx(macro_of(kept, True)), 24),
    ]  # fmt: skip
    cohorts = "select protocol, cohort from model_leaderboard where not is_published"
    assert dict(query(data_root, cohorts)) == {
        "published": "volumes-50", "scans-1551": "scans-24", "scans-1564": "scans-25", "volumes-3002": "volumes-47",
        "zero-shot": "scans-24",
    }  # fmt: skip


def test_pairs_are_scored_by_retrieval_alone(data_root):
    evaluate(data_root, "pairs-1493")
    pairs = query(data_root, "select volume_name, scan_id from protocol_volumes where protocol = 'pairs-1493'")
    similar = REPORTS[[SCANS.index(scan) for _, scan in pairs]] @ LATENTS[[VOLUMES.index(name) for name, _ in pairs]].T
    ranks = (similar > similar.diagonal()[:, None]).sum(axis=1)
    assert 15 < len(pairs) < 25
    for tables in ("current_metrics", "current_predictions", "current_curves"):
        assert not query(data_root, f"from {tables} where protocol = 'pairs-1493'")
    board = query(
        data_root, "select cohort, recall_at_5, recall_at_10, n from retrieval_leaderboard "
        "where protocol = 'pairs-1493' and task = 'report_to_volume'",
    )  # fmt: skip
    assert board == [
        (f"pairs-{len(pairs)}", pytest.approx((ranks < 5).mean()), pytest.approx((ranks < 10).mean()), len(pairs))
    ]


def test_what_was_asked_for_once_is_kept_up(data_root):
    assert len(evaluate(data_root)) == 2
    assert list_asked_protocols(data_root, MODEL) == []
    assert evaluate(data_root, "pairs-1493", "scans-1564") == [
        "ct-rate/valid/pairs-1493/volume", "ct-rate/valid/scans-1564/scan",
    ]  # fmt: skip
    assert evaluate(data_root) == []  # retrieval alone counts as done
    assert list_asked_protocols(data_root, MODEL) == ["pairs-1493", "scans-1564"]
    name = EXCLUDED[0]  # a part of scans-1564, and of no other on request
    write_embedding(data_root, 5, {("volume", name): LATENTS[7]}, fingerprint="new")
    with open_run(data_root, "embed", "m"):
        pass  # publishes
    assert evaluate(data_root) == ["ct-rate/valid/published/volume", "ct-rate/valid/scans-1564/scan"]


def test_page_shows_the_models_own_protocol_alone(data_root, monkeypatch):
    monkeypatch.setattr(subgroups, "MIN_PATIENTS", 5)

    def read_page() -> dict[str, str]:
        with store.read(data_root) as connection:
            facts = collect_facts(connection, data_root, MODEL, "ct-rate", "valid")
        shown = ("headline", "leaderboard", "labels", "curves", "retrieval", "subgroups", "operating_points")
        texts = {name: repr(getattr(facts, name)) for name in shown}  # averages differ in their last digit
        return {name: re.sub(r"\d+\.\d+", lambda found: f"{float(found[0]):.9f}", text) for name, text in texts.items()}

    evaluate(data_root)
    before = read_page()
    evaluate(data_root, *ON_REQUEST)
    assert read_page() == before


def test_unknown_protocols_are_refused_and_reports_need_a_reader(data_root):
    with pytest.raises(ConfigurationError, match=r"no protocol 'scans-1': choose from published, scans-1564"):
        list_evaluations(data_root, MODEL, protocols=["scans-1"])
    lipro = ModelReference("p", ModelKind.lipro, "tiny", Path(), "r", 5.0, "f", "w", "m")
    found = list_evaluations(data_root, lipro, protocols=["pairs-1493", "scans-1564"])
    assert [one.protocol for one in found.values()] == ["lipro", "published", "scans-1564"]


def test_saved_queries_take_no_scan_twice(data_root):
    """They name the protocols in units of scans, since a file of an older version has no list of them."""
    evaluate(data_root, *ON_REQUEST)
    named = {name for name, one in NAMED_PROTOCOLS.items() if one.unit == "scan"}
    found = [load_query(name) for name in ("best_model_by_label", "worst_false_negatives")]
    assert all(f"'{name}'" in sql for sql in found for name in named)
    rows = query(data_root, load_query("worst_false_negatives"), {"model_id": "m", "count": "1000"})
    assert len({(row[3], row[4]) for row in rows}) == len(rows) > 100
