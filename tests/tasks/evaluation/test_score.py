"""Rows of an evaluation in the published warehouse: RAD-ChestCT's 16 labels, and projections of latents."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from support.records import write_embedding, write_run

from ctclip_model.config import CARD_FILE, DECISIONS_FILE, EvaluationConfig
from ctclip_model.data.abnormalities import ABNORMALITIES
from ctclip_model.data.label_sets import CT_RATE_18, Finding, LabelSet
from ctclip_model.errors import CheckpointError, MissingInputError, WarehouseError
from ctclip_model.evaluation import zero_shot as zero_shot_module
from ctclip_model.evaluation.decisions import DecisionRule, find_decisions, read_decisions
from ctclip_model.evaluation.zero_shot import zero_shot
from ctclip_model.models.kinds import ModelKind
from tasks.evaluation import score as score_module
from tasks.evaluation.decisions import leave_decisions
from tasks.evaluation.evaluations import list_evaluations
from tasks.evaluation.score import score_evaluation
from tasks.labels.import_labels import import_labels
from tasks.labels.label_sources import DEFAULT_SOURCE, LabelSource, find_label_source
from tasks.models.find import ModelReference
from tasks.run.lost import MODEL_FILES
from tasks.run.stage_run import open_run
from warehouse import schema, store
from warehouse.store import query

SCANS = [f"trn{number:05}" for number in range(24)]
RNG = np.random.default_rng(0)
CALCIFICATIONS = [index for index, name in enumerate(ABNORMALITIES) if name.endswith("wall calcification")]
MOSAIC = ABNORMALITIES.index("Mosaic attenuation pattern")
MODEL = ModelReference("m", ModelKind.ct_clip, "tiny", Path(), "r", 5.0, "f", "w", "m")


def unit(latents: np.ndarray) -> np.ndarray:
    return (latents / np.linalg.norm(latents, axis=-1, keepdims=True)).astype(np.float32)


LATENTS = unit(RNG.standard_normal((len(SCANS), 8)))
PROMPTS = unit(RNG.standard_normal((18, 2, 8)))
LABELS = (RNG.random((len(SCANS), 18)) < 0.5).astype(int)
PROBABILITIES = np.random.default_rng(1).random((len(SCANS), 18))
LABELS[:, CALCIFICATIONS] = LABELS[:, CALCIFICATIONS[:1]]  # copies of one column, as in the real file


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 scans of RAD-ChestCT with their labels, embedded, and the prompts."""
    data_root = tmp_path_factory.mktemp("data")
    write_run(
        data_root, 0, "ingest", sources=[{"source": "rad", "kind": "rad-chestct", "fingerprint": "f"}],
        volumes=[
            {"volume_name": scan, "scan_id": scan, "patient_id": scan, "split": "external", "source": "rad"}
            for scan in SCANS
        ],
        published_labels=[
            {"scan_id": scan, "abnormality": name, "value": int(value), "fingerprint": "f"}
            for scan, row in zip(SCANS, LABELS, strict=True) for name, value in zip(ABNORMALITIES, row, strict=True)
            if name != ABNORMALITIES[MOSAIC]
        ],
    )  # fmt: skip
    sides = ("present", "absent")
    items = {("volume", scan): latent for scan, latent in zip(SCANS, LATENTS, strict=True)} | {
        ("prompt", f"{side}:{name}"): PROMPTS[row, column]
        for row, name in enumerate(ABNORMALITIES) for column, side in enumerate(sides)
    }  # fmt: skip
    write_embedding(data_root, 1, items)
    with open_run(data_root, "embed", "m"):
        pass  # publishes
    return data_root


@pytest.fixture
def data_root(embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    config = EvaluationConfig(noise_draws=20, jackknife_groups=5, projection_steps=250)
    monkeypatch.setattr(score_module, "CONFIG", config)
    return Path(shutil.copytree(embedded, tmp_path / "data"))


def evaluate(data_root: Path, model: ModelReference = MODEL, source: LabelSource = DEFAULT_SOURCE) -> None:
    """Scores and publishes every evaluation, so that the warehouse's checks run on the rows."""
    with open_run(data_root, "evaluate", model.model_id) as run:
        for evaluation in list_evaluations(data_root, model, source=source).values():
            for table, rows in score_evaluation(data_root, model, evaluation).items():
                run.record(table, rows)


def read_pairs(data_root: Path, sql: str) -> dict[Any, Any]:
    return dict(query(data_root, sql))


def test_rad_chestct_is_scored_on_16_labels_with_the_larger_calcification(data_root):
    evaluate(data_root)
    probabilities = zero_shot(LATENTS, PROMPTS, MODEL.logit_scale)
    kept = [index for index in range(18) if index not in (*CALCIFICATIONS, MOSAIC)]
    expected = {ABNORMALITIES[index]: roc_auc_score(LABELS[:, index], probabilities[:, index]) for index in kept}
    larger = probabilities[:, CALCIFICATIONS].max(axis=1)
    expected["Calcification"] = roc_auc_score(LABELS[:, CALCIFICATIONS[0]], larger)
    assert len(expected) == 16
    found = "select abnormality, value from current_metrics where metric = 'auroc' and abnormality <> 'micro'"
    for protocol in ("zero-shot", "published"):
        by_label = read_pairs(data_root, f"{found} and protocol = '{protocol}'")
        assert by_label.pop("macro") == pytest.approx(np.mean(list(expected.values())))
        assert by_label == pytest.approx(expected, abs=1e-6)
    predicted = read_pairs(
        data_root,
        "select item, probability from current_predictions "
        "where abnormality = 'Calcification' and protocol = 'zero-shot'",
    )
    assert predicted == pytest.approx(dict(zip(SCANS, larger.tolist(), strict=True)), abs=1e-6)
    assert query(data_root, "select distinct dataset, split from current_metrics") == [("rad-chestct", "external")]
    assert query(
        data_root, "select dataset, n from model_leaderboard where not is_published and protocol <> 'published'"
    ) == [("rad-chestct", 24)]


def test_latents_of_a_model_are_projected_once_and_reproducibly(data_root):
    evaluate(data_root)
    points = query(data_root, "select protocol, unit, item, count_items, count_all, x, y from current_projections")
    assert {row[:2] for row in points} == {("zero-shot", "scan")}  # the published protocol has the same latents
    assert sorted(row[2] for row in points) == SCANS
    assert {row[3:5] for row in points} == {(24, 24)}
    assert np.isfinite([row[5:] for row in points]).all()
    assert len({row[5:] for row in points}) == 24
    evaluate(data_root)
    again = query(data_root, "select protocol, unit, item, count_items, count_all, x, y from current_projections")
    assert sorted(again) == sorted(points)


def write_latents(data_root: Path, run: int, latents: np.ndarray) -> None:
    rows = [
        {"model_id": "m", "kind": "volume", "item": scan, "fingerprint": "l", "latent": list(latent)}
        for scan, latent in zip(SCANS, latents, strict=True)
    ]
    write_run(data_root, run, "embed", latents=rows)


def test_latents_that_are_all_equal_are_scored_and_have_no_projection(data_root):
    write_latents(data_root, 2, LATENTS[:1].repeat(24, axis=0))
    evaluate(data_root)
    found = read_pairs(data_root, "select metric, value from current_metrics where abnormality = 'macro'")
    assert found["auroc"] == 0.5
    assert query(data_root, "select count(*) from current_projections") == [(0,)]


def test_latents_of_several_widths_are_named_and_not_shifted(data_root, monkeypatch):
    monkeypatch.setattr(schema, "check_loaded", lambda *_: None)  # the check latent_norm refuses them first
    ragged = [latent[:4] if row == 3 else latent for row, latent in enumerate(LATENTS.tolist())]
    write_latents(data_root, 2, ragged)
    store.publish(data_root)
    with pytest.raises(WarehouseError, match=r"several widths \(4, 8\)"):
        evaluate(data_root)


@pytest.mark.parametrize("logit_scale", [np.nan, np.inf, 0.0])
def test_model_recorded_with_an_unusable_temperature_is_refused(data_root, logit_scale):
    with pytest.raises(CheckpointError, match=r"exp\(temperature\) is (nan|inf|0)"):
        evaluate(data_root, dataclasses.replace(MODEL, logit_scale=logit_scale))


def test_head_whose_probabilities_are_no_numbers_is_refused(data_root, monkeypatch):
    monkeypatch.setattr(zero_shot_module, "zero_shot", lambda *_, **__: np.full((24, 18), np.nan))
    with pytest.raises(CheckpointError, match="m: its probabilities of 24 of 24 items are not numbers"):
        evaluate(data_root)


def test_configuration_bounds_the_number_of_projected_latents(data_root, monkeypatch):
    monkeypatch.setattr(score_module, "CONFIG", dataclasses.replace(score_module.CONFIG, projection_items=10))
    evaluate(data_root)
    points = query(data_root, "select item, count_items, count_all from current_projections")
    assert len(points) == 10
    assert {row[1:] for row in points} == {(10, 24)}


def add_reports(data_root: Path, copies: int) -> None:
    """Reports of the scans, the first `copies` alike except for spaces and capitals, whose latents are the volumes'."""
    texts = [f"Report {max(row, copies - 1)}." for row in range(len(SCANS))]
    texts[0] = f"  report\n{copies - 1}. "
    write_run(
        data_root, 2, "ingest",
        reports=[
            {"scan_id": scan, "fingerprint": "t", "findings": text, "impression": text, "source": "rad"}
            for scan, text in zip(SCANS, texts, strict=True)
        ],
    )  # fmt: skip
    latents = LATENTS.copy()
    latents[:copies] = LATENTS[0]
    write_latents(data_root, 3, latents)
    write_embedding(data_root, 4, {("report", scan): latent for scan, latent in zip(SCANS, latents, strict=True)})
    store.publish(data_root)


def test_copies_of_a_report_count_once_except_by_the_published_protocol(data_root):
    add_reports(data_root, copies=6)
    evaluate(data_root)
    recall = read_pairs(
        data_root,
        "select (protocol, unit, task), (value, n) from current_retrieval where k = 1 and task like '%recall'",
    )
    assert recall == {
        ("zero-shot", "scan", "report_to_volume_recall"): (1.0, 19),
        ("zero-shot", "scan", "volume_to_report_recall"): (1.0, 24),
        ("published", "volume", "report_to_volume_recall"): (18 / 24, 24),
        ("published", "volume", "volume_to_report_recall"): (18 / 24, 24),
    }


def test_small_probabilities_have_thresholds_except_by_the_published_protocol(data_root, monkeypatch):
    monkeypatch.setattr(zero_shot_module, "zero_shot", lambda *_, **__: PROBABILITIES / 1000)
    evaluate(data_root)
    found = read_pairs(
        data_root,
        "select protocol, (min(threshold), max(threshold), count(distinct threshold)) from current_metrics "
        "where metric = 'recall' and abnormality not in ('macro', 'micro') group by protocol",
    )
    low, high, count = found["zero-shot"]
    assert 0 < low < high < 1e-3
    assert count > 10
    assert found["published"] == (1.0, 1.0, 1)
    recalls = read_pairs(
        data_root, "select protocol, value from current_metrics where metric = 'recall' and abnormality = 'macro'"
    )
    assert recalls["published"] == 0
    assert recalls["zero-shot"] > 0.3


def test_decisions_are_left_with_the_model_and_heal(data_root, monkeypatch):
    monkeypatch.setattr(zero_shot_module, "zero_shot", lambda *_, **__: PROBABILITIES)
    model = dataclasses.replace(MODEL, folder=data_root / "models" / "m")
    assert "no evaluation" in leave_decisions(data_root, model)
    evaluate(data_root, model)
    assert "is lost" in leave_decisions(data_root, model)
    model.folder.mkdir(parents=True)
    for name in MODEL_FILES:
        (model.folder / name).write_text("{}")
    leave_decisions(data_root, model)
    found = read_decisions(model.folder, MODEL.weights_sha256)
    columns = ", ".join(field.name for field in dataclasses.fields(DecisionRule))
    recorded = query(data_root, f"select {columns} from current_decisions where sensitivity is not null")
    assert query(data_root, "select count(*), any_value(unit) from current_decisions") == [(16, "volume")]
    assert {rule.abnormality for rule in found.rules} == {name for name, *_ in recorded} - {"Calcification"}
    assert {dataclasses.astuple(rule) for rule in found.rules} <= {*recorded}
    assert (found.cohort.dataset, found.cohort.split, found.cohort.protocol) == ("rad-chestct", "external", "zero-shot")
    assert found.cohort.count_patients == found.cohort.count_fitting == 12
    (run_id,) = query(data_root, "select distinct run_id from current_decisions")[0]
    assert found.cohort.run_id == run_id
    (model.folder / DECISIONS_FILE).write_text("{")
    (model.folder / CARD_FILE).write_text("# m\n\n## Licence\n\nof the data\n")
    leave_decisions(data_root, model)
    assert read_decisions(model.folder, MODEL.weights_sha256) == found
    assert "there already" in leave_decisions(data_root, model)
    card = (model.folder / CARD_FILE).read_text()
    assert card.startswith("# m\n\n## Licence\n\nof the data\n\n## Thresholds\n")
    assert all(f"| {rule.abnormality}" in card and f"| {rule.threshold:.3f} |" in card for rule in found.rules)
    assert "no evaluation" in leave_decisions(data_root, dataclasses.replace(model, weights_sha256="another"))


OWN = LabelSet("own", (Finding("Stent", "A stent.", "No stent."), Finding("Emphysema", "Holes.", "No holes.")))


def import_own(data_root: Path, tmp_path: Path, labels: np.ndarray, label_set: LabelSet = OWN) -> LabelSource:
    """Imports labels (scans, findings) of a set as the source `refined`."""
    path = tmp_path / "refined.csv"
    lines = [",".join(["scan_id", *label_set.names])]
    lines += [",".join([scan, *map(str, row)]) for scan, row in zip(SCANS, labels.tolist(), strict=True)]
    path.write_text("\n".join(lines))
    import_labels(data_root, path, "refined", label_set)
    return find_label_source(data_root, "refined")


def embed_own_prompts(data_root: Path) -> None:
    """Records latents of the prompts of `OWN`: those of the first two abnormalities."""
    items = {
        f"{side}:own/{name}": PROMPTS[row, column]
        for row, name in enumerate(OWN.names) for column, side in enumerate(("present", "absent"))
    }  # fmt: skip
    write_run(
        data_root, 5, "embed",
        latents=[
            {"model_id": "m", "kind": "prompt", "item": item, "fingerprint": "l", "latent": latent.tolist()}
            for item, latent in items.items()
        ],
        wanted=[{"stage": "embed", "variant": "m", "item": f"prompt:{item}", "fingerprint": "l"} for item in items],
    )  # fmt: skip
    store.publish(data_root)


def test_other_findings_are_scored_zero_shot_beside_the_18(data_root, tmp_path):
    before = {key: one.fingerprint for key, one in list_evaluations(data_root, MODEL).items()}
    evaluate(data_root)
    scores = "select * exclude (run_id) from current_metrics where label_source = 'published' order by all"
    plain = query(data_root, scores)
    source = import_own(data_root, tmp_path, LABELS[:, :2])
    embed_own_prompts(data_root)
    evaluate(data_root, source=source)
    assert {key: one.fingerprint for key, one in list_evaluations(data_root, MODEL).items()} == before
    assert query(data_root, scores) == plain
    probabilities = zero_shot(LATENTS, PROMPTS, MODEL.logit_scale)
    rows = read_pairs(
        data_root,
        "select abnormality, value from current_metrics where label_source = 'refined' and label_set = 'own' "
        "and metric = 'auroc' and protocol <> 'published' and abnormality in ('Stent', 'Emphysema')",
    )
    expected = [roc_auc_score(LABELS[:, column], probabilities[:, column]) for column in (0, 1)]
    assert [rows["Stent"], rows["Emphysema"]] == pytest.approx(expected)
    counts = "select label_set, count(distinct abnormality) from current_predictions group by all order by all"
    assert query(data_root, counts) == [("ct-rate-18", 16), ("own", 2)]


def make_folder(data_root: Path) -> ModelReference:
    """The model, with a folder."""
    model = dataclasses.replace(MODEL, folder=data_root / "models" / "m")
    model.folder.mkdir(parents=True)
    for name in MODEL_FILES:
        (model.folder / name).write_text("{}")
    return model


def test_decisions_on_other_findings_stand_beside_those_on_the_18_and_go_with_their_prompts(data_root, tmp_path):
    model = make_folder(data_root)
    source = import_own(data_root, tmp_path, LABELS[:, :2])
    embed_own_prompts(data_root)
    evaluate(data_root, model, source)
    leave_decisions(data_root, model, source)
    (alone,) = read_decisions(model.folder, "w").by_set.values()
    assert [rule.abnormality for rule in alone.rules] == ["Stent", "Emphysema"]
    assert find_decisions(model.folder, "w") is None
    evaluate(data_root, model)
    leave_decisions(data_root, model)
    of_18 = find_decisions(model.folder, "w")
    assert (len(of_18.rules), of_18.cohort.label_source) == (15, "published")
    assert find_decisions(model.folder, "w", OWN) == alone
    assert alone.cohort.label_source == "refined"
    assert find_decisions(model.folder, "w", dataclasses.replace(OWN, findings=OWN.findings[::-1])) is None
    assert leave_decisions(data_root, model, source).endswith("there already")
    reworded = LabelSet("own", (Finding("Stent", "A stent is seen.", "No stent."), OWN.findings[1]))
    source = import_own(data_root, tmp_path, LABELS[:, :2], reworded)
    leave_decisions(data_root, model, source)  # the rows are of the former prompts
    assert find_decisions(model.folder, "w", reworded) is None


@pytest.mark.parametrize(("learned", "chosen"), [(None, "published"), ("refined", "refined")])
def test_decisions_are_of_the_labels_that_the_model_learned_or_of_the_published_ones(
    data_root, tmp_path, learned, chosen
):
    model = make_folder(data_root)
    source = import_own(data_root, tmp_path, 1 - LABELS, CT_RATE_18)
    evaluate(data_root, model, source)
    leave_decisions(data_root, model, source)
    assert find_decisions(model.folder, "w").cohort.label_source == "refined"  # the only ones
    evaluate(data_root, model)
    config = {} if learned is None else {"labels_of": learned}
    write_run(data_root, 8, "train", models=[{"model_id": "m", "kind": "ct-clip", "config": json.dumps(config)}])
    store.publish(data_root)
    leave_decisions(data_root, model)
    assert find_decisions(model.folder, "w").cohort.label_source == chosen


def test_another_source_of_the_18_has_scores_of_its_own(data_root, tmp_path):
    evaluate(data_root)
    evaluate(data_root, source=import_own(data_root, tmp_path, 1 - LABELS, CT_RATE_18))
    rows = query(
        data_root,
        "select abnormality, sum(value) from current_metrics where metric = 'auroc' and protocol <> 'published' and "
        "abnormality not in ('macro', 'micro', 'Calcification') group by all",
    )
    assert [total for _, total in rows] == pytest.approx([1] * 15)


def test_changed_labels_of_a_source_change_the_fingerprints_of_its_evaluations_alone(data_root, tmp_path):
    source = import_own(data_root, tmp_path, LABELS[:, :2])
    embed_own_prompts(data_root)
    default, own = list_evaluations(data_root, MODEL), list_evaluations(data_root, MODEL, source=source)
    assert not default.keys() & own.keys()
    changed = LABELS[:, :2].copy()
    changed[0] = 1 - changed[0]
    now = list_evaluations(data_root, MODEL, source=import_own(data_root, tmp_path, changed))
    assert all(now[key].fingerprint != own[key].fingerprint for key in own)
    assert list_evaluations(data_root, MODEL) == default


def test_prompts_that_are_not_embedded_ask_for_it(data_root, tmp_path):
    source = import_own(data_root, tmp_path, LABELS[:, :2])
    with pytest.raises(MissingInputError, match="prompts of own yet: run `ctclip embed`"):
        evaluate(data_root, source=source)
