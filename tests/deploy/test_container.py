"""The image: pinned, without root and secrets, made by one script, with a health check that tells dead from living."""

from __future__ import annotations

import fnmatch
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml
from support.paths import ROOT
from support.programs import prepend_path, write_program

TEXT = (ROOT / "deploy" / "Containerfile").read_text()
INSTRUCTIONS = [line.split(maxsplit=1) for line in TEXT.splitlines() if line and not line.startswith("#")]
HEALTH = ROOT / "deploy" / "health.py"


def arguments(instruction: str) -> list[str]:
    return [rest for name, rest in INSTRUCTIONS if name == instruction]


def declared_arguments() -> set[str]:
    return {argument.partition("=")[0] for argument in arguments("ARG")}


def tracked_files() -> list[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    return listed.stdout.splitlines()


def test_base_is_pinned_by_tag():
    (base,) = arguments("FROM")
    assert re.fullmatch(r"\S+/debian:\d+\.\d+-slim", base)


def test_image_runs_without_root():
    assert INSTRUCTIONS[-5:][0] == ["USER", "ctclip"]
    assert "USER" not in [name for name, _ in INSTRUCTIONS[-4:]]


def test_one_script_makes_the_image():
    assert arguments("COPY") == [". /opt/ctclip"]
    (run,) = arguments("RUN")
    script = ROOT / Path(run.split()[-1]).relative_to("/opt/ctclip")
    assert script == ROOT / "deploy" / "install.sh"
    assert os.access(script, os.X_OK)
    for name in declared_arguments():
        assert name.startswith("PIP_") or f"${{{name}:" in script.read_text()


def test_compose_gives_only_arguments_that_the_image_takes():
    services = yaml.safe_load((ROOT / "deploy" / "compose.gpu.yaml").read_text())["services"]
    assert set(services["gpu"]["build"]["args"]) <= declared_arguments()


def test_image_holds_no_secret():
    assert not re.search(r"token|password|secret|key", "\n".join(arguments("ENV") + arguments("ARG")), re.IGNORECASE)
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert {"**/.env", "data", ".venv"} <= set(ignored)


def test_image_holds_every_tracked_file():
    """A file that is missing would make the recorded commit dirty."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    patterns = [line.removeprefix("**/") for line in lines if not line.startswith("#")]
    for name in tracked_files():
        assert not any(fnmatch.fnmatch(part, pattern) for part in Path(name).parts[:1] for pattern in patterns), name
        assert Path(name).name != ".env"


def install(folder: Path, **environment: str) -> list[str]:
    """Commands of a system that the script calls, with programs that only note them."""
    programs, log = folder / "programs", folder / "log"
    for name in ("apt-get", "id", "useradd", "install", "chown", "runuser"):
        failing = "exit 1" if name == "id" else ""
        write_program(programs, name, f'echo {name} "$@" >>"{log}"\n{failing}')
    subprocess.run(
        [ROOT / "deploy" / "install.sh"], env=prepend_path(programs) | environment, check=True, capture_output=True
    )
    return log.read_text().splitlines()


def test_script_installs_as_a_user_of_its_own(tmp_path):
    called = install(tmp_path, USER_ID="4711")
    assert "useradd --create-home --uid 4711 ctclip" in called
    assert called[-1] == "runuser --user ctclip -- env HOME=/home/ctclip make install"
    assert not any("gcc" in line for line in called)


def test_cuda_adds_a_compiler(tmp_path):
    called = install(tmp_path, GPU="1")
    assert any(line.startswith("apt-get install") and "gcc" in line.split() for line in called)
    assert called[-1].endswith("make install GPU=1")


class Answer(http.server.BaseHTTPRequestHandler):
    """Answers `/200` with 200, and so on."""

    def do_GET(self) -> None:
        self.send_response(int(self.path.strip("/")))
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing is logged."""


def test_health_check_fails_on_errors_and_silence():
    def check(url: str) -> int:
        return subprocess.run([sys.executable, HEALTH, url], capture_output=True, check=False).returncode

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert [check(f"{url}/{status}") for status in (200, 503)] == [0, 1]
        server.shutdown()
    assert check(url) == 1


def test_health_check_of_the_image_is_this_script():
    (check,) = arguments("HEALTHCHECK")
    _, script, url = json.loads(check[check.index("[") :])
    assert ROOT / script == HEALTH
    assert url.startswith("http://127.0.0.1:")
