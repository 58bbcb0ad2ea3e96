"""Prefect is told of changed data at least once, and of unchanged data never."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from support.processes import wait_for

from tasks.run.stage_run import StageRun
from tasks.stages import announce
from tasks.stages.announce import DATA_CHANGED, read_untold

pytestmark = pytest.mark.usefixtures("prefect_server")


def is_known(source: Path) -> bool:
    """True if the server has an event of the source."""
    asked = {"event": {"name": [DATA_CHANGED]}, "resource": {"id": [f"ctclip.source.{source.as_uri()}"]}}
    with get_client(sync_client=True) as client:
        return bool(client.request("POST", "/events/filter", json={"filter": asked}).json()["total"])


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Sources of the events that the server took."""
    sources: list[str] = []
    tell = announce._tell

    def note(data_root: Path, source: str, payload: Any) -> None:
        tell(data_root, source, payload)
        sources.append(source)

    monkeypatch.setattr(announce, "_tell", note)
    return sources


@pytest.fixture
def source(few_phantoms: Path, tmp_path: Path) -> Path:
    """The phantoms in a folder of this test's own, so that it counts its own events."""
    return Path(shutil.copytree(few_phantoms, tmp_path / "source"))


def run_until(source: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch, table: str | None) -> None:
    """Runs an ingest that dies after it has recorded a table's rows, or, for None, that reaches no server."""
    from flows.ingest import ingest

    with monkeypatch.context() as patched:
        if table is None:
            patched.setattr(announce, "get_client", lambda **_: 1 / 0)
            ingest(str(source), data_root)
            return
        record = StageRun.record

        def die(run: StageRun, name: str, rows: object) -> int:
            count = record(run, name, rows)
            if name == table:
                raise KeyboardInterrupt
            return count

        patched.setattr(StageRun, "record", die)
        with pytest.raises(KeyboardInterrupt):
            ingest(str(source), data_root)


@pytest.mark.parametrize("table", ["published_labels", "sources", None])
def test_change_that_was_recorded_and_not_told_is_told_by_the_next_ingest(source, tmp_path, monkeypatch, told, table):
    from flows.ingest import ingest

    data_root = tmp_path / "data"
    run_until(source, data_root, monkeypatch, table)
    assert told == []
    assert list(read_untold(data_root)) == [source.as_uri()]
    ingest(str(source), data_root)
    assert told == [source.as_uri()]
    assert read_untold(data_root) == {}
    assert ingest(str(source), data_root)["done"] == 0
    assert told == [source.as_uri()]
    wait_for(lambda: is_known(source))


def test_rebuild_goes_on_with_a_change_itself(source, tmp_path, told):
    from flows.rebuild import rebuild

    rebuild(str(source), tmp_path / "data", to_stage="ingest")
    assert (told, read_untold(tmp_path / "data")) == ([], {})


def test_rebuild_that_dies_leaves_the_change_to_the_next_ingest(source, tmp_path, monkeypatch, told):
    from flows import rebuild as module
    from flows.ingest import ingest

    run_stage = module.run_stage

    def die(stage: str, options: object) -> list[dict[str, object]]:
        if stage == "convert":
            raise KeyboardInterrupt
        return run_stage(stage, options)

    monkeypatch.setattr(module, "run_stage", die)
    with pytest.raises(KeyboardInterrupt):
        module.rebuild(str(source), tmp_path / "data", to_stage="convert")
    ingest(str(source), tmp_path / "data")
    assert told == [source.as_uri()]
