"""A data root of an earlier version keeps working: it is read, a rebuild makes no model, its models load.

A rebuild repeats the stages whose VERSION was raised since, and no others.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from pathlib import Path

import duckdb
import pytest
from support.command_line import run_ctclip
from support.old_data_root import RAISED, extract_old_data_root, make_old_phantoms
from support.sources import find_volume

import ctclip_model
from ctclip_model.data.abnormalities import ABNORMALITIES
from ctclip_model.models.kinds import ModelKind
from ctclip_model.models.model_folder import load_model_folder
from tasks.plan.explain import explain_plan
from tasks.run.stage_run import open_run
from tasks.settings import LIMITS, STAGES
from tasks.upkeep.garbage import collect_garbage
from warehouse import store
from warehouse.store import query

COUNTS = {"volumes": 8, "shard_volumes": 8, "models": 4, "pages": 3}
OLD_LOCK = {"token": "0" * 32, "host": "elsewhere", "pid": 1, "started": 0.0, "run_id": "x", "heartbeat": time.time()}


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return extract_old_data_root(tmp_path_factory.mktemp("extracted"))


@pytest.fixture
def data_root(extracted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(extracted, tmp_path / "data"))


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_old_phantoms(tmp_path_factory.mktemp("phantoms"))


def read_tables(data_root: Path) -> dict[str, list[str]]:
    """Rows of every table, sorted, as text. The bookkeeping of migrations and views is left out."""
    with duckdb.connect(str(data_root / store.WAREHOUSE_FILE), read_only=True) as connection:
        names = [name for (name,) in connection.execute("select table_name from duckdb_tables()").fetchall()]
        return {
            name: sorted(map(repr, connection.execute(f"from {name}").fetchall()))
            for name in names
            if name not in ("migrations", "view_files")
        }


def models_of(data_root: Path) -> dict[str, Path]:
    """Folder of each model by its kind."""
    return {kind: data_root / path for kind, path in query(data_root, "select kind, path from current_models")}


def test_questions_are_answered_before_anything_is_published(data_root):
    assert {table: query(data_root, f"select count(*) from {table}")[0][0] for table in COUNTS} == COUNTS
    status = run_ctclip("status", "--data-root", data_root)
    assert (status.returncode, status.stderr) == (0, "")
    assert "smoke-91b38ec5d0" in status.stdout
    for question, *parameters in (("@best_model_by_label",), ("@compare", "--param", "model_id=smoke-91b38ec5d0")):
        answer = run_ctclip("sql", question, "--data-root", data_root, "--json", *parameters,
                            "--param", "dataset=phantom", "--param", "split=valid")  # fmt: skip
        assert answer.returncode == 0, answer.stderr
        assert '"ci_low"' in answer.stdout
    plan = run_ctclip("plan", "convert", "--data-root", data_root, "--json")
    assert json.loads(plan.stdout)["pending"] == 0


@pytest.mark.parametrize("stage", STAGES)
def test_plan_has_nothing_to_do_except_for_raised_versions(data_root, stage):
    reasons = [item["why"] for item in explain_plan(data_root, stage, 5)["items"]]
    assert bool(reasons) == (stage in RAISED)
    assert all(f"VERSION of {stage} raised" in reason for reason in reasons)


def test_publish_from_scratch_gives_the_same_rows(data_root):
    old = read_tables(data_root)
    del old["published_results"]  # migrations fill it, and later ones add rows
    store.publish(data_root)  # adds the columns of later migrations
    before = read_tables(data_root)
    assert all(row.removesuffix(")") in new for name in old for row, new in zip(old[name], before[name], strict=True))
    store.publish(data_root, from_scratch=True)
    after = read_tables(data_root)
    assert {name: after[name] for name in before} == before


@pytest.mark.usefixtures("prefect_server")
def test_rebuild_repeats_raised_versions_alone(data_root, phantoms):
    from flows.ingest import ingest
    from flows.rebuild import rebuild

    models = query(data_root, "from models")
    moved, *others = rebuild(str(phantoms), data_root, preset="smoke", labeller="tfidf")
    assert moved["done"] > 0  # the files have another address now
    assert {summary["stage"] for summary in others if summary["done"]} == RAISED
    assert query(data_root, "select bool_and(ci_method is not null) from current_metrics where ci_low is not null") == [
        (True,)
    ]
    assert {summary["stage"] for summary in others} == set(STAGES) - {"ingest"}
    assert ingest(None, data_root)["done"] == 0
    now = query(data_root, "from models")
    assert [row[: len(models[0])] for row in now] == models  # later migrations add columns at the end
    assert query(data_root, "select bool_or(is_stale) from stale_models") == [(False,)]


def test_nothing_of_it_is_garbage(data_root):
    assert collect_garbage(data_root).garbage == []


def test_lock_file_of_a_dead_holder_does_not_block(data_root):
    path = data_root / "locks/convert.json"
    path.write_text(json.dumps(OLD_LOCK))
    limits = dataclasses.replace(LIMITS, lease_expiry_s=0.2, lease_wait_s=60.0)
    with open_run(data_root, "convert", limits=limits) as run:
        assert run.run_id
    assert not path.exists()


def test_models_load_under_their_kinds(data_root, phantoms):
    folders = models_of(data_root)
    kinds = set(ModelKind) - {ModelKind.external}  # newer than this data root
    assert set(folders) == kinds
    assert {kind: load_model_folder(folder).kind for kind, folder in folders.items() if kind != "labeller"} == {
        kind: kind for kind in kinds if kind != "labeller"
    }
    volume = find_volume(phantoms, "valid_1_a_1")
    rows = query(
        data_root,
        "select model_id, to_json(map(list(abnormality), list(probability))) from current_predictions "
        "where item = 'valid_1_a' and protocol in ('zero-shot', 'lipro', 'vocabfine') group by 1",
    )
    assert len(rows) == 3
    for model_id, expected in rows:
        (predicted,) = ctclip_model.open_model(data_root / "models" / model_id).predict([volume], orientation="stored")
        by_name = dict(zip(ABNORMALITIES, predicted.probabilities, strict=True))
        assert by_name == pytest.approx(json.loads(expected), abs=1e-5)
    labeller = ctclip_model.load_labeller(folders["labeller"])
    assert labeller.label(["There is emphysema."]).shape == (1, 18)
