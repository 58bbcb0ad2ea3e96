"""`make` and the virtual environment, with stand-ins for Python and without a network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT

# A Python of a version. It answers `-c` with real Python and makes environments of itself, whose pip notes its calls.
STAND_IN = """#!/bin/sh
case "$1 $2" in
"-c "*) exec {real} -c "import sys; sys.version_info = {version}; $2" ;;
"-m venv") rm -rf "$4"; mkdir -p "$4/bin"; cp "$0" "$4/bin/python" ;;
"-m pip") echo "{version}" >> "$(dirname "$0")/../installed" ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def write_python(path: Path, version: tuple[int, int]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(STAND_IN.format(real=sys.executable, version=version))
    path.chmod(0o755)
    return path


def make_install(checkout: Path, python: Path) -> subprocess.CompletedProcess[str]:
    # `make` of a test that `make` runs would take over its options
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(
        ["make", "install", f"PYTHON={python}"], cwd=checkout, env=environment, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("version", [(3, 9), (3, 10), (3, 13), (2, 7)])
def test_an_unsuitable_python_is_named_and_leaves_no_environment(checkout, version):
    done = make_install(checkout, write_python(checkout / "old", version))
    assert done.returncode != 0
    assert "make PYTHON=" in done.stderr
    assert not (checkout / ".venv").exists()


def test_an_environment_of_an_unsuitable_python_is_made_again(checkout):
    write_python(checkout / ".venv/bin/python", (3, 9))
    (checkout / ".venv/left").touch()
    assert make_install(checkout, write_python(checkout / "new", (3, 12))).returncode == 0
    assert (checkout / ".venv/installed").read_text() == "(3, 12)\n"
    assert not (checkout / ".venv/left").exists()


@pytest.mark.parametrize("left", ["#!/bin/sh\nexit 1\n", ""], ids=["without_pip", "empty"])
def test_a_broken_environment_is_made_again_although_it_was_installed_once(checkout, left):
    python = write_python(checkout / "new", (3, 11))
    assert make_install(checkout, python).returncode == 0
    (checkout / ".venv/bin/python").write_text(left)
    (checkout / ".venv/installed").unlink()
    if not left:
        (checkout / ".venv/bin/python").unlink()
    assert make_install(checkout, python).returncode == 0
    assert (checkout / ".venv/installed").read_text() == "(3, 11)\n"


def test_a_suitable_environment_is_kept_whatever_python_is_named(checkout):
    assert make_install(checkout, write_python(checkout / "new", (3, 11))).returncode == 0
    (checkout / ".venv/kept").touch()
    assert make_install(checkout, write_python(checkout / "old", (3, 9))).returncode == 0
    assert (checkout / ".venv/kept").exists()
