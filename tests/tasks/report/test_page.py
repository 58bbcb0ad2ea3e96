"""The report page: self-contained, escaped, and valid with few facts."""

import base64
import dataclasses
import io
import re

import numpy as np
import pytest
from PIL import Image
from support.records import write_run

from ctclip_model.config import Recipe
from ctclip_model.models.kinds import ModelKind
from tasks.models.find import ModelReference
from tasks.report.evidence import PICTURE_BYTES, EvidenceExample, EvidenceFinding
from tasks.report.examples import Example, RankedVolume, draw_slices
from tasks.report.facts import arrange_retrieval, collect_facts
from tasks.report.render import AXES, PageFacts, make_forest, render_page
from warehouse import store

LABEL = {
    "abnormality": "Emphysema", "auroc": 0.91234, "ci_low": 0.85, "ci_high": None, "average_precision": 0.5, "f1": 0.4,
    "weighted_f1": 0.8, "accuracy": 0.75, "precision": 0.3, "n_positive": 12, "n": 40,
}  # fmt: skip
BOARD = {
    "model": "x", "dataset": "d", "protocol": "p", "unit": "scan", "auroc": 0.5, "auroc_ci_low": 0.4,
    "auroc_ci_high": None, "weighted_f1": None, "accuracy": None, "n": 3,
} | {"f1": 0.5, "crg": 0.4, "cohort": "scans-9"}  # fmt: skip
VOLUME = RankedVolume("v", 1, 0.5, True, [("axial", "data:,")])


def test_page_makes_no_outside_request():
    html = render_page(
        PageFacts("t", [("0.9", "AUROC")], labels=[LABEL], curves={"ROC": {"Emphysema": [(0, 0), (1, 1)]}})
    )
    assert not re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?(?!data:|#|index\.html\b)[^"'>\s]+""", html)
    assert "http:" not in html
    assert "https:" not in html


def test_text_of_the_data_stays_text():
    attack = "<script>alert(1)</script>"
    row = LABEL | {"abnormality": attack}
    html = render_page(
        PageFacts(
            attack,
            [],
            labels=[row],
            curves={"ROC": {attack: [(0, 0), (1, 1)]}},
            examples=[Example(attack, attack, 1, 1, [VOLUME])],
            provenance=[(attack, attack)],
        )
    )
    assert attack not in html
    assert "&lt;script&gt;" in html


def test_numbers_are_rounded_and_missing_ones_are_dashes():
    html = render_page(PageFacts("t", [], labels=[LABEL]))
    assert "<td>0.912</td>" in html
    assert "<td>\N{EN DASH}</td>" in html


def test_methods_of_intervals_and_abnormalities_of_few_patients_are_named(tmp_path):
    scored = {"model_id": "m", "dataset": "ct-rate", "split": "valid", "label_source": "published", "metric": "auroc"}
    scored |= {"protocol": "zero-shot", "unit": "scan", "value": 0.7, "ci_low": 0.6, "ci_high": 0.8, "n": 9}
    scored |= {"threshold_source": "ct-rate train"}
    own = {
        "Emphysema": {"ci_method": "score", "has_few_patients": True},
        "Atelectasis": {},
        "macro": {"ci_method": "mover"},
    }
    write_run(
        tmp_path, 0, "evaluate", models=[{"model_id": "m"}],
        metrics=[scored | {"abnormality": name} | columns for name, columns in (own | {"Atelectasis": {}}).items()],
    )  # fmt: skip
    store.publish(tmp_path)
    model = ModelReference("m", ModelKind.ct_clip, "tiny", tmp_path, "r", 1.0, "f", "w", "m")
    with store.read(tmp_path) as connection:
        facts = collect_facts(connection, tmp_path, model, "ct-rate", "valid")
    assert facts.few_patients == ["Emphysema"]
    assert sorted(facts.ci_methods) == ["mover", "percentile", "score"]  # rows of earlier versions have no method
    html = render_page(facts)
    assert "intervals may cover less: Emphysema." in html
    assert "Thresholds were chosen on ct-rate train." in html
    assert "bootstrap percentiles of an earlier version" in html


def test_own_rows_stand_out_from_published_results():
    rows = [BOARD | {"is_published": True}, BOARD | {"model": "ours", "is_published": False}]
    html = render_page(PageFacts("t", [], published=rows))
    assert re.findall(r'<tr class="ours">\s*<td>(\w+)', html) == ["ours"]


SCORED = {
    "model_id": "m", "split": "valid", "label_source": "published", "metric": "auroc", "abnormality": "macro",
    "value": 0.7, "unit": "scan", "protocol": "zero-shot", "label_set": "ct-rate-18",
}  # fmt: skip


def collect(data_root, dataset="ct-rate", **tables):
    write_run(data_root, 0, "evaluate", models=[{"model_id": "m", "preset": "tiny"}], **tables)
    store.publish(data_root)
    model = ModelReference("m", ModelKind.ct_clip, "tiny", data_root, "r", 1.0, "f", "w", "m")
    with store.read(data_root) as connection:
        return collect_facts(connection, data_root, model, dataset, "valid")


@pytest.mark.parametrize(("count", "shared"), [(1564, "scans-1564"), (77, None)])
def test_published_results_stand_beside_the_same_cohort_alone(tmp_path, count, shared):
    protocols = ("zero-shot", "published")
    rows = [SCORED | {"dataset": "ct-rate", "protocol": protocol, "n": count} for protocol in protocols]
    facts = collect(tmp_path, metrics=rows)
    assert [(row["model"], row["protocol"]) for row in facts.leaderboard] == [("m", "zero-shot")]
    assert {row["cohort"] for row in facts.published} == ({shared} if shared else set())
    assert {row["is_published"] for row in facts.published} == ({True, False} if shared else set())
    assert ("scans-1564" in {row["cohort"] for row in facts.published_elsewhere}) == (shared is None)
    assert {row["is_published"] for row in facts.published_elsewhere} == {True}
    html = render_page(facts)
    assert ("No model of this data root is scored on a cohort of the literature" in html) == (shared is None)
    assert "dotted: published CT-CLIP, macro, 0.731" in render_page(dataclasses.replace(facts, labels=[LABEL]))


def test_phantoms_have_no_published_results_and_the_mean_that_the_demonstration_prints(tmp_path):
    names = ("Pleural effusion", "Consolidation", "Mosaic attenuation pattern")
    rows = [
        SCORED | {"dataset": "phantom", "abnormality": name, "value": value, "n": 40}
        for name, value in zip((*names, "macro"), (0.9, 0.8, 0.1, 0.6), strict=True)
    ]
    facts = collect(tmp_path, "phantom", metrics=rows)
    assert ("0.850", "macro AUROC of the 2 abnormalities that phantoms show") in facts.headline
    assert (facts.published, facts.published_elsewhere, facts.published_macro) == ([], [], None)


def test_retrieval_is_a_row_a_task_with_a_column_a_k():
    recall = {"task": "report_to_volume_recall", "n": 9}
    rows = [recall | {"k": 5, "value": 0.4}, recall | {"k": 10, "value": 0.6}]
    rows += [{"task": "report_to_volume_median_rank", "k": 0, "value": 8.0, "n": 9}]
    rows += [{"task": "volume_to_volume_map", "k": 5, "value": 0.9, "n": 7}]
    found = arrange_retrieval(rows)
    assert found == [
        {"task": "report to volume, recall at K", "n": 9, "median_rank": 8.0, 5: 0.4, 10: 0.6},
        {"task": "volume to volume, MAP at K", "n": 7, "median_rank": None, 5: 0.9, 10: None},
    ]
    html = render_page(PageFacts("t", [], retrieval=found))
    assert re.findall(r'scope="col">([^<]+)<', html) == ["task", "K = 5", "K = 10", "median rank", "queries"]


def test_forest_places_intervals_and_lines_on_one_scale():
    rows = [
        LABEL | {"abnormality": "a", "auroc": 0.9, "ci_low": 0.8, "ci_high": 1.0},
        LABEL | {"abnormality": "b", "auroc": 0.5, "ci_low": None},
        LABEL | {"abnormality": "c", "auroc": None},
    ]
    forest = make_forest(rows, {"chance": 0.5})
    scale = (forest.rows[0].place - forest.rows[1].place) / 0.4
    left, length = forest.rows[0].interval
    assert [row.name for row in forest.rows] == ["a", "b"]
    assert forest.rows[1].interval is None
    assert forest.lines == [("chance", 0.5, forest.rows[1].place)]
    assert (left, left + length) == pytest.approx(
        (forest.rows[0].place - 0.1 * scale, forest.rows[0].place + 0.1 * scale), abs=0.02
    )
    assert all(0 <= row.place <= 100 for row in forest.rows)


def test_subgroups_are_scored_from_their_own_patients(tmp_path):
    """Women's scans are ranked right, men's wrongly; a group of few patients and a kind of one group are left out."""
    scans = [f"valid_{number}_a" for number in range(62)]
    sexes = ["F", "M"] * 30 + ["O"] * 2
    labels = [number // 2 % 2 for number in range(62)]
    write_run(
        tmp_path, 1, "ingest",
        volumes=[
            {"volume_name": f"{scan}_1", "scan_id": scan, "patient_id": scan[:-2], "split": "valid",
             "patient_sex": sex, "patient_age_years": 50, "manufacturer": None}
            for scan, sex in zip(scans, sexes, strict=True)
        ],
        published_labels=[
            {"scan_id": scan, "abnormality": "Emphysema", "value": value, "fingerprint": "f"}
            for scan, value in zip(scans, labels, strict=True)
        ],
    )  # fmt: skip
    predictions = [
        {key: SCORED[key] for key in ("model_id", "split", "unit", "protocol", "label_set")}
        | {
            "dataset": "d",
            "abnormality": "Emphysema",
            "item": scan,
            "probability": (value if sex == "F" else 1 - value),
        }
        for scan, sex, value in zip(scans, sexes, labels, strict=True)
    ]
    facts = collect(tmp_path, "d", predictions=predictions)
    assert [(row["kind"], row["group"], row["auroc"], row["n"]) for row in facts.subgroups] == [
        ("sex", "F", 1.0, 30), ("sex", "M", 0.0, 30),
    ]  # fmt: skip
    assert facts.subgroups[0]["ci_low"] > 0.5 > facts.subgroups[1]["ci_high"]


def test_comparison_shows_the_difference_and_how_many_labels_differ():
    row = {"other_model_id": "x", "other_protocol": "lipro", "difference": 0.1234, "ci_low": -0.01, "ci_high": 0.2}
    row |= {"p_value": 0.04, "count_better": 5, "count_worse": 1, "count_patients": 99}
    html = render_page(PageFacts("t", [], comparisons=[row]))
    for cell in ("x", "lipro", "0.123", "-0.010", "0.200", "0.040", "5", "1", "99"):
        assert f"<td>{cell}</td>" in html


def test_every_chart_has_a_description():
    html = render_page(
        PageFacts("t", [], curves={"ROC": {"Emphysema": [(0, 0), (1, 1)]}}, training={"text": [(1, 2.0), (2, 1.0)]})
    )
    charts = re.findall(r'<svg[^>]*role="img" aria-label="([^"]+)"', html)
    assert charts == ["ROC curve of Emphysema", "loss in the text phase, from 2.000 to 1.000"]


def test_curves_of_an_abnormality_stand_side_by_side():
    curves = {kind: {name: [(0, 0), (1, 1)] for name in ("Emphysema", "Atelectasis")} for kind in AXES}
    html = render_page(PageFacts("t", [], curves=curves))
    figures = re.findall(r"<figure>\s*<figcaption>(\w+)</figcaption>(.*?)</figure>", html, re.DOTALL)
    assert [(name, re.findall(r'aria-label="([\w ]+) curve of (\w+)"', inside)) for name, inside in figures] == [
        (name, [(kind, name) for kind in AXES]) for name in ("Emphysema", "Atelectasis")
    ]


def test_page_of_a_complete_evaluation_is_below_5_mb():
    line = [(point / 200, point / 200) for point in range(200)]
    names = [f"abnormality {number}" for number in range(18)]
    volume = np.random.default_rng(0).integers(-1000, 400, (240, 480, 480), np.int16)
    noise = RankedVolume("v", 1, 0.5, True, draw_slices(volume, Recipe()))  # PNG cannot compress noise
    shown = EvidenceExample("v", 1, 0.5, True, [("axial", "x" * PICTURE_BYTES, "alt")])
    html = render_page(
        PageFacts(
            "t", [], labels=[LABEL | {"abnormality": name} for name in names], leaderboard=[BOARD] * 50,
            curves={kind: dict.fromkeys(names, line) for kind in AXES}, training={"contrastive": line},
            examples=[Example("s", "x" * 700, 1, 1, [noise] * 3)] * 3,
            evidence=[EvidenceFinding("a", 0.5, 0.5, [shown])], projection=[(0.123456, 1.2, 3)] * 1500,
        )
    )  # fmt: skip
    assert len(html) < 4_000_000


def test_page_without_any_result_is_still_a_page():
    assert "Nothing was rejected" in render_page(PageFacts("t", []))


def test_slices_have_the_shape_of_the_body_and_the_head_up():
    volume = np.full((10, 8, 6), -1000, np.int16)
    volume[9] = 400  # the uppermost plane
    slices = {}
    for plane, uri in draw_slices(volume, Recipe(spacing_mm=(2.0, 1.0, 1.0), shape=volume.shape)):
        slices[plane] = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))
    assert {plane: picture.shape for plane, picture in slices.items()} == {
        "axial": (120, 160), "coronal": (160, 64), "sagittal": (160, 48),
    }  # fmt: skip
    assert slices["coronal"][0].min() == 255
    assert slices["coronal"][-1].max() == 0
