"""A Prefect server that a user names, and that is killed under a command."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support.command_line import TERMINAL
from support.processes import start_python, wait_for

pytestmark = pytest.mark.orchestration

# Two stages of a rebuild, between which the command waits for a line of its input.
REBUILD = """
import sys, types
from dataclasses import dataclass
from typing import Annotated
from typer import Option
from flows import cli
from flows.commands.running import run_flow

def make(_):
    from prefect import task
    from prefect.artifacts import create_markdown_artifact
    from flows.flow_taking import flow_taking
    from tasks.stages.prefect_pages import with_server

    @dataclass
    class Options:
        name: Annotated[str, Option(help="Stage.")] = "first"

    @task
    def work(name):
        if name == "bad":
            raise ValueError("a fault of its own")
        if name == "interrupted":
            print("begun", file=sys.stderr)
            raise KeyboardInterrupt
        return {"stage": name}

    @flow_taking(Options, name="stage")
    def stage(options):
        made = work(options.name)
        with_server(create_markdown_artifact, "text", key="text")
        return made

    @flow_taking(Options, name="rebuild")
    def rebuild(options):
        first = stage(name="first")
        print("waits", flush=True)
        return [first, stage(name=sys.stdin.readline().strip())]

    return rebuild

module = types.ModuleType("flows.waiting")
module.__getattr__ = make
sys.modules["flows.waiting"] = module
cli.app = lambda **_: run_flow("waiting", as_json=True)
cli.main()
"""
RUN = "import runpy, sys; runpy.run_path(sys.argv[1])"


@pytest.mark.parametrize(("second", "code"), [("second", 0), ("bad", 1), ("interrupted", 130)])
def test_command_ends_as_without_prefect_and_says_so_in_one_line(tmp_path: Path, second: str, code: int):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    program = tmp_path / "program.py"
    environment = TERMINAL | {
        "PREFECT_HOME": str(tmp_path / "prefect"), "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
    }  # fmt: skip
    server = subprocess.Popen(
        [
            sys.executable, "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app",
            "--port", str(port), "--log-level", "critical",
        ],
        env=os.environ | environment,
    )  # fmt: skip
    try:
        wait_for(lambda: answers(port))
        program.write_text(REBUILD)  # Prefect asks for the file of a flow
        with start_python(RUN, program, environment=environment, stdin=subprocess.PIPE) as command:
            assert command.stdout is not None
            assert command.stdout.readline() == "waits\n", command.communicate()
            server.kill()
            server.wait()
            output, errors = command.communicate(f"{second}\n", timeout=200)
    finally:
        server.kill()
        server.wait()
    assert command.returncode == code, errors
    if second == "interrupted":
        assert errors.count("begun") == 1  # and not once more as a stage that Prefect could not begin
        assert "interrupted" in errors.splitlines()[-1]
        return
    lost, *others = errors.splitlines()
    assert "Prefect was lost" in lost
    if code == 0:
        assert ([one["stage"] for one in json.loads(output)], others) == (["first", "second"], [])
    else:
        assert "a fault of its own" in others[0]


def answers(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
