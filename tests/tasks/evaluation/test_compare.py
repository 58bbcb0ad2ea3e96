"""Comparisons: each pair of models once, on the scans that both predicted, and again after a new score."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from support.records import label_rows, write_run

from ctclip_model.config import EvaluationConfig
from ctclip_model.data.abnormalities import ABNORMALITIES
from ctclip_model.data.label_sets import Finding, LabelSet
from ctclip_model.errors import ConfigurationError
from ctclip_model.evaluation import metrics
from ctclip_model.models.kinds import ModelKind
from tasks.evaluation import compare as compare_module
from tasks.evaluation.compare import score_comparison
from tasks.evaluation.comparisons import list_comparisons
from tasks.evaluation.score import UNDECIDED
from tasks.labels.import_labels import import_labels
from tasks.labels.label_sources import DEFAULT_SOURCE
from tasks.models.find import ModelReference
from tasks.report.render import render_page
from tasks.run.pending import plan_items
from tasks.run.stage_run import open_run
from warehouse import store
from warehouse.store import query

SCANS = [f"valid_{number // 2 + 1}_{'ab'[number % 2]}" for number in range(60)]  # two scans per patient
TRUTH = (np.random.default_rng(0).random((60, 18)) < 0.4).astype(float)
STENT = LabelSet("screening", (Finding("Stent", "A stent.", "No stent."),))
OTHER = LabelSet("screening", (Finding("Rib fracture", "A fracture.", "No fracture."),))
KINDS = {"base": "zero-shot", "tuned": "vocabfine", "probe": "lipro"}


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare_module, "CONFIG", EvaluationConfig(noise_draws=50, jackknife_groups=5))


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three scored models in the order of their training. The last one did not predict the last patient's scans."""
    data_root = tmp_path_factory.mktemp("data")
    write_run(
        data_root, 0, "ingest",
        volumes=[
            {"volume_name": f"{scan}_1", "scan_id": scan, "patient_id": scan[:-2], "split": "valid"} for scan in SCANS
        ],
        published_labels=label_rows(SCANS, TRUTH),
    )  # fmt: skip
    for run, model_id in enumerate(KINDS, start=1):
        write_run(
            data_root,
            run,
            "train",
            models=[
                {"model_id": model_id, "fingerprint": model_id, "kind": "ct-clip", "preset": "tiny", "path": model_id}
            ],
        )
        write_scores(data_root, run + 3, model_id, count=58 if model_id == "probe" else 60)
    store.publish(data_root)
    return data_root


@pytest.fixture
def data_root(scored: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(scored, tmp_path / "data"))


def draw(model_id: str, fingerprint: str) -> np.ndarray:
    """Probabilities (scans, 18), better for later models."""
    noise = np.random.default_rng([len(model_id), len(fingerprint)]).random(TRUTH.shape)
    return 0.1 * (1 + list(KINDS).index(model_id)) * TRUTH + 0.7 * noise


def write_scores(
    data_root: Path, run: int, model_id: str, count: int = 60, fingerprint: str = "e", source: str = "ct-rate train"
) -> None:
    """Records predictions of a model, and metrics with their thresholds, as `evaluate` does."""
    common = {"model_id": model_id, "dataset": "ct-rate", "split": "valid", "unit": "scan", "fingerprint": fingerprint}
    common |= {"protocol": KINDS[model_id]}
    probabilities = draw(model_id, fingerprint)[:count]
    scored = metrics.Scored(ABNORMALITIES, TRUTH[:count], probabilities, np.full(18, 0.4), source, SCANS[:count])
    rows = metrics.score(scored, EvaluationConfig(jackknife_groups=0))
    predictions = [
        {"item": scan, "abnormality": name, "probability": float(value)}
        for scan, row in zip(SCANS, probabilities, strict=False) for name, value in zip(ABNORMALITIES, row, strict=True)
    ]  # fmt: skip
    published = {"protocol": "published", "unit": "volume"}  # no comparison uses this protocol
    scores = [common | {"label_source": "published"} | dataclasses.asdict(row) for row in rows]
    write_run(
        data_root, run, "evaluate", predictions=[common | row for row in predictions],
        metrics=[*scores, *(row | published | {"n": 0, "n_positive": 0} for row in scores[:1])],
    )  # fmt: skip


def reference(model_id: str) -> ModelReference:
    return ModelReference(model_id, ModelKind.ct_clip, "tiny", Path(), "r", 1.0, model_id, "w", model_id)


def compare(data_root: Path, model_id: str) -> list[str]:
    """Makes the pending comparisons of a model and returns their keys."""
    model = reference(model_id)
    with open_run(data_root, "evaluate", model_id) as run:
        comparisons = list_comparisons(data_root, model)
        wanted = {key: comparison.fingerprint for key, comparison in comparisons.items()}
        pending = plan_items(run, model_id, wanted, is_complete=False)
        for key in pending:
            run.record("comparisons", score_comparison(data_root, model, comparisons[key]))
    return list(pending)


def current(data_root: Path, model_id: str, other: str) -> dict[str, Any]:
    """AUROC differences of the view, as {abnormality: difference}."""
    rows = query(
        data_root,
        "select abnormality, difference from model_comparisons where metric = 'auroc' "
        f"and model_id = '{model_id}' and other_model_id = '{other}'",
    )
    return dict(rows)


def auroc(model_id: str, column: int, count: int = 60, fingerprint: str = "e") -> float:
    return roc_auc_score(TRUTH[:count, column], draw(model_id, fingerprint)[:count, column])


def test_each_pair_is_compared_once_by_the_model_made_later(data_root):
    assert compare(data_root, "base") == []
    assert compare(data_root, "tuned") == ["ct-rate/valid/vocabfine/scan against base/zero-shot"]
    assert compare(data_root, "probe") == [
        f"ct-rate/valid/lipro/scan against {other}" for other in ("base/zero-shot", "tuned/vocabfine")
    ]
    assert [compare(data_root, model_id) for model_id in KINDS] == [[], [], []]


def test_differences_use_the_scans_that_both_predicted(data_root):
    compare(data_root, "probe")
    found = current(data_root, "probe", "base")
    for column, name in enumerate(ABNORMALITIES):
        assert found[name] == pytest.approx(auroc("probe", column, 58) - auroc("base", column, 58), abs=1e-12)
    assert found["macro"] == pytest.approx(np.mean([found[name] for name in ABNORMALITIES]))
    assert current(data_root, "base", "probe") == pytest.approx({name: -value for name, value in found.items()})
    counts = "select distinct n, count_patients from comparisons where abnormality <> 'micro' and model_id = 'probe'"
    assert query(data_root, counts) == [(58, 29)]
    assert query(data_root, "select count(p_value_holm) from current_comparisons where abnormality = 'macro'") == [(0,)]


@pytest.mark.parametrize("moved", ["base", "tuned"])
def test_comparison_is_superseded_after_a_new_score_of_either_model(data_root, moved):
    compare(data_root, "tuned")
    write_scores(data_root, 7, moved, fingerprint="another")
    store.publish(data_root)
    assert current(data_root, "tuned", "base") == {}  # its scores are superseded
    assert compare(data_root, "tuned") == ["ct-rate/valid/vocabfine/scan against base/zero-shot"]
    fingerprints = {model_id: "another" if model_id == moved else "e" for model_id in ("base", "tuned")}
    expected = auroc("tuned", 0, fingerprint=fingerprints["tuned"]) - auroc("base", 0, fingerprint=fingerprints["base"])
    assert current(data_root, "tuned", "base")[ABNORMALITIES[0]] == pytest.approx(expected)
    assert query(data_root, "select count(distinct run_id), count(distinct superseded_by_run) from comparisons") == [
        (2, 1)
    ]


def test_patients_who_chose_one_models_thresholds_count_for_neither_models_decisions(data_root):
    write_scores(data_root, 7, "base", fingerprint="own", source=f"ct-rate valid, {UNDECIDED}")
    store.publish(data_root)
    compare(data_root, "tuned")
    counts = query(
        data_root,
        "select metric, any_value(count_patients) from current_comparisons where abnormality = 'Emphysema' "
        "and metric in ('auroc', 'accuracy') group by all order by 1",
    )
    assert counts == [("accuracy", 15), ("auroc", 30)]


def test_models_without_a_common_scan_have_no_difference(data_root):
    with store.read(data_root) as connection:
        comparison = list_comparisons(data_root, reference("tuned")).popitem()[1]
        scores = compare_module._load_scored(connection, comparison, DEFAULT_SOURCE, "base", "zero-shot")
    nothing = scores.restrict(set(), set(), np.zeros(18, bool))
    rows = metrics.compare(nothing, nothing, compare_module.CONFIG)
    assert {(row.difference, row.p_value, row.n, row.count_patients) for row in rows} == {(None, None, 0, 0)}


def test_models_are_compared_by_other_labels_on_the_findings_that_both_have_scored(data_root, tmp_path):
    path = tmp_path / "own.csv"
    rows = [f"{scan},{int(truth)}" for scan, truth in zip(SCANS, TRUTH[:, 0], strict=True)]
    path.write_text("\n".join(["scan_id,Stent", *rows]))
    import_labels(data_root, path, "own", STENT)
    for run, model_id in enumerate(KINDS, start=7):
        scores = draw(model_id, "own")[:, :1]
        scored = metrics.Scored(("Stent",), TRUTH[:, :1], scores, np.full(1, 0.4), "ct-rate train", SCANS)
        common = {"model_id": model_id, "dataset": "ct-rate", "split": "valid", "unit": "scan", "fingerprint": "own"}
        common |= {"protocol": KINDS[model_id], "label_set": "screening"}
        write_run(
            data_root, run, "evaluate",
            predictions=[
                common | {"item": scan, "abnormality": "Stent", "probability": float(value)}
                for scan, value in zip(SCANS, scores[:, 0], strict=True)
            ],
            metrics=[
                common | {"label_source": "own"} | dataclasses.asdict(row)
                for row in metrics.score(scored, EvaluationConfig(jackknife_groups=0))
            ],
        )  # fmt: skip
    store.publish(data_root)
    assert compare(data_root, "tuned") == [
        f"ct-rate/valid/vocabfine/scan against base/zero-shot{end}" for end in ("", " by own")
    ]
    assert compare(data_root, "tuned") == []
    by_source = query(
        data_root,
        "select label_source, label_set, list(abnormality order by abnormality) from current_comparisons "
        "where metric = 'auroc' and abnormality not in ('macro', 'micro') group by all order by all",
    )
    assert by_source == [("own", "screening", ["Stent"]), ("published", "ct-rate-18", sorted(ABNORMALITIES))]
    truth = TRUTH[:, 0]
    expected = roc_auc_score(truth, draw("tuned", "own")[:, 0]) - roc_auc_score(truth, draw("base", "own")[:, 0])
    found = query(
        data_root, "select difference from comparisons where label_source = 'own' and metric = 'auroc' "
        "and abnormality = 'Stent'",
    )  # fmt: skip
    assert found[0][0] == pytest.approx(expected)
    import_labels(data_root, path_of_other(tmp_path), "own", OTHER)
    keys = list_comparisons(data_root, reference("tuned")).keys()
    assert [key for key in keys if key.endswith(" by own")] == []  # both wait for scores on the new findings


def path_of_other(folder: Path) -> Path:
    """Labels of another finding under the same name."""
    path = folder / "other.csv"
    path.write_text(f"scan_id,Rib fracture\n{SCANS[0]},1\n")
    return path


def test_a_page_opens_with_the_paired_differences_that_were_asked_for(data_root):
    from tasks.report.facts import collect_facts
    from tasks.report.pages import check_against, list_pages

    compare(data_root, "tuned")
    before = list_pages(data_root, reference("base"))
    check_against(data_root, reference("base"), "tuned")
    (page,) = list_pages(data_root, reference("base"), "tuned").values()
    assert page.against == "tuned"
    assert page.fingerprint != before[page.key].fingerprint
    with store.read(data_root) as connection:
        facts = collect_facts(connection, data_root, reference("base"), "ct-rate", "valid", page.against)
    assert sorted(row["abnormality"] for row in facts.differences) == sorted(ABNORMALITIES)
    ((figure, meaning),) = [pair for pair in facts.headline if "against tuned" in pair[1]]
    assert float(figure) == pytest.approx(facts.comparisons[0]["difference"], abs=5e-4)
    assert float(figure) < 0
    assert "paired over 30 patients" in meaning
    html = render_page(facts)
    assert html.index("Against tuned") < html.index("By abnormality</h2>")
    assert len(re.findall("no difference, 0.000", html)) == 2  # the first screen, and all models


def test_a_page_is_set_against_another_model_with_paired_differences_alone(data_root):
    from tasks.report.pages import check_against, list_pages

    compare(data_root, "tuned")
    check_against(data_root, reference("base"), None)
    for other, message in (
        ("base", "is the model of the page itself"), ("unknown", "there is no model 'unknown'"),
        ("probe", "it has no paired differences to base.* by the labels 'published'"),
    ):  # fmt: skip
        with pytest.raises(ConfigurationError, match=message) as raised:
            check_against(data_root, reference("base"), other)
        assert "\n" not in str(raised.value)
    assert list_pages(data_root, reference("base"), "probe") == list_pages(data_root, reference("base"))


def test_pages_of_both_models_are_pending_after_a_comparison(data_root):
    from tasks.report.pages import list_pages

    before = {model_id: list_pages(data_root, reference(model_id)) for model_id in KINDS}
    compare(data_root, "tuned")
    moved = {model_id for model_id in KINDS if list_pages(data_root, reference(model_id)) != before[model_id]}
    assert moved == {"base", "tuned"}
