"""The whole pipeline on phantoms with every anomaly: what a rebuild makes, and what a rerun makes again."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import duckdb
import pytest
from conftest import smoke

from ctclip_model.data.abnormalities import ABNORMALITIES
from ctclip_model.data.phantom import ANOMALIES, PhantomConfig, make_phantoms
from ctclip_model.errors import ConfigurationError, MissingInputError
from tasks.settings import STAGES
from tasks.sources.tables import REPORTS
from warehouse import store

pytestmark = [pytest.mark.usefixtures("prefect_server"), pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms")
    make_phantoms(folder, PhantomConfig(seed=3, train_patients=16, valid_patients=8, anomalies=ANOMALIES), processes=1)
    return folder


@pytest.fixture(scope="module")
def built(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root after one whole rebuild; tests that change it copy it first."""
    data_root = tmp_path_factory.mktemp("built")
    rebuild_all(data_root, phantoms)
    return data_root


@pytest.fixture
def data_root(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "data"))


@pytest.fixture
def source(phantoms: Path, tmp_path: Path) -> Path:
    """The same phantoms elsewhere, for tests that change them."""
    return Path(shutil.copytree(phantoms, tmp_path / "source"))


def rebuild_all(data_root: Path, source: Path, **options: Any) -> dict[str, dict[str, Any]]:
    """What each stage did."""
    from flows.ingest import ingest
    from flows.rebuild import rebuild
    from flows.train_labeller import train_labeller

    done = {"ingest": ingest(str(source), data_root)}
    options.setdefault("labeller", train_labeller(data_root, "smoke")["labeller_id"])
    summaries = rebuild(None, data_root, "smoke", from_stage="convert", **options)
    return done | {summary["stage"]: summary for summary in summaries}


def counts(done: dict[str, dict[str, Any]]) -> dict[str, int]:
    return {stage: summary["done"] for stage, summary in done.items() if summary["done"]}


def query(data_root: Path, sql: str) -> list[tuple[Any, ...]]:
    with store.read(data_root) as connection:
        return connection.execute(sql).fetchall()


def converted_train_volume(data_root: Path) -> str:
    return query(data_root, "select min(volume_name) from training_samples")[0][0]


def volume_path(source: Path, name: str) -> Path:
    return next(source.glob(f"dataset/*/*/*/{name}.nii.gz"))


def test_rebuild_fills_the_warehouse(built):
    for table in (
        "volumes", "reports", "published_labels", "exclusions", "shards", "shard_volumes", "labels", "models",
        "model_samples", "training_steps", "latents", "predictions", "metrics", "retrieval", "curves", "pages", "runs",
    ):  # fmt: skip
        assert query(built, f"select count(*) from {table}")[0][0] > 0, table
    assert query(built, "select * from patient_overlap") == []
    assert {stage for (stage,) in query(built, "select distinct stage from runs")} >= set(STAGES)


def test_every_anomaly_is_a_reject_or_a_data_quality_row(built):
    rejects = dict(query(built, "select reason, count(*) from current_rejects group by 1"))
    problems = dict(query(built, "select problem, count(*) from data_quality group by 1"))
    assert rejects["truncated"] == 1
    assert rejects["all_zero"] == 1
    assert problems["file_missing"] == 1
    assert problems["spacing_missing"] == 1
    assert problems["spacing_disputed"] >= 1
    assert query(built, "select count(*) from current_exclusions where reason = 'no_chest'") == [(1,)]
    missing = "select volume_name from current_volumes where spacing_z_mm is null"
    assert query(built, f"select count(*) from current_shard_volumes where volume_name in ({missing})") == [(1,)]


def test_excluded_volume_is_neither_trained_on_nor_scored(built):
    assert query(built, "select * from training_samples join current_exclusions using (volume_name)") == []
    assert query(built, "select * from evaluation_samples join current_exclusions using (volume_name)") == []


def test_second_rebuild_does_nothing(data_root, phantoms):
    before = query(data_root, "select count(*) from runs")
    assert counts(rebuild_all(data_root, phantoms)) == {}
    assert query(data_root, "select count(*) from runs") == before


def test_same_data_at_another_place_is_recorded_and_nothing_is_made_again(data_root, source):
    assert set(counts(rebuild_all(data_root, source))) == {"ingest"}


def test_changed_volume_redoes_what_depends_on_it_and_leaves_the_model_stale(data_root, phantoms, source):
    rebuild_all(data_root, source)
    name = converted_train_volume(data_root)
    other = query(data_root, "select max(volume_name) from training_samples")[0][0]
    shutil.copyfile(volume_path(source, other), volume_path(source, name))
    from flows.ingest import ingest
    from tasks.reading import explain_plan

    assert ingest(str(source), data_root)["done"] == 1
    assert explain_plan(data_root, "convert", 5)["items"] == [
        {"variant": smoke().recipe.recipe_id, "item": name, "why": "changed since it was made"}
    ]
    assert query(data_root, f"select * from training_samples where volume_name = '{name}'") == []
    done = rebuild_all(data_root, source)
    assert counts(done) == {"convert": 1, "embed": 1, "evaluate": 1, "report": 1}
    assert "stale: 1 samples moved" in done["train"]["detail"]
    history = query(data_root, f"select superseded_by_run is null from shard_volumes where volume_name = '{name}'")
    assert sorted(history) == [(False,), (True,)]


def test_volume_that_has_become_unreadable_is_used_no_more(data_root, source):
    rebuild_all(data_root, source)
    name = query(data_root, "select min(volume_name) from evaluation_samples where split = 'valid'")[0][0]
    path = volume_path(source, name)
    path.write_bytes(path.read_bytes()[:-500])
    done = rebuild_all(data_root, source)
    assert done["convert"]["rejected"] == 1
    assert query(data_root, f"select * from evaluation_samples where volume_name = '{name}'") == []
    assert query(data_root, f"select reason from open_rejects where item = '{name}'") == [("truncated",)]


def test_rebuild_evaluates_the_model_of_its_own_seed(data_root, phantoms):
    first = query(data_root, "select model_id from current_models where kind = 'ct-clip'")[0][0]
    assert counts(rebuild_all(data_root, phantoms, seed=1))["train"] == 1
    assert query(data_root, "select count(distinct model_id) from current_metrics") == [(2,)]
    again = rebuild_all(data_root, phantoms, seed=0)
    assert counts(again) == {}
    assert again["evaluate"]["variant"] == first


def edit_report(source: Path, findings: str, impression: str | None = None) -> str:
    """Gives the first validation scan another report, in each of its rows, and returns the scan."""
    path = source / REPORTS["valid"]
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    scan = rows[0]["VolumeName"].rsplit("_", 1)[0]
    for row in rows:
        if row["VolumeName"].startswith(f"{scan}_"):
            row["Findings_EN"] = findings
            row["Impressions_EN"] = row["Impressions_EN"] if impression is None else impression
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return scan


def test_changed_report_redoes_what_depends_on_it(data_root, source):
    rebuild_all(data_root, source)
    edit_report(source, "The heart is large.")
    assert counts(rebuild_all(data_root, source)) == {"ingest": 1, "label": 1, "embed": 1, "evaluate": 1, "report": 1}


def test_empty_report_is_rejected_and_leaves_the_retrieval(data_root, source):
    rebuild_all(data_root, source)
    scans = query(data_root, "select max(n) from current_retrieval")[0][0]
    scan = edit_report(source, "", "Not given.")
    assert rebuild_all(data_root, source)["label"]["rejected"] == 1
    assert query(data_root, "select item, reason from open_rejects where stage = 'label'") == [(scan, "empty_report")]
    assert query(data_root, "select max(n) from current_retrieval") == [(scans - 1,)]


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


def test_warehouse_made_from_scratch_is_the_same(data_root):
    tables = [table.name for table in store.schema.TABLES]
    before = {table: sorted(map(repr, query(data_root, f"select * from {table}"))) for table in tables}
    store.publish(data_root, from_scratch=True)
    assert before == {table: sorted(map(repr, query(data_root, f"select * from {table}"))) for table in tables}


def test_client_of_duckdb_opens_the_file_while_a_rebuild_runs(data_root, phantoms):
    with duckdb.connect(str(data_root / "warehouse.duckdb"), read_only=True) as connection:
        before = connection.execute("select count(*) from model_leaderboard").fetchone()
        from flows.evaluate import evaluate

        assert evaluate(data_root, "smoke", force=True)["done"] == 1
        assert connection.execute("select count(*) from model_leaderboard").fetchone() == before


def test_missing_radbert_is_an_error_that_says_what_to_do(data_root):
    from flows.label import label

    with pytest.raises(MissingInputError, match=r"RadBertClassifier\.pth .* there"):
        label(data_root)


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
    newer = train_labeller(data_root, kind="tfidf", hand_labels=hand_labels)["labeller_id"]
    count = query(data_root, f"select count_samples from current_models where model_id = '{newer}'")[0][0]
    assert count == len(list(csv.reader(hand_labels.read_text().splitlines()))) - 1
    assert label(data_root, "tfidf")["variant"] == newer != first["variant"]
    assert query(data_root, "select * from current_labels where value <> (probability >= threshold)::int") == []
    labellers = "select count(distinct labeller_id), min(agreement) >= 0 from label_agreement where n > 0"
    assert query(data_root, labellers) == [(3, True)]  # the one of the rebuild, and two of tf-idf


def write_hand_labels(data_root: Path, path: Path) -> Path:
    """The published labels of the ingested reports, as a file of hand labels."""
    rows = query(
        data_root,
        "select scan_id, findings, labels_wide.* exclude (scan_id, split, labeller_id) from labels_wide "
        "join current_reports using (scan_id) where labeller_id = 'published' and findings is not null",
    )
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("AccessionNo", "report_text", *ABNORMALITIES), *rows])
    return path


def test_unknown_kind_of_labeller_is_refused(data_root):
    from flows.train_labeller import train_labeller

    with pytest.raises(ConfigurationError, match="there are roberta, tfidf"):
        train_labeller(data_root, kind="forest")


def test_stage_without_its_input_says_which_stage_makes_it(tmp_path, phantoms):
    from flows.embed import embed
    from flows.ingest import ingest

    with pytest.raises(ConfigurationError, match="--source"):
        ingest(None, tmp_path)
    ingest(str(phantoms), tmp_path)
    with pytest.raises(MissingInputError, match="ctclip train"):
        embed(tmp_path, "smoke")
