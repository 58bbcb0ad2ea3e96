"""The saved queries, each over a few rows whose answer is plain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.records import RUNS, write_run

from ctclip_model.errors import ConfigurationError
from warehouse import store

SCORED = {"dataset": "ct-rate", "split": "valid", "protocol": "zero-shot", "unit": "scan"}
NAMES = ("train_1_a_1", "train_1_a_2", "train_2_a_1", "train_3_a_1")
LATENTS = ([1.0, 0.0], [1.0, 0.0], [0.6, 0.8], [0.0, 1.0])


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    people = {"manufacturer": "SIEMENS", "patient_sex": "F", "patient_age_years": 47}
    volumes = [
        {"volume_name": name, "scan_id": name[:-2], "patient_id": name[:-4], "split": "train", "revision": "1"}
        | {"fingerprint": "f"} | people
        for name in NAMES
    ]  # fmt: skip
    write_run(
        folder, 0, "ingest", volumes=volumes,
        reports=[
            {"scan_id": "train_1_a", "findings": "A pleural Effusion.", "revision": "1", "fingerprint": "f"},
            {"scan_id": "train_2_a", "findings": "Clear.", "revision": "1", "fingerprint": "f"},
        ],
        published_labels=[
            {"scan_id": scan, "abnormality": name, "value": value}
            for scan, name, value in (
                ("train_1_a", "Pleural effusion", 0), ("train_1_a", "Emphysema", 1), ("train_2_a", "Emphysema", 1),
                ("train_3_a", "Emphysema", 0),
            )
        ],
    )  # fmt: skip
    write_run(
        folder, 1, "ingest",
        volumes=[
            volumes[0] | {"revision": "2", "fingerprint": "g"},
            volumes[1] | {"revision": "2", "is_withdrawn": True},
            volumes[0] | {"revision": "2", "volume_name": "train_1_a_3"},
        ],
    )  # fmt: skip
    write_run(
        folder, 2, "embed",
        wanted=[
            {"stage": "embed", "variant": "m", "item": f"volume:{name}", "fingerprint": "l"} for name in NAMES
        ],
        latents=[
            {"model_id": "m", "kind": "volume", "item": name, "fingerprint": "l", "latent": latent}
            for name, latent in zip(NAMES, LATENTS, strict=True)
        ],
    )  # fmt: skip
    write_run(
        folder, 3, "evaluate",
        predictions=[
            SCORED | {"model_id": "m", "item": scan, "abnormality": "Emphysema", "probability": probability}
            for scan, probability in (("valid_1_a", 0.4), ("valid_2_a", 0.1), ("valid_3_a", 0.0))
        ],
        published_labels=[
            {"scan_id": scan, "abnormality": "Emphysema", "value": value}
            for scan, value in (("valid_1_a", 1), ("valid_2_a", 1), ("valid_3_a", 0))
        ],
        metrics=[
            SCORED | {"model_id": model, "label_source": "published", "abnormality": "Emphysema", "metric": "auroc"}
            | {"value": value, "fingerprint": "e"}
            for model, value in (("m", 0.7), ("better", 0.8))
        ],
    )  # fmt: skip
    write_run(
        folder, 4, "evaluate",
        comparisons=[
            SCORED | {"model_id": "better", "other_model_id": "m", "other_protocol": "zero-shot", "metric": "auroc"}
            | {"abnormality": name, "difference": 0.1, "ci_low": -0.05, "ci_high": 0.2, "p_value": 0.3}
            | {"scored_as": "e", "other_scored_as": "e"}
            for name in ("Emphysema", "macro")
        ],
    )  # fmt: skip
    store.publish(folder)
    return folder


def ask(data_root: Path, name: str, **parameters: str) -> list[dict[str, Any]]:
    answer = store.run_user_sql(data_root, store.load_query(name), parameters or None)
    return [dict(zip(answer.columns, row, strict=True)) for row in answer.rows]


def test_best_model_by_label_is_the_one_of_the_greatest_auroc(data_root):
    (row,) = ask(data_root, "best_model_by_label", dataset="ct-rate", split="valid")
    assert (row["abnormality"], row["model_id"], row["auroc"]) == ("Emphysema", "better", 0.8)


def test_model_is_compared_with_each_other_macro_first_whichever_of_the_two_is_asked(data_root):
    rows = ask(data_root, "compare", model_id="m", dataset="ct-rate", split="valid")
    assert [(row["other_model_id"], row["abnormality"]) for row in rows] == [
        ("better", "macro"),
        ("better", "Emphysema"),
    ]
    assert [rows[0][name] for name in ("difference", "ci_low", "ci_high", "p_value")] == [-0.1, -0.2, 0.05, 0.3]
    (row, _) = ask(data_root, "compare", model_id="better", dataset="ct-rate", split="valid")
    assert (row["other_model_id"], row["difference"]) == ("m", 0.1)


def test_prevalence_counts_a_scan_once_however_many_reconstructions_it_has(data_root):
    rows = {row["abnormality"]: row for row in ask(data_root, "prevalence_by_group")}
    emphysema = rows["Emphysema"]
    assert (emphysema["manufacturer"], emphysema["patient_sex"], emphysema["age_band"]) == ("SIEMENS", "F", "40-59")
    assert (emphysema["n"], emphysema["n_positive"]) == (3, 2)


def test_changes_between_two_revisions_are_new_changed_or_withdrawn(data_root):
    rows = ask(data_root, "changed_between_revisions", old="1", new="2")
    assert [(row["item"], row["change"]) for row in rows] == [
        ("train_1_a_1", "changed"),
        ("train_1_a_2", "withdrawn"),
        ("train_1_a_3", "new"),
    ]


def test_similar_volumes_are_of_other_scans_nearest_first(data_root):
    rows = ask(data_root, "similar_volumes", model_id="m", volume_name="train_1_a_1", count="5")
    assert [row["volume_name"] for row in rows] == ["train_2_a_1", "train_3_a_1"]
    assert rows[0]["similarity"] == pytest.approx(0.6)


def test_report_that_mentions_a_term_whose_label_is_0_is_found_in_any_case(data_root):
    rows = ask(data_root, "mentioned_but_unlabelled", term="EFFUSION", abnormality="Pleural effusion")
    assert [row["scan_id"] for row in rows] == ["train_1_a"]


def test_worst_false_negatives_are_affirmed_and_least_probable_first(data_root):
    rows = ask(data_root, "worst_false_negatives", model_id="m", count="5")
    assert [row["scan_id"] for row in rows] == ["valid_2_a", "valid_1_a"]


def test_costs_count_finished_runs_by_stage(data_root):
    assert {row["stage"]: row["count_runs"] for row in ask(data_root, "run_costs")} == {
        "ingest": 2,
        "embed": 1,
        "evaluate": 2,
    }


def test_cost_of_a_run_has_its_rows_by_table(data_root):
    rows = ask(data_root, "run_cost", run_id=RUNS[2])
    assert [row["status"] for row in rows] == ["running", "completed"]
    assert rows[0]["rows_by_table"] == {"latents": 4, "runs": 2, "wanted": 4}


def test_every_saved_query_is_tested_here_and_says_what_it_answers():
    here = Path(__file__).read_text()
    assert [name for name, answers in store.list_queries().items() if f'"{name}"' not in here or not answers] == []


def test_unknown_saved_query_is_refused():
    with pytest.raises(ConfigurationError, match="no saved query"):
        store.load_query("../x")
