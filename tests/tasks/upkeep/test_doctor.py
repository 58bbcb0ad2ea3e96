"""`ctclip doctor` names each fault of a machine and its remedy."""

from __future__ import annotations

import http.server
import json
import shutil
import threading
from pathlib import Path
from typing import ClassVar

import pytest

from tasks.settings import LIMITS, RAW_CACHE_GB
from tasks.upkeep import doctor
from tasks.upkeep.prefect_server import list_next_runs
from warehouse import store


class Server(http.server.BaseHTTPRequestHandler):
    """Answers as a Prefect server does, from a table of answers by path."""

    answers: ClassVar[dict[str, object]] = {}

    def do_POST(self) -> None:
        content = json.dumps(self.answers[self.path]).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch):
    server = http.server.HTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{server.server_port}/api")
    monkeypatch.setattr(Server, "answers", {})
    yield Server.answers
    server.shutdown()
    thread.join()
    server.server_close()


def test_installed_packages_are_within_their_bounds():
    assert [result.is_bad for result in doctor.check_versions()] == [False]


def test_missing_and_too_old_packages_are_bad_and_named(monkeypatch):
    asked_for = ["numpy>=99", "no-such-package>=1", "another-missing-package; extra == 'dev'"]
    monkeypatch.setattr(doctor.metadata, "requires", lambda _: asked_for)
    (result,) = doctor.check_versions()
    assert result.is_bad
    assert "numpy is " in result.text
    assert "no-such-package is missing" in result.text
    assert "another" not in result.text


def test_missing_pools_and_workers_are_bad_and_say_what_to_run(answers):
    answers["/api/work_pools/filter"] = [{"name": "cpu", "status": "READY"}, {"name": "gpu", "status": "NOT_READY"}]
    found = {result.check: result for result in doctor.check_server()}
    assert {name for name, result in found.items() if result.is_bad} == {"pool gpu", "pool rebuild"}
    assert "prefect worker start --pool gpu" in found["pool gpu"].text
    assert "ctclip deploy" in found["pool rebuild"].text


def test_server_that_is_away_is_bad(monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    (result,) = doctor.check_server()
    assert result.is_bad
    assert "prefect server start" in result.text


@pytest.mark.parametrize(("missing_bytes", "is_bad"), [(0, False), (1, True)])
def test_data_root_needs_room_for_two_shards_and_the_raw_cache(tmp_path, monkeypatch, missing_bytes, is_bad):
    store.publish(tmp_path)
    needed_bytes = 2 * LIMITS.shard_bytes + int(RAW_CACHE_GB * 1e9)
    usage = shutil.disk_usage(tmp_path)._replace(free=needed_bytes - missing_bytes)
    monkeypatch.setattr(shutil, "disk_usage", {tmp_path.resolve(): usage}.__getitem__)
    disk, warehouse = doctor.check_data_root(tmp_path)
    assert (disk.check, disk.is_bad, "lower --raw-cache-gb" in disk.text) == ("disk", is_bad, is_bad)
    assert (warehouse.check, warehouse.is_bad) == ("warehouse", False)


def test_warehouse_that_cannot_be_read_is_bad(tmp_path: Path):
    (tmp_path / store.WAREHOUSE_FILE).write_bytes(b"no database")
    assert [result.is_bad for result in doctor.check_data_root(tmp_path)][-1]


def test_next_run_of_each_deployment_is_its_soonest(answers):
    answers["/api/flow_runs/filter"] = [
        {"tags": tags, "name": "x", "expected_start_time": time}
        for tags, time in (
            (["auto-scheduled", "ctclip", "ingest"], "2026-11-25T01:30:00Z"),
            (["ctclip", "rebuild"], "2026-11-28T02:00:00Z"),
            (["auto-scheduled", "ingest", "ctclip"], "2026-11-26T01:30:00Z"),
        )
    ]  # fmt: skip
    assert [(name, at.day) for name, at in list_next_runs()] == [("ingest", 25), ("rebuild", 28)]
