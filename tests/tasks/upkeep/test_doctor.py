"""`ctclip doctor` names each fault of a machine and its remedy."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import re
import shutil
import socket
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from ctclip_model.errors import PrefectError
from tasks.settings import LIMITS, RAW_CACHE_GB
from tasks.upkeep import doctor, prefect_server
from tasks.upkeep.own_server import ensure_server
from tasks.upkeep.prefect_server import LONGEST_ANSWER, TIMEOUT_S, _make_headers, find_api_url, list_next_runs
from warehouse import store


class Server(http.server.BaseHTTPRequestHandler):
    """Answers as a Prefect server does, from a table of answers by path."""

    answers: ClassVar[dict[str, object]] = {}
    location = ""  # header of redirects

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))  # else its close resets the connection
        found = self.answers[self.path]
        status, content = found if isinstance(found, tuple) else (200, json.dumps(found).encode())
        self.send_response(status)
        self.send_header("Location", self.location)
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


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        ((200, b"<!DOCTYPE html><html><title>Sign in\n - ACME</title>"), "the web page 'Sign in - ACME'"),
        ((200, b"  <html><body>Welcome"), "a web page"),
        ((200, b"Index of /"), "no JSON"),
        ((200, b'{"detail": "ok"}'), "other JSON"),
        ((200, b'["cpu"]'), "other JSON"),
        ((200, b'[{"a": 1}]'), "other JSON"),
        ((200, b'[{"name": null, "tags": null, "expected_start_time": null}]'), "other JSON"),
        ((200, b"[" * 100_000), "other JSON"),
        ((200, b"[" + b" " * LONGEST_ANSWER + b"]"), "longer than 8 MB"),
        ((401, b"{}"), "refuses the credentials"),
        ((404, b'{"detail": "Not Found"}'), "end in /api?"),
        ((400, b"<center>The plain HTTP request was sent to HTTPS port</center>"), "https://"),
        ((502, b"<html><title>Bad Gateway</title>"), "Bad Gateway"),
    ],
)
def test_an_answer_of_another_program_is_named(answers, answer, named):
    answers["/api/work_pools/filter"] = answers["/api/flow_runs/filter"] = answer
    (result,) = doctor.check_server()
    assert result.is_bad
    assert named in result.text
    with pytest.raises(OSError, match=named.replace("?", ".")):
        list_next_runs()


@pytest.mark.parametrize("time", ["tomorrow", "0001-01-01T00:00:00+23:00"])
def test_a_time_that_is_none_is_other_json(answers, time):
    answers["/api/flow_runs/filter"] = [{"name": "x", "tags": [], "expected_start_time": time}]
    with pytest.raises(OSError, match="other JSON"):
        list_next_runs()


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:99999/api",
        "http://127.0.0.1:42OO",
        "http://[::1/api",
        "http://.foo:80",
        "localhost:4200",
        "http://",
    ],
)
def test_a_malformed_address_is_one_clear_line(monkeypatch, address):
    monkeypatch.setenv("PREFECT_API_URL", address)
    (result,) = doctor.check_server()
    assert result.is_bad
    assert result.text.startswith(f"{address}: PREFECT_API_URL is malformed")
    with pytest.raises(OSError, match="PREFECT_API_URL is malformed"):
        list_next_runs()
    with pytest.raises(PrefectError, match="PREFECT_API_URL is malformed"):
        ensure_server()


def test_a_redirect_is_named_and_the_key_is_not_sent_there(answers, monkeypatch):
    asked = []

    def steal(connection: socket.socket) -> None:
        asked.append(connection.recv(9999))

    with serve(steal) as port:
        monkeypatch.setattr(Server, "location", f"http://127.0.0.1:{port}/api")
        monkeypatch.setenv("PREFECT_API_KEY", "secret")
        answers["/api/work_pools/filter"] = answers["/api/flow_runs/filter"] = (302, b"")
        (result,) = doctor.check_server()
        with pytest.raises(OSError, match=f"it redirects to http://127.0.0.1:{port}/api"):
            list_next_runs()
    assert f"it redirects to http://127.0.0.1:{port}/api" in result.text
    assert not any(asked)


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\nX-A: ", b"HTTP/1.1 200 OK\r\nContent-Length: 999999\r\n\r\n["])
def test_a_server_that_drips_is_given_up(monkeypatch, head):
    has_given_up = threading.Event()

    def drip(connection: socket.socket) -> None:
        connection.recv(9999)
        connection.sendall(head)
        while not has_given_up.wait(0.05):
            connection.sendall(b" ")

    monkeypatch.setattr(prefect_server, "DEADLINE_S", 0.5)
    with serve(drip) as port:
        monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{port}/api")
        with pytest.raises(OSError, match=r"took more than 0\.5 s"):
            list_next_runs()
        has_given_up.set()


def test_a_proxy_that_is_asked_for_this_machine_is_named_and_passed_by(answers, monkeypatch):
    answers["/api/work_pools/filter"] = answers["/api/flow_runs/filter"] = []
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "example.org")
    proxy, server, *_ = doctor.check_server()
    assert (proxy.check, proxy.is_bad, server.is_bad) == ("proxy", True, False)
    assert "no_proxy=127.0.0.1" in proxy.text
    assert list_next_runs() == []
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert next(iter(doctor.check_server())).check == "Prefect"


@pytest.fixture
def prefect_home(tmp_path, monkeypatch) -> Path:
    """Prefect's folder on a machine on which no server is named."""
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "prefect"


def assert_no_server_starts(named: str) -> None:
    """The doctor names a fault, and a command that starts its own server ends with the same sentence."""
    result, *_ = doctor.check_server()
    assert result.is_bad
    assert named in result.text
    with pytest.raises(PrefectError, match=re.escape(result.text)):
        ensure_server()


def test_a_folder_of_prefect_that_cannot_be_written_is_named(prefect_home, monkeypatch):
    (result,) = doctor.check_server()
    assert not result.is_bad
    assert not prefect_home.exists()
    prefect_home.write_text("a file in its place")
    assert_no_server_starts("is not writable")
    monkeypatch.setenv("PREFECT_HOME", "/proc/prefect")
    assert_no_server_starts("is not writable")


def test_a_damaged_or_newer_database_is_named(prefect_home, monkeypatch):
    prefect_home.mkdir()
    database = prefect_home / "prefect.db"
    database.write_bytes(b"no database at all" * 1000)
    assert_no_server_starts("is damaged")
    monkeypatch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", "postgresql+asyncpg://elsewhere/prefect")
    assert not any(result.is_bad for result in doctor.check_server())
    monkeypatch.delenv("PREFECT_SERVER_DATABASE_CONNECTION_URL")
    database.unlink()
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("create table alembic_version (version_num text)")
        connection.execute("insert into alembic_version values ('9725c1cbee35')")  # Prefect's first
        connection.commit()
        assert not any(result.is_bad for result in doctor.check_server())
        connection.execute("update alembic_version set version_num = 'fffffffffff1'")
        connection.commit()
    assert_no_server_starts("newer Prefect")


def test_a_user_without_a_home_folder_is_told(prefect_home, monkeypatch):
    for name in ("HOME", "PREFECT_HOME"):
        monkeypatch.delenv(name)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as it answers to such a user
    assert_no_server_starts("no home folder")
    assert list_next_runs() == []


@contextlib.contextmanager
def serve(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """A port on which each connection is answered by a function."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def run() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                    with connection:
                        answer(connection)
                except OSError:
                    if server.fileno() < 0:
                        return

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
    thread.join()


def speak_ssh(connection: socket.socket) -> None:
    connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
    connection.recv(9999)


def speak_redis(connection: socket.socket) -> None:
    if connection.recv(9999).startswith(b"PING"):
        connection.sendall(b"+PONG\r\n")


def speak_tls(connection: socket.socket) -> None:
    if connection.recv(9999):
        connection.sendall(b"\x15\x03\x01\x00\x02\x02\x46")


def speak_gibberish(connection: socket.socket) -> None:
    connection.sendall(b"hello, who is there\n")
    connection.recv(9999)


@pytest.mark.parametrize(
    ("speak", "named"),
    [
        (speak_ssh, "an SSH server"),
        (speak_redis, "a Redis server"),
        (speak_tls, "TLS"),
        (speak_gibberish, "'hello, who is there'"),
    ],
)
def test_another_protocol_on_the_port_is_named(monkeypatch, speak, named):
    with serve(speak) as port:
        monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{port}/api")
        (result,) = doctor.check_server()
    assert result.is_bad
    assert named in result.text


def test_https_to_a_server_without_tls_is_named(answers, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", os.environ["PREFECT_API_URL"].replace("http:", "https:"))
    (result,) = doctor.check_server()
    assert "write http://" in result.text


def test_a_distant_server_answers_and_its_round_trip_is_said(answers, monkeypatch):
    answers["/api/work_pools/filter"] = []
    monkeypatch.setattr(doctor, "measure_round_trip", lambda _: 0.8)
    result, *_ = doctor.check_server()
    assert (result.check, result.is_bad) == ("Prefect", False)
    assert "0.8 s away" in result.text
    assert TIMEOUT_S > 3 * 0.8  # connection, request and the server's work


PROFILES = """
active = "cluster"
[profiles.cluster]
PREFECT_API_URL = "http://cluster/api"
PREFECT_API_KEY = "key of the profile"
[profiles.other]
PREFECT_API_URL = "http://other/api"
"""


def test_prefects_settings_are_found_where_prefect_finds_them(tmp_path, monkeypatch):
    for name in ("PREFECT_API_URL", "PREFECT_API_KEY", "PREFECT_PROFILE", "PREFECT_PROFILES_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert find_api_url() is None
    (tmp_path / "profiles.toml").write_text(PROFILES)
    assert find_api_url() == "http://cluster/api"
    assert _make_headers()["Authorization"] == "Bearer key of the profile"
    monkeypatch.setenv("PREFECT_PROFILE", "other")
    assert find_api_url() == "http://other/api"
    (tmp_path / "pyproject.toml").write_text("[tool.prefect.api]\nurl = 'http://project/api'")
    assert find_api_url() == "http://project/api"
    (tmp_path / "prefect.toml").write_text("[api]\nurl = 'http://toml/api'")
    assert find_api_url() == "http://toml/api"
    (tmp_path / ".env").write_text("# a note\nPREFECT_API_URL='http://dotenv/api'\n")
    assert find_api_url() == "http://dotenv/api"
    monkeypatch.setenv("PREFECT_API_URL", "http://environment/api")
    assert find_api_url() == "http://environment/api"


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
