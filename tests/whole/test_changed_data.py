"""Rebuilds after the data changed: some things are made again, and the rest is left."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
from support.rebuilds import count_done, find_labeller, find_train_volume, rebuild_all
from support.sources import edit_report, edit_rows, find_volume

from ctclip_model.data.abnormalities import ABNORMALITIES
from ctclip_model.device import Precision
from tasks.sources.tables import LABELS
from warehouse.store import query

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.mark.slow
def test_second_rebuild_does_nothing(data_root, phantoms):
    before = query(data_root, "select count(*) from runs")
    assert count_done(rebuild_all(data_root, phantoms)) == {}
    assert query(data_root, "select count(*) from runs") == before


@pytest.mark.slow
def test_same_data_at_another_place_is_recorded_and_nothing_is_made_again(data_root, source):
    assert set(count_done(rebuild_all(data_root, source))) == {"ingest"}


@pytest.mark.slow
def test_changed_volume_redoes_what_depends_on_it_and_leaves_the_model_stale(data_root, phantoms, source):
    from flows.ingest import ingest
    from tasks.plan.explain import explain_plan

    ingest(str(source), data_root)
    name = find_train_volume(data_root)
    other = query(data_root, "select max(volume_name) from training_samples")[0][0]
    shutil.copyfile(find_volume(source, other), find_volume(source, name))
    assert ingest(str(source), data_root)["done"] == 1
    planned = explain_plan(data_root, "convert", 5)
    assert (planned["items"][0]["item"], planned["reasons"]) == (name, {"file changed": 1})
    assert query(data_root, f"select * from training_samples where volume_name = '{name}'") == []
    done = rebuild_all(data_root, source)
    assert count_done(done) == {"convert": 1, "embed": 2, "evaluate": 6, "report": 3}
    assert "stale: 1 samples moved" in done["train"]["detail"]
    stale = query(data_root, "select kind from stale_models join current_models using (model_id) where is_stale")
    assert {kind for (kind,) in stale} == {"ct-clip", "lipro", "vocabfine"}
    history = query(data_root, f"select superseded_by_run is null from shard_volumes where volume_name = '{name}'")
    assert sorted(history) == [(False,), (True,)]


@pytest.mark.slow
def test_volume_that_has_become_unreadable_is_used_no_more(data_root, source):
    rebuild_all(data_root, source)
    name = query(data_root, "select min(volume_name) from evaluation_samples where split = 'valid'")[0][0]
    path = find_volume(source, name)
    path.write_bytes(path.read_bytes()[:-500])
    done = rebuild_all(data_root, source)
    assert done["convert"]["rejected"] == 1
    assert query(data_root, f"select * from evaluation_samples where volume_name = '{name}'") == []
    assert query(data_root, f"select reason from open_rejects where item = '{name}'") == [("truncated",)]


@pytest.mark.slow
def test_another_precision_is_another_result_until_asked_otherwise(data_root, source):
    from flows.ingest import ingest
    from tasks.plan.explain import explain_plan

    rebuild_all(data_root, source)
    done = rebuild_all(data_root, source, dtype=Precision.bfloat16)
    assert set(count_done(done)) == {"label", "embed", "evaluate", "report"}
    assert count_done(rebuild_all(data_root, source, dtype=Precision.bfloat16)) == {}
    scan = edit_report(source, "The heart is large.")
    ingest(str(source), data_root)
    assert [item["item"] for item in explain_plan(data_root, "label", 5)["items"]] == [scan]


@pytest.mark.slow
def test_changed_label_leaves_the_fine_tuned_models_stale_and_the_others_not(data_root, source):
    rebuild_all(data_root, source)
    name = find_train_volume(data_root)
    scan = name.rsplit("_", 1)[0]

    def flip(row: dict[str, str]) -> None:
        if row["VolumeName"].startswith(f"{scan}_"):
            row["Emphysema"] = str(1 - int(float(row["Emphysema"])))

    edit_rows(source / LABELS["train"], flip)
    done = rebuild_all(data_root, source, labeller=find_labeller(data_root))
    assert count_done(done) == {"ingest": 18, "evaluate": 6, "report": 3}
    assert "samples moved" in done["finetune"]["detail"]
    assert done["train"]["detail"] == ""
    stale = query(data_root, "select kind from stale_models join current_models using (model_id) where is_stale")
    assert sorted(stale) == [("lipro",), ("vocabfine",)]


@pytest.mark.slow
def test_changed_report_redoes_what_depends_on_it(data_root, source):
    from flows.ingest import ingest
    from tasks.plan.explain import explain_plan

    ingest(str(source), data_root)
    edit_report(source, "The heart is large.")
    done = rebuild_all(data_root, source, to_stage="embed")
    assert count_done(done) == {"ingest": 1, "label": 1, "embed": 1}
    assert done["train"]["detail"] == ""
    planned = explain_plan(data_root, "evaluate", 50)
    assert planned["reasons"] == {"reports and prompts changed": 4}  # VocabFine's wait for its latents


@pytest.mark.slow
def test_empty_report_is_rejected_and_leaves_the_retrieval(data_root, source):
    rebuild_all(data_root, source)
    scans = query(data_root, "select max(n) from current_retrieval where unit = 'scan'")[0][0]
    scan = edit_report(source, "", "Not given.")
    assert rebuild_all(data_root, source)["label"]["rejected"] == 1
    assert query(data_root, "select item, reason from open_rejects where stage = 'label'") == [(scan, "empty_report")]
    assert query(data_root, "select max(n) from current_retrieval where unit = 'scan'") == [(scans - 1,)]


@pytest.mark.slow
def test_withdrawn_volume_leaves_the_evaluation(data_root, source):
    rebuild_all(data_root, source)
    from tasks.sources.tables import METADATA

    path = source / METADATA["valid"]
    lines = path.read_text().splitlines(keepends=True)
    name = lines[-1].split(".nii.gz")[0]
    path.write_text("".join(lines[:-1]))
    rebuild_all(data_root, source)
    assert query(data_root, f"select * from evaluation_samples where volume_name = '{name}'") == []
    assert query(data_root, f"select is_withdrawn from volumes where volume_name = '{name}' and is_withdrawn") == [
        (True,)
    ]


@pytest.mark.slow
def test_tfidf_labeller_is_trained_where_there_is_none_and_kept_until_another_is(data_root, source, tmp_path):
    from flows.ingest import ingest
    from flows.label import label
    from flows.train_labeller import train_labeller

    first = label(data_root, "tfidf")
    assert first["variant"].startswith("labeller-tfidf-")
    assert query(data_root, "select count(distinct scan_id) from current_labels") == [(first["done"],)]
    edit_report(source, "The heart is large.")
    ingest(str(source), data_root)
    again = label(data_root, "tfidf")
    assert (again["variant"], again["done"]) == (first["variant"], 1)

    hand_labels = write_hand_labels(data_root, tmp_path / "hand.csv")
    scored = label(data_root, first["variant"], hand_labels=hand_labels)["hand_labels"]
    assert (scored["stage"], scored["done"]) == ("evaluate", 1)
    unseen = "select count(distinct scan_id) from current_labels where labeller_id = '{}' and not is_training"
    assert query(data_root, unseen.format(first["variant"])) == query(
        data_root, "select n from labeller_scores where abnormality = 'Emphysema'"
    )
    assert label(data_root, first["variant"], hand_labels=hand_labels)["hand_labels"]["done"] == 0
    newer = train_labeller(data_root, kind="tfidf", hand_labels=hand_labels)["labeller_id"]
    count = query(data_root, f"select count_samples from current_models where model_id = '{newer}'")[0][0]
    assert count == len(list(csv.reader(hand_labels.read_text().splitlines()))) - 1
    assert label(data_root, "tfidf")["variant"] == newer != first["variant"]
    assert query(data_root, "select * from current_labels where value <> (probability >= threshold)::int") == []
    labellers = "select count(distinct labeller_id), min(agreement) >= 0 from label_agreement where n > 0"
    assert query(data_root, labellers) == [(2, True)]  # the rebuild's and the first of tf-idf; the newer has seen all


def write_hand_labels(data_root: Path, path: Path) -> Path:
    """The published labels of the ingested reports, as a file of hand labels."""
    rows = query(
        data_root,
        "select scan_id, concat(findings, impression), labels_wide.* exclude (scan_id, split, labeller_id) "
        "from labels_wide join current_reports using (scan_id) "
        "where labeller_id = 'published' and findings is not null",
    )
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("AccessionNo", "report_text", *ABNORMALITIES), *rows])
    return path
