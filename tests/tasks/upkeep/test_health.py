"""`ctclip doctor` says what is wrong with a machine, and how to mend it."""

from __future__ import annotations

import http.server
import json
import threading
from pathlib import Path
from typing import ClassVar

import pytest

from tasks.upkeep import doctor as health
from tasks.upkeep.prefect_server import next_runs
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


def test_what_is_installed_is_within_its_bounds():
    assert [finding.is_bad for finding in health.check_versions()] == [False]


def test_missing_pools_and_workers_are_bad_and_say_what_to_run(answers):
    answers["/api/work_pools/filter"] = [{"name": "cpu", "status": "READY"}, {"name": "gpu", "status": "NOT_READY"}]
    found = {finding.check: finding for finding in health.check_server()}
    assert {name for name, finding in found.items() if finding.is_bad} == {"pool gpu", "pool rebuild"}
    assert "prefect worker start --pool gpu" in found["pool gpu"].text
    assert "prefect work-pool create rebuild" in found["pool rebuild"].text


def test_server_that_is_away_is_bad(monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    (finding,) = health.check_server()
    assert finding.is_bad
    assert "prefect server start" in finding.text


def test_data_root_without_room_is_bad(tmp_path, monkeypatch):
    store.publish(tmp_path)
    good = list(health.check_data_root(tmp_path))
    assert [finding.check for finding in good] == ["disk", "warehouse"]
    assert not good[1].is_bad
    monkeypatch.setattr(health, "RAW_CACHE_GB", 1e9)
    assert next(iter(health.check_data_root(tmp_path))).is_bad


def test_warehouse_that_cannot_be_read_is_bad(tmp_path: Path):
    (tmp_path / store.WAREHOUSE_FILE).write_bytes(b"no database")
    assert [finding.is_bad for finding in health.check_data_root(tmp_path)][-1]


def test_next_run_of_each_deployment_is_its_soonest(answers):
    answers["/api/flow_runs/filter"] = [
        {"tags": tags, "name": "x", "expected_start_time": time}
        for tags, time in (
            (["auto-scheduled", "ctclip", "ingest"], "2026-11-25T01:30:00Z"),
            (["ctclip", "rebuild"], "2026-11-28T02:00:00Z"),
            (["auto-scheduled", "ingest", "ctclip"], "2026-11-26T01:30:00Z"),
        )
    ]  # fmt: skip
    assert [(name, at.day) for name, at in next_runs()] == [("ingest", 25), ("rebuild", 28)]
