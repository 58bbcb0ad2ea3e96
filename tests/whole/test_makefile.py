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
"-c "*) exec {real} -c "import sys, sysconfig; sys.version_info = {version}
known = sysconfig.get_config_var
sysconfig.get_config_var = lambda name: {is_free_threaded} if name == 'Py_GIL_DISABLED' else known(name)
$2" ;;
"-m venv") rm -rf "$4"; mkdir -p "$4/bin"; cp "$0" "$4/bin/python" ;;
"-m pip")
    case "$*" in
    *" show "*) exit 1 ;;
    *--dry-run*) exit {has_no_cpu_build} ;;
    *) echo "{version} $*" >> "$(dirname "$0")/../installed" ;;
    esac ;;
esac
"""
WITHOUT_DRIVER = pytest.mark.skipif(Path("/proc/driver/nvidia/version").exists(), reason="this machine has a driver")
TORCH = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch=="))


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "deploy/venv.sh"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def write_python(
    path: Path, version: tuple[int, int], *, is_free_threaded: bool = False, has_cpu_build: bool = True
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        STAND_IN.format(
            real=sys.executable, version=version, is_free_threaded=is_free_threaded,
            has_no_cpu_build=int(not has_cpu_build),
        )
    )  # fmt: skip
    path.chmod(0o755)
    return path


def make_install(checkout: Path, *variables: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    # `make` of a test that `make` runs would take over its options
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    for name in ("PYTHON", "GPU", "WHEELHOUSE"):
        environment.pop(name, None)
    if path is not None:
        environment["PATH"] = f"{path}:/usr/bin:/bin"
    return subprocess.run(
        ["make", "install", *variables], cwd=checkout, env=environment, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip


def read_installed(checkout: Path) -> str:
    return (checkout / ".venv/installed").read_text()


@pytest.mark.parametrize("version", [(3, 9), (3, 10), (3, 15), (2, 7)])
def test_an_unsuitable_python_is_named_and_leaves_no_environment(checkout, version):
    python = write_python(checkout / "old", version)
    done = make_install(checkout, f"PYTHON={python}")
    assert done.returncode != 0
    assert "is Python {}.{}: 3.11 to 3.14 are suitable".format(*version) in done.stderr
    assert "make PYTHON=" in done.stderr
    assert not (checkout / ".venv").exists()


def test_a_free_threaded_python_is_refused_by_name(checkout):
    python = write_python(checkout / "free", (3, 14), is_free_threaded=True)
    done = make_install(checkout, f"PYTHON={python}")
    assert done.returncode != 0
    assert "is a free-threaded Python" in done.stderr
    assert not (checkout / ".venv").exists()


def test_the_newest_suitable_python_is_taken(checkout):
    for name, version in (("python3.11", (3, 11)), ("python3.12", (3, 12)), ("python3", (3, 9))):
        write_python(checkout / "programs" / name, version)
    write_python(checkout / "programs/python3.13", (3, 13), is_free_threaded=True)
    write_python(checkout / "programs/python3.14", (3, 10))  # another program's link, for example
    assert make_install(checkout, path=checkout / "programs").returncode == 0
    assert read_installed(checkout).startswith("(3, 12)")


def test_an_environment_of_an_unsuitable_python_is_made_again(checkout):
    write_python(checkout / ".venv/bin/python", (3, 9))
    (checkout / ".venv/left").touch()
    python = write_python(checkout / "new", (3, 12))
    assert make_install(checkout, f"PYTHON={python}").returncode == 0
    assert read_installed(checkout).startswith("(3, 12)")
    assert not (checkout / ".venv/left").exists()


@pytest.mark.parametrize("left", ["#!/bin/sh\nexit 1\n", ""], ids=["without_pip", "empty"])
def test_a_broken_environment_is_made_again_although_it_was_installed_once(checkout, left):
    write_python(checkout / "programs/python3.11", (3, 11))
    for name in ("python3.14", "python3.13", "python3.12"):
        write_python(checkout / "programs" / name, (3, 9))
    assert make_install(checkout, path=checkout / "programs").returncode == 0
    (checkout / ".venv/bin/python").write_text(left)
    (checkout / ".venv/installed").unlink()
    if not left:
        (checkout / ".venv/bin/python").unlink()
    assert make_install(checkout, path=checkout / "programs").returncode == 0
    assert read_installed(checkout).startswith("(3, 11)")


def test_another_suitable_python_makes_another_environment_and_an_unsuitable_one_none(checkout):
    for name, version in (("old", (3, 9)), ("one", (3, 11)), ("two", (3, 13))):
        write_python(checkout / name, version)
    assert make_install(checkout, f"PYTHON={checkout / 'one'}").returncode == 0
    (checkout / ".venv/kept").touch()
    assert make_install(checkout, f"PYTHON={checkout / 'one'}").returncode == 0
    assert make_install(checkout, f"PYTHON={checkout / 'old'}").returncode != 0
    assert (checkout / ".venv/kept").exists()
    assert make_install(checkout, f"PYTHON={checkout / 'two'}").returncode == 0
    assert read_installed(checkout).startswith("(3, 13)")
    assert not (checkout / ".venv/kept").exists()


@WITHOUT_DRIVER
@pytest.mark.parametrize(
    ("gpu", "has_cpu_build", "build"),
    [("", True, f"{TORCH}+cpu"), ("", False, ""), ("0", True, f"{TORCH}+cpu"), ("0", False, f"{TORCH}+cpu"),
     ("1", True, TORCH.replace("==", "!=") + "+cpu")],
)  # fmt: skip
def test_pytorch_is_the_cpu_build_unless_a_gpu_is_asked_for_or_no_index_has_it(checkout, gpu, has_cpu_build, build):
    python = write_python(checkout / "new", (3, 12), has_cpu_build=has_cpu_build)
    done = make_install(checkout, f"PYTHON={python}", f"GPU={gpu}", path=checkout)
    assert done.returncode == 0
    assert read_installed(checkout).rstrip().endswith(f"-e .[dev] {build}".rstrip())
    assert ("3 GB to fetch" in done.stdout) == (gpu == "" and not has_cpu_build)
