"""The whole pipeline on phantoms with every anomaly: what a rebuild makes, and what a rerun makes again."""

from __future__ import annotations

import duckdb
import numpy as np
import pytest
import torch
from support.rebuilds import count_done, find_labeller, rebuild_all
from support.sources import find_volume

from ctclip_model.config import VERSIONS, Recipe, smoke
from ctclip_model.data.abnormalities import ABNORMALITIES
from ctclip_model.errors import ConfigurationError, MissingInputError
from ctclip_model.evaluation.predict import open_model
from ctclip_model.json_config import parse_config
from ctclip_model.models.find_model import find_model
from ctclip_model.models.kinds import ModelKind
from ctclip_model.models.model_folder import load_model_folder
from tasks.models.import_model import ImportOptions, import_model
from tasks.run.progress import REPORTER, LogReporter
from tasks.run.stage_run import open_run
from tasks.settings import STAGES
from warehouse import store
from warehouse.store import query

pytestmark = pytest.mark.usefixtures("prefect_server")


def test_rebuild_fills_the_warehouse(built):
    for table in (
        "volumes", "reports", "published_labels", "exclusions", "shards", "shard_volumes", "labels", "models",
        "model_samples", "training_steps", "latents", "predictions", "metrics", "retrieval", "curves", "decisions",
        "comparisons", "pages", "runs",
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


def test_plan_has_nothing_to_do_after_a_rebuild_and_everything_when_versions_are_raised(built, monkeypatch):
    from tasks.plan.explain import explain_plan

    assert {stage: explain_plan(built, stage, 5)["items"] for stage in STAGES} == {stage: [] for stage in STAGES}
    for stage in ("label", "train", "evaluate", "report"):
        monkeypatch.setitem(VERSIONS, stage, VERSIONS[stage] + 1)
        assert set(explain_plan(built, stage, 5)["reasons"]) == {f"VERSION of {stage} raised"}


@pytest.mark.slow
def test_rebuild_evaluates_the_model_of_its_own_seed(data_root, phantoms):
    first = query(data_root, "select model_id from current_models where kind = 'ct-clip'")[0][0]
    assert count_done(rebuild_all(data_root, phantoms, seed=1))["train"] == 1
    assert query(data_root, "select count(distinct model_id) from current_metrics") == [(6,)]
    again = rebuild_all(data_root, phantoms, seed=0)
    assert count_done(again) == {"report": 3}  # the first models' pages show the comparisons with the new ones
    assert again["evaluate"]["variant"] == first
    assert count_done(rebuild_all(data_root, phantoms, seed=0)) == {}


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
    assert count_done(done).keys() == {"train", "embed", "evaluate", "report"}
    assert count_done(done)["evaluate"] == 2 + 3  # and compared with the models of the first rebuild
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
    labeller = find_labeller(data_root)
    trained = query(data_root, "select model_id, kind, path from current_models where kind in ('ct-clip', 'lipro')")
    for parent, kind, path in trained:
        weights = data_root / f"{kind}.pt"
        torch.save(load_model_folder(data_root / path).model.state_dict(), weights)
        options = ImportOptions(ModelKind(kind), data_root / path / "tokenizer.json", "smoke")
        imported = import_model(data_root, str(weights), options).model_id
        done = rebuild_all(data_root, phantoms, model=imported, labeller=labeller)
        assert done.keys() == {"ingest", "convert", "label", "embed", "evaluate", "report"}
        assert count_done(done).keys() == {"embed", "evaluate", "report"}
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
