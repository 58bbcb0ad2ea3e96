"""Checks of a publish look at the rows that it loads. They refuse all that checks of every row would refuse."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import duckdb
import pytest
from support.records import RUNS, volume_row, write_run

from ctclip_model.errors import CheckFailedError
from tasks.run.records import RecordWriter
from tasks.upkeep.verify import verify
from warehouse import fold, schema, store
from warehouse.kept_open import KEPT
from warehouse.tables import TABLES

SCORED = {"model_id": "m", "dataset": "d", "split": "valid", "protocol": "p", "unit": "scan", "abnormality": "x"}
METRIC = SCORED | {"label_source": "published", "metric": "auroc"}


def predictions(count: int) -> list[dict[str, Any]]:
    return [SCORED | {"item": f"valid_{patient}_a", "probability": 0.5} for patient in range(1, count + 1)]


def split_row(reconstruction: int, split: str) -> dict[str, Any]:
    return volume_row(f"train_1_a_{reconstruction}", patient_id="train_1", split=split)


@pytest.mark.parametrize(
    ("check", "before", "after"),
    [
        ("patient_in_two_splits", {"volumes": [split_row(1, "train")]}, {"volumes": [split_row(2, "valid")]}),
        (
            "metric_counts",
            {"predictions": predictions(3), "metrics": [METRIC | {"n": 3}]},
            {"predictions": predictions(2)},
        ),
        ("metric_counts", {"predictions": predictions(3)}, {"metrics": [METRIC | {"n": 4}]}),
        (
            "patient_overlap",
            {"model_samples": [{"model_id": "m", "sample_id": "train_1_a_1", "split": "train"}]},
            {"predictions": [SCORED | {"item": "train_1_a", "probability": 0.5}]},
        ),
        (
            "patient_overlap",
            {"predictions": [SCORED | {"item": "train_1_a", "probability": 0.5}]},
            {"model_samples": [{"model_id": "m", "sample_id": "train_1_a_1", "split": "train"}]},
        ),
        (
            "latent_norm",
            {"latents": [{"model_id": "m", "item": str(n), "latent": [1.0, 0.0]} for n in (1, 2)]},
            {"latents": [{"model_id": "m", "item": "3", "latent": [1.0, 0.0, 0.0]}]},
        ),
    ],
)
def test_rows_that_contradict_those_of_an_earlier_publish_are_refused(tmp_path, check, before, after):
    write_run(tmp_path, 0, **before)
    store.publish(tmp_path)
    write_run(tmp_path, 1, **after)
    with pytest.raises(CheckFailedError, match=f"check {check} failed"):
        store.publish(tmp_path)


def test_a_key_that_a_run_repeats_in_a_later_publish_is_refused(tmp_path):
    write_run(tmp_path, 0, status=None, volumes=[volume_row("train_1_a_1")])
    store.publish(tmp_path)
    writer = RecordWriter(tmp_path, RUNS[0])
    writer.count_files = 9
    writer.write("volumes", [volume_row("train_1_a_1", "other")])
    with pytest.raises(CheckFailedError, match="check unique_volumes failed"):
        store.publish(tmp_path)


def test_current_rows_of_one_key_are_of_one_run():
    for table in TABLES:
        if table.key:
            assert {*(table.group or ("run_id",))} <= {*table.key}, table.name


def write_wrong_label(data_root: Path, forget_checks: bool = False) -> None:
    """Writes into the published file, as no publish does."""
    path = data_root / store.WAREHOUSE_FILE
    path.chmod(0o644)
    KEPT.close()
    with duckdb.connect(str(path)) as connection:
        connection.execute("insert into labels (run_id, scan_id, probability) values (?, 'train_1_a', 7)", [RUNS[0]])
        if forget_checks:
            connection.execute("update view_files set sha256 = 'older' where name = 'checks'")


def test_rows_that_other_checks_have_passed_are_checked_anew(tmp_path):
    write_run(tmp_path, 0, volumes=[volume_row("train_1_a_1")])
    store.publish(tmp_path)
    write_wrong_label(tmp_path, forget_checks=True)
    with pytest.raises(CheckFailedError, match="check probability_range failed"):
        store.publish(tmp_path)
    assert store.publish(tmp_path, from_scratch=True).is_changed


def test_verify_checks_every_row_of_the_warehouse(tmp_path):
    write_run(tmp_path, 0, volumes=[volume_row("train_1_a_1")])
    store.publish(tmp_path)
    assert verify(tmp_path).damages == []
    write_wrong_label(tmp_path)
    (damage,) = verify(tmp_path).damages
    assert damage.path == store.WAREHOUSE_FILE
    assert "check probability_range failed" in damage.fault
    store.publish(tmp_path, from_scratch=True)
    assert verify(tmp_path).damages == []


def draw_rows(numbers: random.Random) -> dict[str, list[dict[str, Any]]]:
    """Rows of two tables, now and then wrong by themselves or beside those of another run."""

    def mostly(usual: Any, other: Any) -> Any:
        return other if numbers.random() < 0.1 else usual

    patient, model = numbers.randint(1, 6), {"model_id": numbers.choice("mno")}
    volume = volume_row(f"train_{patient}_a_{numbers.randint(1, 2)}", split=mostly("train", "valid"))
    label = {"scan_id": "s", "abnormality": "x", "labeller_id": "l", "probability": mostly(0.5, 2.0)}
    latent = {"kind": "volume", "item": str(patient), "latent": mostly([1.0, 0.0], [1.0, 0.0, 0.0])}
    predicted = [
        SCORED | model | {"item": f"{mostly('valid', 'train')}_{item}_a", "probability": 0.5}
        for item in range(numbers.choice([2, 3]))
    ]
    drawn = {
        "volumes": [volume | {"is_withdrawn": mostly(None, True)}] * mostly(1, 2),
        "labels": [label],
        "latents": [model | latent],
        "predictions": predicted,
        "metrics": [METRIC | model | {"n": mostly(2, 3)}],
        "model_samples": [model | {"sample_id": f"train_{patient}_a_1", "split": "train"}],
    }
    return {table: drawn[table] for table in numbers.sample(sorted(drawn), 2)}


@pytest.mark.parametrize("seed", range(4))
def test_checks_of_loaded_rows_find_what_checks_of_all_rows_find(tmp_path, seed):
    numbers, outcomes = random.Random(seed), []
    with duckdb.connect() as connection:
        schema.migrate(connection)
        schema.create_views(connection)
        for step in range(25):
            run_id = f"2026-01-01T00-00-{step:02d}-x" if numbers.random() < 0.8 else f"2025-01-01T00-00-{step:02d}-x"
            writer = RecordWriter(tmp_path, run_id)
            writer.write("runs", [{"run_id": run_id, "status": "running", "stage": "convert", "variant": ""}])
            for table, rows in draw_rows(numbers).items():
                writer.write(table, rows)
            files = [file for file in fold.list_records(tmp_path) if file.run_id == run_id]
            connection.begin()
            loaded = fold.load_records(connection, tmp_path, files)
            few, every = (
                find_fault(schema.check_loaded, connection, loaded, [run_id]),
                find_fault(schema.check_all, connection),
            )
            assert (few is None) == (every is None), (run_id, few, every)
            outcomes.append(few is None)
            connection.commit() if few is None else connection.rollback()
    assert {*outcomes} == {True, False}


def find_fault(check: Any, *arguments: Any) -> str | None:
    try:
        check(*arguments)
    except CheckFailedError as error:
        return str(error)
    return None
