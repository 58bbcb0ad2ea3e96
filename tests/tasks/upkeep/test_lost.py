"""A lost warehouse, lost shards and lost models are noticed and made again."""

from __future__ import annotations

import pytest
from support.command_line import run_ctclip

from tasks.upkeep import doctor
from warehouse import store

pytestmark = pytest.mark.usefixtures("prefect_server")


def test_ingest_and_rebuild_publish_the_records_of_a_lost_warehouse(few_phantoms, tmp_path):
    from flows.ingest import ingest
    from flows.rebuild import rebuild

    ingest(str(few_phantoms), tmp_path)
    for run in (ingest, lambda _, root: rebuild(None, root, to_stage="ingest")[0]):
        (tmp_path / store.WAREHOUSE_FILE).unlink()
        assert "nothing changed" in run(None, tmp_path)["detail"]


def test_questions_to_a_lost_warehouse_name_the_publish_and_write_nothing(few_phantoms, tmp_path):
    from flows.ingest import ingest

    ingest(str(few_phantoms), tmp_path)
    (tmp_path / store.WAREHOUSE_FILE).unlink()
    before = sorted(tmp_path.rglob("*"))
    for command in (["status"], ["plan", "convert"], ["sql", "select 1"], ["export", "volumes"]):
        done = run_ctclip(*command, "--data-root", tmp_path)
        assert done.returncode == 1
        assert "run `ctclip publish`" in done.stderr
    assert "run `ctclip publish`" in [result.text for result in doctor.check_data_root(tmp_path)][-1]
    assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_data_root_is_sent_to_the_ingest(tmp_path):
    for command in (["status"], ["plan", "convert"], ["convert"]):
        assert "run `ctclip ingest`" in run_ctclip(*command, "--data-root", tmp_path / "new").stderr
