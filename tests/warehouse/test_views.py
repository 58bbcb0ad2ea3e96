from __future__ import annotations

import csv
import hashlib
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score
from support.records import RUNS, report_row, volume_row, wanted_rows, write_run

from ctclip_model.data.abnormalities import ABNORMALITIES
from warehouse import schema, store
from warehouse.store import query


def converted(name: str, fingerprint: str = "f", recipe: str = "tiny-1") -> dict[str, Any]:
    row = {"volume_name": name, "recipe_id": recipe, "fingerprint": fingerprint}
    return row | {"shard_path": "shards/0.npy", "row_index": 0}


def reject(item: str, fingerprint: str, is_permanent: bool) -> dict[str, Any]:
    return {
        "stage": "convert", "variant": "tiny-1", "item": item, "fingerprint": fingerprint, "reason": "broken",
        "is_permanent": is_permanent,
    }  # fmt: skip


@pytest.fixture
def catalogue(tmp_path) -> Path:
    """Two scans of train, one excluded, and one of valid, all converted and reported."""
    names = ["train_1_a_1", "train_1_a_2", "train_2_a_1", "train_3_a_1", "valid_1_a_1"]
    scans = dict.fromkeys(name[:-2] for name in names)
    write_run(
        tmp_path, 0, "ingest",
        volumes=[volume_row(name) for name in names],
        reports=[report_row(scan_id) for scan_id in scans],
        exclusions=[{"volume_name": "train_3_a_1", "reason": "no_chest"}],
        published_labels=[
            {"scan_id": scan_id, "abnormality": abnormality, "value": int(scan_id == "train_1_a")}
            for scan_id in scans for abnormality in ABNORMALITIES
        ],
    )  # fmt: skip
    write_run(
        tmp_path, 1, "convert", variant="tiny-1", shard_volumes=[converted(name) for name in names],
        wanted=wanted_rows("convert", "tiny-1", dict.fromkeys(names, "f")),
    )  # fmt: skip
    return tmp_path


def test_every_view_states_its_grain_and_answers(tmp_path):
    store.publish(tmp_path)
    for path in (Path(schema.__file__).parent / "views").glob("*.sql"):
        assert path.read_text().startswith("-- ")
    comments = dict(query(tmp_path, "select view_name, comment from duckdb_views() where not internal"))
    assert comments.keys() == schema.view_definitions().keys()
    for name, comment in comments.items():
        assert comment, name
        query(tmp_path, f"from {name}")


def test_views_of_an_older_code_are_replaced(tmp_path):
    store.publish(tmp_path)
    path = tmp_path / store.WAREHOUSE_FILE
    path.chmod(0o644)
    with duckdb.connect(str(path)) as connection:
        connection.execute("create view forgotten as select 1 as x")
        connection.execute("create or replace view pending as select 2 as x")
        connection.execute("update view_files set sha256 = 'of another text' where name = 'pending'")
    assert store.publish(tmp_path).is_changed
    views = query(tmp_path, "select view_name from duckdb_views() where not internal")
    assert {name for (name,) in views} == schema.view_definitions().keys()
    assert query(tmp_path, "from pending") == []


def test_pending_is_wanted_minus_done_minus_what_was_refused_for_good_with_that_fingerprint(tmp_path):
    items = dict.fromkeys(["never", "done", "stale", "refused", "flaky", "mended"], "new")
    write_run(
        tmp_path, 0, "convert", variant="tiny-1",
        wanted=wanted_rows("convert", "tiny-1", items),
        shard_volumes=[converted("done", "new"), converted("stale", "old"), converted("never", "new", "other-2")],
        rejects=[reject("refused", "new", True), reject("flaky", "new", False), reject("mended", "old", True)],
    )  # fmt: skip
    store.publish(tmp_path)
    assert {item for (item,) in query(tmp_path, "select item from pending_convert")} == {
        "never", "stale", "flaky", "mended",
    }  # fmt: skip
    counts = query(tmp_path, "select stage, variant, wanted, done, pending, rejected from stage_status")
    assert counts == [("convert", "tiny-1", 6, 1, 4, 1)]


def test_item_made_again_after_it_was_refused_counts_as_done(tmp_path):
    write_run(tmp_path, 0, wanted=wanted_rows("convert", "tiny-1", {"x": "f"}), rejects=[reject("x", "f", True)] * 2)
    write_run(tmp_path, 1, shard_volumes=[converted("x", "f")])
    store.publish(tmp_path)
    assert query(tmp_path, "select wanted, done, pending, rejected from stage_status where wanted > 0") == [
        (1, 1, 0, 0)
    ]


def test_withdrawn_want_is_no_longer_pending(tmp_path):
    write_run(tmp_path, 0, wanted=wanted_rows("convert", "tiny-1", {"x": "f", "y": "f"}))
    write_run(
        tmp_path, 1, wanted=[row | {"is_withdrawn": True} for row in wanted_rows("convert", "tiny-1", {"x": "f"})]
    )
    store.publish(tmp_path)
    assert query(tmp_path, "select item from pending") == [("y",)]


@pytest.mark.parametrize(
    ("stage", "variant", "item", "table", "row"),
    [
        ("convert", "tiny-1", "v", "shard_volumes", {"recipe_id": "tiny-1", "volume_name": "v"}),
        ("label", "radbert", "s", "labels", {"labeller_id": "radbert", "scan_id": "s", "abnormality": "Emphysema"}),
        ("train", "tiny", "f", "models", {"model_id": "m", "preset": "tiny"}),
        ("train-labeller", "tiny", "f", "models", {"model_id": "m", "preset": "tiny"}),
        ("embed", "m", "volume:v", "latents", {"model_id": "m", "kind": "volume", "item": "v", "latent": [1.0]}),
        (
            "evaluate", "m", "ct-rate/valid/zero_shot/scan", "metrics",
            {"model_id": "m", "dataset": "ct-rate", "split": "valid", "protocol": "zero_shot", "unit": "scan"},
        ),
        ("report", "m", "ct-rate/valid", "pages", {"model_id": "m", "dataset": "ct-rate", "split": "valid"}),
    ],
)  # fmt: skip
def test_rows_of_each_stages_table_make_its_item_done(tmp_path, stage, variant, item, table, row):
    write_run(tmp_path, 0, stage, wanted=wanted_rows(stage, variant, {item: "f"}))
    store.publish(tmp_path)
    assert query(tmp_path, f"from pending_{stage.replace('-', '_')}") == [(variant, item, "f")]
    write_run(tmp_path, 1, stage, **{table: [row | {"fingerprint": "f"}]})
    store.publish(tmp_path)
    assert query(tmp_path, "from pending") == []


def test_stage_status_tells_the_latest_run_of_each_variant(tmp_path):
    write_run(tmp_path, 0, "ingest", status="completed")
    write_run(
        tmp_path, 1, "convert", variant="tiny-1", wanted=wanted_rows("convert", "tiny-1", {"x": "f"}), status="failed"
    )
    write_run(tmp_path, 2, "convert", variant="other-2", status="completed")
    write_run(tmp_path, 3, "convert", variant="tiny-1", status=None)
    store.publish(tmp_path)
    rows = query(
        tmp_path, "select stage, variant, last_run_id, last_status, minute(last_finished_at) from stage_status"
    )
    assert rows == [
        ("ingest", "", RUNS[0], "completed", 0),
        ("convert", "other-2", RUNS[2], "completed", 2),
        ("convert", "tiny-1", RUNS[3], "running", 1),
    ]


def test_training_samples_are_converted_reported_unexcluded_volumes_of_train(catalogue):
    store.publish(catalogue)
    rows = query(catalogue, "select volume_name, split, findings, fingerprint from training_samples order by 1")
    assert [row[0] for row in rows] == ["train_1_a_1", "train_1_a_2", "train_2_a_1"]
    assert rows[0][1:] == ("train", "Findings of train_1_a.", hashlib.md5(b"f|Findings of train_1_a.").hexdigest())


def test_model_is_stale_by_the_samples_that_were_added_changed_and_removed(catalogue):
    store.publish(catalogue)
    samples = query(catalogue, "select volume_name, fingerprint from training_samples")
    model = {"model_id": "m", "preset": "tiny", "recipe_id": "tiny-1", "fingerprint": "F", "kind": "ct-clip"}
    model |= {"warning": "has learnt no more than"}
    write_run(
        catalogue, 2, "train", variant="tiny", models=[model], wanted=wanted_rows("train", "tiny", {"F": "F"}),
        model_samples=[
            {"model_id": "m", "sample_id": name, "fingerprint": fingerprint, "split": "train"}
            for name, fingerprint in samples
        ],
    )  # fmt: skip
    store.publish(catalogue)
    fresh = "select model_id, count_moved_samples, is_stale from stage_status where stage = 'train'"
    assert query(catalogue, fresh) == [("m", 0, False)]
    assert query(catalogue, "select model_warning from stage_status where stage = 'train'") == [(model["warning"],)]

    added = ["train_4_a_1", "train_4_a_2", "train_5_a_1"]
    write_run(
        catalogue, 3, "ingest",
        volumes=[volume_row(name) for name in added] + [volume_row("train_2_a_1") | {"is_withdrawn": True}],
        reports=[report_row("train_4_a"), report_row("train_5_a"), report_row("train_1_a", "New text.")],
    )  # fmt: skip
    write_run(
        catalogue, 4, "convert", shard_volumes=[converted(name) for name in added],
        wanted=wanted_rows("convert", "tiny-1", dict.fromkeys(added, "f")),
    )  # fmt: skip
    store.publish(catalogue)
    moved = "select count_samples, count_added, count_changed, count_removed, count_moved_samples from stale_models"
    assert query(catalogue, moved) == [(3, 3, 2, 1, 6)]
    assert query(catalogue, fresh) == [("m", 6, True)]


def test_labelled_samples_are_training_samples_beside_each_labellers_known_labels(catalogue):
    write_run(
        catalogue, 2, "label", variant="l",
        labels=[
            {"scan_id": "train_1_a", "abnormality": "Emphysema", "labeller_id": "l", "value": 1},
            {"scan_id": "train_1_a", "abnormality": "Cardiomegaly", "labeller_id": "l", "value": None},
        ],
    )  # fmt: skip
    store.publish(catalogue)
    rows = query(catalogue, "select labeller_id, volume_name, labels from labelled_samples order by all")
    assert rows[:2] == [("l", "train_1_a_1", {"Emphysema": 1}), ("l", "train_1_a_2", {"Emphysema": 1})]
    assert [row[:2] for row in rows[2:]] == [
        ("published", name) for name in ("train_1_a_1", "train_1_a_2", "train_2_a_1")
    ]
    assert rows[2][2] == dict.fromkeys(ABNORMALITIES, 1)
    assert rows[4][2] == dict.fromkeys(ABNORMALITIES, 0)


def record_labels(catalogue: Path, run: int, scan: str, value: int | None) -> None:
    """Records one value for all published labels of a scan."""
    rows = [{"scan_id": scan, "abnormality": name, "value": value} for name in ABNORMALITIES]
    write_run(catalogue, run, "ingest", published_labels=rows)
    store.publish(catalogue)


def assert_stale_by_changed_labels(catalogue: Path, run: int, kind: str, samples: list[tuple[str, str]]) -> None:
    """A model on the published labels and these three samples is fresh, and stale once a scan of two has others."""
    model = {"model_id": "m", "recipe_id": "tiny-1", "kind": kind, "config": '{"labels_of": "published"}'}
    rows = [
        {"model_id": "m", "sample_id": name, "fingerprint": fingerprint, "split": "train"}
        for name, fingerprint in samples
    ]
    write_run(catalogue, run, "train", models=[model], model_samples=rows)
    store.publish(catalogue)
    moved = "select count_samples, count_added, count_changed, count_removed from stale_models where model_id = 'm'"
    assert query(catalogue, moved) == [(3, 0, 0, 0)]
    record_labels(catalogue, run + 1, "train_1_a", 0)
    assert query(catalogue, moved) == [(3, 0, 2, 0)]


LABELLED = "select volume_name, fingerprint from labelled_samples where labeller_id = 'published'"


def test_fine_tuned_model_is_stale_by_the_labels_that_it_learned(catalogue):
    store.publish(catalogue)
    assert_stale_by_changed_labels(catalogue, 2, "lipro", query(catalogue, LABELLED))


def test_ct_clip_that_names_labels_is_stale_by_them_and_reads_unlabelled_volumes_too(catalogue):
    record_labels(catalogue, 2, "train_2_a", None)
    read = "select volume_name, coalesce(labelled.fingerprint, samples.fingerprint) from training_samples as samples "
    samples = query(catalogue, f"{read} left join ({LABELLED}) as labelled using (volume_name)")
    assert len(samples) > len(query(catalogue, LABELLED))
    assert_stale_by_changed_labels(catalogue, 3, "ct-clip", samples)


def test_scans_count_volumes_and_know_what_is_missing(catalogue):
    write_run(
        catalogue, 2, "ingest", published_labels=[{"scan_id": "train_9_b", "abnormality": "Emphysema", "value": 1}]
    )
    store.publish(catalogue)
    columns = "patient_id, split, count_volumes, has_report, has_published_labels, is_excluded"
    rows = {row[0]: row[1:] for row in query(catalogue, f"select scan_id, {columns} from scans")}
    assert rows == {
        "train_1_a": ("train_1", "train", 2, True, True, False),
        "train_2_a": ("train_2", "train", 1, True, True, False),
        "train_3_a": ("train_3", "train", 1, True, True, True),
        "train_9_b": ("train_9", "train", 0, False, True, False),
        "valid_1_a": ("valid_1", "valid", 1, True, True, False),
    }


def test_labels_wide_has_a_column_an_abnormality_in_their_order(catalogue):
    store.publish(catalogue)
    result = store.run_user_sql(catalogue, "from labels_wide where scan_id = 'train_1_a'")
    names = [name.lower().replace(" ", "_") for name in ABNORMALITIES]
    assert result.columns == ["scan_id", "split", "labeller_id", *names]
    assert result.rows == [("train_1_a", "train", "published", *[1] * 18)]


def test_prevalence_counts_scans_by_split(catalogue):
    store.publish(catalogue)
    rows = query(
        catalogue, "select split, n, n_positive, prevalence from label_prevalence where abnormality = 'Emphysema'"
    )
    assert rows == [("train", 3, 1, 1 / 3), ("valid", 1, 0, 0.0)]


def test_agreement_with_the_published_labels_is_cohens_kappa(tmp_path):
    generator = np.random.default_rng(0)
    published, ours = generator.integers(0, 2, 40), generator.integers(0, 2, 40)
    ours[:20] = published[:20]
    rows = [{"scan_id": f"train_{n + 1}_a", "abnormality": "Emphysema"} for n in range(40)]
    write_run(
        tmp_path, 0,
        published_labels=[row | {"value": int(value)} for row, value in zip(rows, published, strict=True)],
        labels=[row | {"labeller_id": "x", "value": int(value)} for row, value in zip(rows, ours, strict=True)],
    )  # fmt: skip
    store.publish(tmp_path)
    columns = "n, agreement, kappa, n_only_labeller, n_only_published"
    assert query(tmp_path, f"select {columns} from label_agreement") == [
        (
            40, pytest.approx((published == ours).mean()), pytest.approx(cohen_kappa_score(published, ours)),
            int((ours > published).sum()), int((ours < published).sum()),
        )
    ]  # fmt: skip


def test_agreement_counts_scans_that_both_sources_know(tmp_path):
    """More scans than a block of the view holds, three splits, unknown labels and scans of a labeller's training."""
    rng = np.random.default_rng(0)
    scans = [f"train_{n}_a" for n in range(4200)] + [f"valid_{n}_a" for n in range(50)] + [f"trn{n}" for n in range(9)]
    values = {name: rng.integers(0, 2, len(scans)).tolist() for name in ("a", "b", "published")}
    for name in ("a", "b"):
        for row in rng.choice(len(scans), 400, replace=False):
            values[name][row] = None
    trained = {scan for scan in scans[:100] if rng.random() < 0.5}
    columns = {"abnormality": "Emphysema"}
    write_run(
        tmp_path, 0,
        published_labels=[
            columns | {"scan_id": scan, "value": value} for scan, value in zip(scans, values["published"], strict=True)
        ],
        labels=[
            columns
            | {"scan_id": scan, "labeller_id": name, "value": value, "is_training": name == "a" and scan in trained}
            for name in ("a", "b") for scan, value in zip(scans, values[name], strict=True)
        ],
    )  # fmt: skip
    store.publish(tmp_path)
    rows = query(tmp_path, "select labeller_id, other_id, split, n, kappa, n_only_labeller from label_agreement")
    expected = {}
    for ours, theirs in (("a", "b"), ("b", "a"), ("a", "published"), ("b", "published")):
        for split in ("train", "valid", "external"):
            pairs = [
                pair for scan, *pair in zip(scans, values[ours], values[theirs], strict=True)
                if None not in pair and split == (scan.split("_")[0] if "_" in scan else "external")
                and not ("a" in (ours, theirs) and scan in trained)
            ]  # fmt: skip
            kappa = cohen_kappa_score(*zip(*pairs, strict=True))
            expected[ours, theirs, split] = len(pairs), pytest.approx(kappa), sum(one > two for one, two in pairs)
    assert {tuple(row[:3]): tuple(row[3:]) for row in rows} == expected


def test_sources_without_a_common_scan_have_no_agreement(tmp_path):
    rows = [{"scan_id": f"train_{n}_a", "abnormality": "Emphysema", "value": 1} for n in (1, 2)]
    write_run(tmp_path, 0, published_labels=rows[:1], labels=[rows[1] | {"labeller_id": "x"}])
    store.publish(tmp_path)
    assert query(tmp_path, "from label_agreement") == []


def test_leaderboard_puts_our_macro_averages_beside_the_published(tmp_path):
    scored = {"model_id": "m", "dataset": "ct-rate", "split": "valid", "protocol": "zero_shot", "unit": "scan"}
    metrics = [
        scored | {"label_source": "published", "abnormality": "macro", "metric": metric, "value": value, "n": 1564}
        for metric, value in (("auroc", 0.99), ("accuracy", 0.7))
    ]
    write_run(tmp_path, 0, "evaluate", metrics=[*metrics, metrics[0] | {"abnormality": "Emphysema", "value": 0.1}])
    store.publish(tmp_path)
    columns = "model, is_published, auroc, weighted_f1, accuracy, n"
    rows = query(tmp_path, f"select {columns} from model_leaderboard where dataset = 'ct-rate' and split = 'valid'")
    assert rows[0] == ("m", False, 0.99, None, 0.7, 1564)
    assert ("CT-CLIP zero-shot", True, 0.731, 0.707, 0.668, 1564) in rows
    assert len(rows) == 18


def test_published_results_hold_both_data_sets_and_the_recall(tmp_path):
    store.publish(tmp_path)
    rows = {
        row[:3]: row[3:] for row in query(tmp_path, "select model, dataset, metric, value, n from published_results")
    }
    assert rows["EXACT fine-tuned", "rad-chestct", "weighted_f1"] == (0.737, 3630)
    assert rows["SPECTRE", "ct-rate-valid", "report_to_volume_recall_at_10"] == (0.255, None)
    assert len(rows) == 83


def test_data_quality_lists_what_conversion_found(tmp_path):
    sizes = {"count_columns": 512, "count_rows": 512, "count_slices": 300}
    facts = {
        "train_1_a_1": {"header_orientation": "LPS", "shape_in": [512, 512, 300]},
        "train_2_a_1": {"header_orientation": "LAS", "shape_in": [512, 512, 299]},
        "train_3_a_1": {"spacing_note": "differ", "count_blank_slices": 2, "count_repeated_slices": 0},
        "train_4_a_1": {"count_blank_slices": 0, "count_repeated_slices": 0},
    }
    orientation = {"ImageOrientationPatient": "[1, 0, 0, 0, -1, 0]"}
    write_run(
        tmp_path, 0, "ingest",
        volumes=[
            *(volume_row(name, **sizes) for name in list(facts)[:3]),
            volume_row("train_4_a_1", **sizes, metadata=orientation),
        ],
    )  # fmt: skip
    write_run(
        tmp_path, 1, "convert", variant="tiny-1",
        shard_volumes=[converted(name) | found for name, found in facts.items()],
    )  # fmt: skip
    store.publish(tmp_path)
    found = query(tmp_path, "select item, problem from data_quality where problem not like '%_volume' order by all")
    assert found == [
        ("train_2_a_1", "orientation_not_lps"),
        ("train_2_a_1", "shape_disputed"),
        ("train_3_a_1", "slices_doubtful"),
        ("train_3_a_1", "spacing_disputed"),
        ("train_4_a_1", "orientation_not_lps"),
    ]


def test_data_quality_lists_each_fault_of_the_source_and_stops_no_publish(tmp_path):
    write_run(
        tmp_path, 0, "ingest",
        volumes=[
            volume_row("train_1_a_1", spacing_z_mm=None), volume_row("train_2_a_1", spacing_z_mm=0.035),
            volume_row("train_3_a_1", sha256=None), volume_row("train_4_a_1", metadata=None), volume_row("train_5_a_1"),
            volume_row("train_6_a_1"),
            volume_row(
                "train_8_a_1", spacing_x_mm=None, patient_age_years=None, count_columns=512,
                metadata={"XYSpacing": "[1, 2, 3]", "PatientAge": "NaN", "Columns": "512"},
            ),
        ],
        reports=[
            report_row("train_1_a", "The same."), report_row("train_2_a", "The same."), report_row("train_3_a", " "),
            report_row("train_5_a") | {"is_disputed": True}, report_row("train_7_a"),
        ],
        published_labels=[{"scan_id": "train_4_a", "abnormality": "Emphysema", "is_disputed": True}],
        wanted=wanted_rows("convert", "tiny-1", {"train_5_a_1": "f", "train_6_a_1": "f"}),
        rejects=[reject("train_6_a_1", "f", True)],
    )  # fmt: skip
    store.publish(tmp_path)
    assert sorted(query(tmp_path, "select item, problem from data_quality")) == [
        ("train_1_a", "report_duplicate"),
        ("train_1_a_1", "spacing_missing"),
        ("train_2_a", "report_duplicate"),
        ("train_2_a_1", "spacing_implausible"),
        ("train_3_a", "report_empty"),
        ("train_3_a_1", "file_missing"),
        ("train_4_a", "label_without_report"),
        ("train_4_a", "labels_disputed"),
        ("train_4_a_1", "metadata_missing"),
        ("train_5_a", "report_disputed"),
        ("train_5_a_1", "volume_not_converted"),
        ("train_7_a", "scan_without_volume"),
        ("train_8_a_1", "cell_unreadable"),
        ("train_8_a_1", "spacing_missing"),
    ]
    (detail,) = query(tmp_path, "select detail from data_quality where problem = 'cell_unreadable'")
    assert detail == ("XYSpacing is [1, 2, 3]",)


def test_texts_beyond_a_models_limit_are_a_row_of_data_quality_by_model(tmp_path):
    latent = {"model_id": "m", "fingerprint": "f", "latent": [1.0, 0.0]}
    label = {"labeller_id": "l", "abnormality": "Emphysema", "fingerprint": "f", "value": 1}
    write_run(
        tmp_path, 1, "embed",
        latents=[
            latent | {"kind": "report", "item": "train_1_a", "count_cut_tokens": 7},
            latent | {"kind": "report", "item": "train_2_a", "count_cut_tokens": 0},
            latent | {"kind": "volume", "item": "train_1_a_1", "count_cut_tokens": None},
        ],
        labels=[label | {"scan_id": f"train_{tokens}_a", "count_cut_tokens": tokens} for tokens in (0, 2, 3)],
        models=[{"model_id": "n", "kind": "ct-clip", "fingerprint": "f", "count_cut_texts": 4}],
    )  # fmt: skip
    store.publish(tmp_path)
    rows = query(tmp_path, "select item, detail from data_quality where problem = 'texts_cut' order by item")
    assert [(item, [int(word) for word in detail.split() if word.isdigit()]) for item, detail in rows] == [
        ("l", [2, 3, 5]), ("m", [1, 2, 7]), ("n", [4])
    ]  # fmt: skip


def test_leaderboard_has_the_challenges_score_over_all_findings(tmp_path):
    scored = {"model_id": "m", "dataset": "ct-rate", "split": "valid", "protocol": "zero-shot", "unit": "scan"}
    scored |= {"label_source": "published"}
    metrics = [scored | {"abnormality": "macro", "metric": "f1", "value": 0.8, "n": 4}]
    for name, recall, specificity, n_positive in (("Emphysema", 1.0, 1.0, 1), ("Atelectasis", 0.5, 0.5, 2)):
        row = scored | {"abnormality": name, "n": 4, "n_positive": n_positive}
        metrics += [row | {"metric": "recall", "value": recall}, row | {"metric": "specificity", "value": specificity}]
    write_run(tmp_path, 0, "evaluate", metrics=metrics)
    store.publish(tmp_path)
    negatives, positives, hits, misses, false_alarms = 5, 3, 2, 1, 1
    weight = negatives / (2 * positives)
    score = weight * hits - weight * misses - false_alarms
    expected = (negatives / 2) / (negatives - score)  # arXiv 2505.17167
    rows = query(tmp_path, "select crg, f1, cohort from model_leaderboard where not is_published")
    assert rows == [(pytest.approx(expected), 0.8, "scans-4")]


def test_equals_stand_together_in_the_leaderboard(tmp_path):
    store.publish(tmp_path)
    rows = query(tmp_path, "select dataset, split, cohort from model_leaderboard")
    groups = [key for number, key in enumerate(rows) if number == 0 or rows[number - 1] != key]
    assert len(groups) == len(set(groups))
    assert ("ct-rate", "valid", "volumes-3002") in groups


PROTOCOLS = "select protocol, count(*), count(distinct item) from protocol_volumes group by all order by all"


def test_named_protocols_choose_their_volumes(tmp_path):
    names = ["valid_1_a_1", "valid_1_a_2", "valid_1_a_10", "valid_2_a_1", "valid_3_a_1", "valid_4_a_2", "train_1_a_1"]
    reports = {"valid_1_a": "A nodule.", "valid_2_a": " A nodule. ", "valid_3_a": "No nodule.", "valid_4_a": "Clear."}
    write_run(
        tmp_path, 0, "ingest",
        volumes=[volume_row(name) for name in names],
        reports=[report_row(scan, text) for scan, text in reports.items()],
        exclusions=[{"volume_name": name, "reason": "no_chest"} for name in ("valid_1_a_1", "valid_3_a_1")],
    )  # fmt: skip
    store.publish(tmp_path)
    assert query(tmp_path, PROTOCOLS) == [
        ("pairs-1493", 2, 2), ("published", 6, 6), ("scans-1551", 4, 3), ("scans-1564", 6, 4), ("volumes-3002", 4, 4),
    ]  # fmt: skip
    pairs = query(tmp_path, "select volume_name from protocol_volumes where protocol = 'pairs-1493' order by all")
    assert pairs == [("valid_1_a_2",), ("valid_4_a_2",)]


def test_named_protocols_have_their_counts_on_the_real_metadata(shared_data, tmp_path):
    path = shared_data / "data/ct_rate/validation_metadata.csv"
    with path.open(newline="") as file:
        names = [row["VolumeName"].removesuffix(".nii.gz") for row in csv.DictReader(file)]
    write_run(tmp_path, 0, "ingest", volumes=[volume_row(name) for name in names])
    store.publish(tmp_path)
    counts = {protocol: (volumes, items) for protocol, volumes, items in query(tmp_path, PROTOCOLS)}
    assert counts["published"] == (3039, 3039)
    assert counts["scans-1564"] == (3039, 1564)


@pytest.mark.parametrize(
    ("table", "is_counted"),
    [
        ("volumes", True),
        ("reports", True),
        ("published_labels", True),
        ("model_samples", True),
        ("wanted", True),
        ("rejects", False),
        ("metrics", False),
        ("retrieval", False),
        ("pages", False),
    ],
)
def test_moved_samples_are_counted_when_a_publish_loads_what_they_depend_on(tmp_path, monkeypatch, table, is_counted):
    write_run(tmp_path, 0)
    store.publish(tmp_path)
    counts = []
    monkeypatch.setattr(schema, "count_stale", counts.append)
    write_run(tmp_path, 1, **{table: [{"fingerprint": "f"}]})
    store.publish(tmp_path)
    assert bool(counts) == is_counted


def test_moved_samples_are_counted_anew_by_other_code(tmp_path, monkeypatch):
    write_run(tmp_path, 0)
    store.publish(tmp_path)
    other = tmp_path / schema.COUNTED.name
    other.write_text(schema.COUNTED.read_text() + "\nwhere false")
    monkeypatch.setattr(schema, "COUNTED", other)
    assert store.publish(tmp_path).is_changed
    assert not store.publish(tmp_path).is_changed


def test_without_a_trained_model_no_samples_are_compared(tmp_path, monkeypatch):
    nothing = tmp_path / schema.COUNTED.name
    nothing.write_text("no query")
    monkeypatch.setattr(schema, "COUNTED", nothing)
    write_run(tmp_path, 0, volumes=[volume_row("train_1_a_1")])
    assert store.publish(tmp_path).is_changed
