"""The temporary Prefect server of a command: apart from its terminal, and never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from support.command_line import TERMINAL
from support.paths import ROOT
from support.processes import start_python, wait_for

from ctclip_model.errors import PrefectError
from tasks.upkeep.own_server import ensure_server
from tasks.upkeep.prefect_server import find_api_url

# Runs a flow that waits for a signal, as a command runs it. Prints a line once it waits.
WAITING = """
import sys, time, types
from flows import cli
from flows.commands.running import run_flow

def make(_):
    from prefect import flow

    @flow
    def waiting():
        print("waits", flush=True)
        time.sleep(300)

    return waiting

module = types.ModuleType("flows.waiting")
module.__getattr__ = make
sys.modules["flows.waiting"] = module
cli.app = lambda **_: run_flow("waiting", as_json=True)
cli.main()
"""
START = "from tasks.upkeep.own_server import ensure_server; ensure_server(); print('started', flush=True); input()"


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A machine on which no server is named, behind a proxy that answers nobody."""
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    values = {"PREFECT_HOME": str(tmp_path / "prefect"), "http_proxy": "http://127.0.0.1:9", "HOME": str(tmp_path)}
    values |= {"no_proxy": "", "NO_PROXY": ""}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    return values


def start_waiting(environment: dict[str, str]) -> tuple[subprocess.Popen[str], psutil.Process]:
    """A command that waits in a flow, in a process group of its own, and its server."""
    command = start_python(WAITING, environment=environment | TERMINAL, start_new_session=True)
    assert command.stdout is not None
    assert command.stdout.readline() == "waits\n", command.communicate()
    (server,) = [one for one in psutil.Process(command.pid).children() if "uvicorn" in " ".join(one.cmdline())]
    return command, server


@pytest.mark.orchestration
@pytest.mark.parametrize(("sent", "codes", "lines"), [(signal.SIGINT, [130], 1), (signal.SIGTERM, [143, -15], 0)])
def test_signal_to_the_process_group_ends_the_command_with_its_code(environment, sent, codes, lines):
    command, server = start_waiting(environment)
    os.killpg(command.pid, sent)
    output, errors = command.communicate(timeout=60)
    assert command.returncode in codes, output + errors
    assert len(errors.splitlines()) == lines, errors
    wait_for(lambda: not server.is_running())


@pytest.mark.orchestration
def test_killed_command_leaves_no_server(environment):
    command, server = start_waiting(environment)
    command.kill()
    command.communicate()
    wait_for(lambda: not server.is_running())


@pytest.mark.orchestration
def test_server_that_is_lost_is_started_again(environment):
    with start_python(START, environment=environment, stdin=subprocess.PIPE) as command:
        assert command.stdout is not None
        assert command.stdout.readline() == "started\n"
        (lost,) = psutil.Process(command.pid).children()
        lost.kill()
        wait_for(lambda: [one for one in psutil.Process(command.pid).children() if one.pid != lost.pid])
        _, errors = command.communicate("\n", timeout=60)
    assert command.returncode == 0
    assert "was lost and is started again" in errors


def test_damaged_database_is_one_clear_line(environment):
    (Path(environment["PREFECT_HOME"])).mkdir()
    Path(environment["PREFECT_HOME"], "prefect.db").write_bytes(b"no database at all" * 1000)
    done = subprocess.run(
        [sys.executable, "-m", "flows", "ingest", "--source", "x", "--data-root", environment["HOME"]],
        cwd=ROOT, env=os.environ | TERMINAL, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "file is not a database" in line


def test_server_that_cannot_start_names_the_cause(environment, monkeypatch):
    monkeypatch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", "nonsense://")
    with pytest.raises(PrefectError, match=r"did not start: .*nonsense"):
        ensure_server()


def test_server_of_the_active_profile_is_used(environment, monkeypatch):
    home = Path(environment["PREFECT_HOME"])
    home.mkdir()
    url = "http://127.0.0.1:9/api"
    (home / "profiles.toml").write_text(f'active = "there"\n[profiles.there]\nPREFECT_API_URL = "{url}"\n')
    before = psutil.Process().children()
    monkeypatch.setenv("NO_PROXY", "example.org")
    ensure_server()
    assert (find_api_url(), psutil.Process().children()) == (url, before)
    assert os.environ["NO_PROXY"] == "example.org,127.0.0.1,localhost"
