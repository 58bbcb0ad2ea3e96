"""Pending is a query: what is wanted, less what is done and what was refused for good."""

import dataclasses
import threading

import pytest

from ctclip_model.errors import LeaseLostError, StageFailedError, VolumeError
from tasks.run import lease
from tasks.run.pending import plan_items
from tasks.run.records import new_run_id
from tasks.run.selection import Selection
from tasks.run.stage_run import open_run
from tasks.settings import LIMITS
from warehouse import store

WANTED = {"valid_1_a_1": "f1", "train_1_a_1": "f2", "train_2_a_1": "f3"}


def plan(data_root, wanted, finish=(), **options):
    """Plans a conversion, finishes some items of it, and returns what was planned."""
    with open_run(data_root, "convert", "recipe") as run:
        planned = plan_items(run, "recipe", wanted, **options)
        done = [{"volume_name": item, "recipe_id": "recipe", "fingerprint": planned[item]} for item in finish]
        if done:
            run.record("shard_volumes", done)
    return planned


def test_everything_is_pending_then_nothing(tmp_path):
    assert plan(tmp_path, WANTED, finish=WANTED) == WANTED
    assert plan(tmp_path, WANTED) == {}


def test_only_what_moved_is_pending(tmp_path):
    plan(tmp_path, WANTED, finish=WANTED)
    assert plan(tmp_path, WANTED | {"train_2_a_1": "f9"}) == {"train_2_a_1": "f9"}


def test_item_that_is_no_longer_wanted_is_not_pending(tmp_path):
    plan(tmp_path, WANTED)
    assert set(plan(tmp_path, {"train_1_a_1": "f2"})) == {"train_1_a_1"}
    with store.read(tmp_path) as connection:
        assert connection.execute("select count(*) from current_wanted").fetchone() == (1,)


def test_force_plans_what_is_done(tmp_path):
    plan(tmp_path, WANTED, finish=WANTED)
    assert plan(tmp_path, WANTED, force=True) == WANTED


def test_bad_data_stays_rejected_until_it_changes_or_is_retried(tmp_path):
    with open_run(tmp_path, "convert", "recipe") as run:
        plan_items(run, "recipe", WANTED)
        run.reject(VolumeError("train_1_a_1", "truncated", "ends early"), fingerprint="f2")
    assert "train_1_a_1" not in plan(tmp_path, WANTED)
    assert "train_1_a_1" in plan(tmp_path, WANTED, retry_rejects=True)
    assert "train_1_a_1" in plan(tmp_path, WANTED | {"train_1_a_1": "mended"})


def test_selection_narrows_the_run_and_not_what_is_wanted(tmp_path):
    assert set(plan(tmp_path, WANTED, selection=Selection(split="train", limit=1))) == {"train_1_a_1"}
    assert set(plan(tmp_path, WANTED)) == set(WANTED)


def test_run_that_does_nothing_leaves_no_row(tmp_path):
    plan(tmp_path, WANTED, finish=WANTED)
    plan(tmp_path, WANTED)
    with store.read(tmp_path) as connection:
        assert connection.execute("select count(distinct run_id) from runs").fetchone() == (1,)


def test_failed_run_is_recorded_with_its_reason_and_keeps_what_it_did(tmp_path):
    strict = dataclasses.replace(LIMITS, rejects_tolerated=2)
    with (
        pytest.raises(StageFailedError, match="more than 50%"),
        open_run(tmp_path, "convert", "recipe", limits=strict) as run,
    ):
        plan_items(run, "recipe", WANTED)
        for item, fingerprint in WANTED.items():
            run.reject(VolumeError(item, "truncated", "ends early"), fingerprint=fingerprint)
    with store.read(tmp_path) as connection:
        assert connection.execute("select count(*) from current_rejects").fetchone() == (3,)
        rows = connection.execute("select status, detail like 'StageFailedError%' from runs order by 1").fetchall()
    assert rows == [("failed", True), ("running", False)]


def test_dead_run_is_buried_by_the_next(tmp_path):
    run_context = open_run(tmp_path, "convert", "recipe")
    run = run_context.__enter__()
    plan_items(run, "recipe", WANTED)
    (tmp_path / "locks/convert.lease").unlink()  # as if its process had been killed
    plan(tmp_path, WANTED)
    with store.read(tmp_path) as connection:
        statuses = connection.execute("select status from runs where run_id = ? order by 1", [run.run_id]).fetchall()
    assert statuses == [("died",), ("running",)]
    with pytest.raises(LeaseLostError):
        run_context.__exit__(None, None, None)


def test_run_that_waited_for_another_counts_as_later(tmp_path, monkeypatch):
    waits, run_ids = threading.Event(), []
    monkeypatch.setattr(lease.logger, "warning", lambda *_: waits.set())

    def second():
        with open_run(tmp_path, "convert", "recipe") as run:
            run_ids.append(run.run_id)

    with open_run(tmp_path, "convert", "recipe"):
        thread = threading.Thread(target=second)
        thread.start()
        assert waits.wait(timeout=60)
        while_it_waits = new_run_id(tmp_path)
    thread.join(timeout=60)
    assert run_ids
    assert run_ids[0] > while_it_waits
