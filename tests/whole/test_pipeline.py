"""The whole pipeline on phantoms with every anomaly: what a rebuild makes, and what a rerun makes again."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
import torch
from support.sources import edit_report, edit_rows, find_volume

from ctclip_model.config import VERSIONS, Recipe, smoke
from ctclip_model.data.abnormalities import ABNORMALITIES
from ctclip_model.data.phantom import ANOMALIES, PhantomConfig, make_phantoms
from ctclip_model.device import Precision
from ctclip_model.errors import ConfigurationError, MissingInputError
from ctclip_model.evaluation.predict import open_model
from ctclip_model.json_config import parse_config
from ctclip_model.models.find_model import find_model
from ctclip_model.models.model_folder import load_model_folder
from tasks.models.import_model import ImportOptions, import_model
from tasks.run.progress import REPORTER, LogReporter
from tasks.run.stage_run import open_run
from tasks.settings import STAGES
from tasks.sources.tables import LABELS
from warehouse import store
from warehouse.store import query

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
    """Summary of each stage. Several runs of a stage count as one: their work is added, all else is the first's."""
    from flows.ingest import ingest
    from flows.rebuild import rebuild
    from flows.train_labeller import train_labeller

    done = {"ingest": ingest(str(source), data_root)}
    options.setdefault("labeller", train_labeller(data_root, "smoke")["labeller_id"])
    summaries = rebuild(None, data_root, "smoke", from_stage="convert", **options)
    for summary in summaries:
        first = done.setdefault(summary["stage"], summary)
        if first is not summary:
            first["done"] += summary["done"]
            first["rejected"] += summary["rejected"]
    return done


def counts(done: dict[str, dict[str, Any]]) -> dict[str, int]:
    return {stage: summary["done"] for stage, summary in done.items() if summary["done"]}


def labeller_of(data_root: Path) -> str:
    return query(data_root, "select model_id from current_models where kind = 'labeller'")[0][0]


def converted_train_volume(data_root: Path) -> str:
    return query(data_root, "select min(volume_name) from training_samples")[0][0]


def test_rebuild_fills_the_warehouse(built):
    for table in (
        "volumes", "reports", "published_labels", "exclusions", "shards", "shard_volumes", "labels", "models",
        "model_samples", "training_steps", "latents", "predictions", "metrics", "retrieval", "curves", "comparisons",
        "pages", "runs",
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


def test_plan_has_nothing_to_do_after_a_rebuild_and_everything_when_versions_are_raised(built, monkeypatch):
    from tasks.plan.explain import explain_plan

    assert {stage: explain_plan(built, stage, 5)["items"] for stage in STAGES} == {stage: [] for stage in STAGES}
    for stage in ("label", "train", "evaluate", "report"):
        monkeypatch.setitem(VERSIONS, stage, VERSIONS[stage] + 1)
        assert set(explain_plan(built, stage, 5)["reasons"]) == {f"VERSION of {stage} raised"}


@pytest.mark.slow
def test_same_data_at_another_place_is_recorded_and_nothing_is_made_again(data_root, source):
    assert set(counts(rebuild_all(data_root, source))) == {"ingest"}


def test_changed_volume_redoes_what_depends_on_it_and_leaves_the_model_stale(data_root, phantoms, source):
    from flows.ingest import ingest
    from tasks.plan.explain import explain_plan

    ingest(str(source), data_root)
    name = converted_train_volume(data_root)
    other = query(data_root, "select max(volume_name) from training_samples")[0][0]
    shutil.copyfile(find_volume(source, other), find_volume(source, name))
    assert ingest(str(source), data_root)["done"] == 1
    planned = explain_plan(data_root, "convert", 5)
    assert (planned["items"][0]["item"], planned["reasons"]) == (name, {"file changed": 1})
    assert query(data_root, f"select * from training_samples where volume_name = '{name}'") == []
    done = rebuild_all(data_root, source)
    assert counts(done) == {"convert": 1, "embed": 2, "evaluate": 6, "report": 3}
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
def test_rebuild_evaluates_the_model_of_its_own_seed(data_root, phantoms):
    first = query(data_root, "select model_id from current_models where kind = 'ct-clip'")[0][0]
    assert counts(rebuild_all(data_root, phantoms, seed=1))["train"] == 1
    assert query(data_root, "select count(distinct model_id) from current_metrics") == [(6,)]
    again = rebuild_all(data_root, phantoms, seed=0)
    assert counts(again) == {}
    assert again["evaluate"]["variant"] == first


@pytest.mark.slow
def test_another_precision_is_another_result_until_asked_otherwise(data_root, source):
    from flows.ingest import ingest
    from tasks.plan.explain import explain_plan

    rebuild_all(data_root, source)
    done = rebuild_all(data_root, source, dtype=Precision.bfloat16)
    assert set(counts(done)) == {"label", "embed", "evaluate", "report"}
    assert counts(rebuild_all(data_root, source, dtype=Precision.bfloat16)) == {}
    scan = edit_report(source, "The heart is large.")
    ingest(str(source), data_root)
    assert [item["item"] for item in explain_plan(data_root, "label", 5)["items"]] == [scan]


def test_own_volumes_get_the_probabilities_of_the_evaluation(built, phantoms):
    """Almost: shards keep whole HU, a file of one's own is not rounded."""
    rows = query(
        built,
        "select min(volume_name), scan_id from evaluation_samples join current_shard_volumes using (volume_name) "
        "join current_models using (model_id) where kind = 'ct-clip' and evaluation_samples.split = 'valid' "
        "and spacing_note is null group by scan_id having count(*) = 1",
    )
    in_order = "list(probability order by list_position($names, abnormality))"
    with store.read(built) as connection:
        recorded = dict(
            connection.execute(
                f"select item, {in_order} from predictions where protocol = 'zero-shot' group by item",
                {"names": list(ABNORMALITIES)},
            ).fetchall()
        )
    folder = find_model(built / "models", None)
    assert parse_config(Recipe, load_model_folder(folder).info["recipe"]) == smoke().recipe
    predicted = open_model(folder).predict([find_volume(phantoms, volume) for volume, _ in rows])
    ours = np.stack([volume.probabilities for volume in predicted])
    assert ours == pytest.approx(np.array([recorded[scan] for _, scan in rows]), abs=1e-5)


def test_rebuild_fine_tunes_and_scores_each_kind_by_its_own_protocol(built):
    scored = query(built, "select distinct kind, protocol from current_metrics join current_models using (model_id)")
    assert set(scored) == {
        ("ct-clip", "zero-shot"),
        ("lipro", "lipro"),
        ("vocabfine", "vocabfine"),
        *((kind, "published") for kind in ("ct-clip", "lipro", "vocabfine")),
    }
    parents = query(
        built, "select count(*) from current_models a join current_models b on a.parent_model_id = b.model_id"
    )
    assert parents == [(2,)]
    embedded = query(built, "select distinct kind from current_models semi join current_latents using (model_id)")
    assert set(embedded) == {("ct-clip",), ("vocabfine",)}  # a LiPro reads its parent's latents
    retrieved = query(built, "select distinct kind from current_models semi join current_retrieval using (model_id)")
    assert set(retrieved) == {("ct-clip",), ("vocabfine",)}  # and has no text side
    assert query(built, "select protocol from model_leaderboard where not is_published order by 1") == [
        ("lipro",), *[("published",)] * 3, ("vocabfine",), ("zero-shot",),
    ]  # fmt: skip
    assert query(built, "select count(*) from current_pages") == [(3,)]


@pytest.mark.slow
def test_rebuild_fine_tunes_what_it_is_asked_to(data_root, phantoms):
    done = rebuild_all(data_root, phantoms, finetune_kinds=(), seed=1)
    assert counts(done).keys() == {"train", "embed", "evaluate", "report"}
    assert counts(done)["evaluate"] == 2 + 3  # and compared with the models of the first rebuild
    with pytest.raises(ConfigurationError, match="no kind 'lora'"):
        rebuild_all(data_root, phantoms, finetune_kinds=("lora",))


class PowerCut(LogReporter):
    """Ends the process, as it were, after so many samples."""

    def update(self, stage: str, done: int, note: str) -> None:
        if stage == "finetune" and done >= 8:
            raise RuntimeError("power cut")


def test_interrupted_fine_tuning_goes_on_from_its_checkpoint(data_root):
    from flows.finetune import finetune

    token = REPORTER.set(PowerCut())
    try:
        with pytest.raises(RuntimeError, match="power cut"):
            finetune(data_root, "smoke", "vocabfine", seed=1)
    finally:
        REPORTER.reset(token)
    count = "select count(*) from current_models where kind = 'vocabfine'"
    assert query(data_root, count) == [(1,)]
    done, _ = finetune(data_root, "smoke", "vocabfine", seed=1)
    assert query(data_root, count) == [(2,)]
    steps = query(data_root, f"select min(step) from current_training_steps where run_id = '{done['run_id']}'")
    assert steps == [(2,)]  # step 1 (four samples) had a checkpoint, step 2 was recorded and not saved


@pytest.mark.slow
def test_changed_label_leaves_the_fine_tuned_models_stale_and_the_others_not(data_root, source):
    rebuild_all(data_root, source)
    name = converted_train_volume(data_root)
    scan = name.rsplit("_", 1)[0]

    def flip(row: dict[str, str]) -> None:
        if row["VolumeName"].startswith(f"{scan}_"):
            row["Emphysema"] = str(1 - int(float(row["Emphysema"])))

    edit_rows(source / LABELS["train"], flip)
    done = rebuild_all(data_root, source, labeller=labeller_of(data_root))
    assert counts(done) == {"ingest": 18, "evaluate": 6, "report": 3}
    assert "samples moved" in done["finetune"]["detail"]
    assert done["train"]["detail"] == ""
    stale = query(data_root, "select kind from stale_models join current_models using (model_id) where is_stale")
    assert sorted(stale) == [("lipro",), ("vocabfine",)]


def test_lipro_without_a_parent_is_scored_on_the_latents_of_its_own_trunk(data_root):
    from flows.embed import embed
    from flows.evaluate import evaluate
    from flows.finetune import finetune

    lipro = query(data_root, "select model_id from current_models where kind = 'lipro'")[0][0]
    with open_run(data_root, "finetune") as run:
        columns = "* exclude (parent_model_id, model_id, run_id)"
        with store.read(data_root) as connection:
            table = connection.sql(f"select {columns}, 'orphan' as model_id from current_models where kind = 'lipro'")
            run.record("models", table.to_arrow_table())
    assert embed(data_root, "smoke", lipro)["done"] == 0
    assert embed(data_root, "smoke", "orphan")["variant"] == "orphan"
    assert evaluate(data_root, "smoke", "orphan")["done"] == 2 + 3
    scores = {
        model_id: query(data_root, f"select * exclude (model_id, fingerprint, run_id) from current_predictions "
                                   f"where model_id = '{model_id}' order by all")
        for model_id in (lipro, "orphan")
    }  # fmt: skip
    assert len(scores["orphan"]) == len(scores[lipro])
    assert [row[:-1] for row in scores["orphan"]] == [row[:-1] for row in scores[lipro]]
    assert [row[-1] for row in scores["orphan"]] == pytest.approx([row[-1] for row in scores[lipro]], abs=1e-6)
    with pytest.raises(ConfigurationError, match="is a LiPro"):
        finetune(data_root, "smoke", "vocabfine", lipro)


@pytest.mark.slow
def test_rebuild_of_an_imported_model_trains_nothing_and_scores_it(data_root, phantoms):
    labeller = labeller_of(data_root)
    trained = query(data_root, "select model_id, kind, path from current_models where kind in ('ct-clip', 'lipro')")
    for parent, kind, path in trained:
        weights = data_root / f"{kind}.pt"
        torch.save(load_model_folder(data_root / path).model.state_dict(), weights)
        options = ImportOptions(kind, data_root / path / "tokenizer.json", "smoke")
        imported = import_model(data_root, str(weights), options).model_id
        done = rebuild_all(data_root, phantoms, model=imported, labeller=labeller)
        assert done.keys() == {"ingest", "convert", "label", "embed", "evaluate", "report"}
        assert counts(done).keys() == {"embed", "evaluate", "report"}
        ours, theirs = (
            query(
                data_root,
                "select item, abnormality, round(probability, 5) from current_predictions "
                f"where model_id = '{model}' order by all",
            )
            for model in (imported, parent)
        )
        assert ours == theirs != []
    embedded = "select distinct kind from current_latents where model_id = "
    assert query(data_root, f"{embedded} (select model_id from current_models where kind = 'lipro' "
                            "and source_sha256 is not null)") == [("volume",)]  # fmt: skip
    with pytest.raises(ConfigurationError, match="no model 'absent'"):
        rebuild_all(data_root, phantoms, model="absent", labeller=labeller)


def test_changed_report_redoes_what_depends_on_it(data_root, source):
    from flows.ingest import ingest

    ingest(str(source), data_root)
    edit_report(source, "The heart is large.")
    assert counts(rebuild_all(data_root, source)) == {"ingest": 1, "label": 1, "embed": 2, "evaluate": 9, "report": 3}


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


def test_warehouse_made_from_scratch_is_the_same(data_root):
    tables = [table.name for table in store.schema.TABLES]
    before = {table: sorted(map(repr, query(data_root, f"select * from {table}"))) for table in tables}
    store.publish(data_root, from_scratch=True)
    assert before == {table: sorted(map(repr, query(data_root, f"select * from {table}"))) for table in tables}


def test_client_of_duckdb_opens_the_file_while_a_rebuild_runs(data_root, phantoms):
    with duckdb.connect(str(data_root / "warehouse.duckdb"), read_only=True) as connection:
        before = connection.execute("select count(*) from model_leaderboard").fetchone()
        from flows.evaluate import evaluate

        assert evaluate(data_root, "smoke", force=True)["done"] == 2
        assert connection.execute("select count(*) from model_leaderboard").fetchone() == before


def test_missing_radbert_is_an_error_that_says_what_to_do(data_root):
    from flows.label import label

    with pytest.raises(MissingInputError, match=r"ctclip fetch-models radbert"):
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


def test_unknown_kind_of_labeller_is_refused(data_root):
    from flows.train_labeller import train_labeller

    with pytest.raises(ConfigurationError, match="choose from roberta, tfidf"):
        train_labeller(data_root, kind="forest")


def test_stage_without_its_input_says_which_stage_makes_it(tmp_path, phantoms):
    from flows.embed import embed
    from flows.ingest import ingest

    with pytest.raises(ConfigurationError, match="--source"):
        ingest(None, tmp_path)
    ingest(str(phantoms), tmp_path)
    with pytest.raises(MissingInputError, match="ctclip train"):
        embed(tmp_path, "smoke")
