"""`make wheelhouse` gathers all wheels, and `make install` needs no index and no network with them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT

MADE = (".venv", "wheelhouse", "demo", "data", ".git", "__pycache__", ".*_cache", ".hypothesis")
NO_NETWORK = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")


def copy_checkout(folder: Path) -> Path:
    made = shutil.ignore_patterns(*MADE)
    return Path(shutil.copytree(ROOT, folder, ignore=lambda at, names: made(at, names) if Path(at) == ROOT else ()))


def run(*command: str | Path, folder: Path, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_wheelhouse_installs_without_index_and_network(tmp_path):
    online, offline = copy_checkout(tmp_path / "online"), copy_checkout(tmp_path / "offline")
    packages_of_this_python = ("--old-file", ".venv/.installed", f"BIN={Path(sys.executable).parent}")
    run("make", "wheelhouse", *packages_of_this_python, folder=online)
    (online / "wheelhouse").rename(offline / "wheelhouse")
    without = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "MAKE"))}
    without |= NO_NETWORK | {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_CACHE_DIR": "1"}
    run("make", "install", "WHEELHOUSE=wheelhouse", f"PYTHON={sys.executable}", folder=offline, environment=without)
    assert run(".venv/bin/ctclip", "--version", folder=offline).startswith("ctclip ")
    assert "No broken requirements" in run(".venv/bin/pip", "check", folder=offline)
