"""The core without the pipeline: predictions need none of its packages, and the stages name what they lack."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from support.models import load_tiny_model, make_tokenizer
from support.paths import ROOT

from ctclip_model.models.model_folder import save_model_folder
from flows.cli import PIPELINE_PACKAGES

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
IMPORTED = {"python-dotenv": "dotenv"}  # import name by the name in an index, where they differ
BY_OTHERS = {"fsspec", "pydantic"}  # packages of the pipeline that the core's packages bring along
BLOCKER = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocker())
"""
# These are of the core's packages, too: transformers asks for one, and the Hub's client needs others.
SHARED = {"packaging", "psutil", "httpx", "httpcore2"}


def list_names(requirements: list[str]) -> set[str]:
    return {re.match(r"[\w.-]+", requirement)[0] for requirement in requirements}  # type: ignore[index]


def run_in_core(code: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs code where the pipeline's packages cannot be imported."""
    blocked = set(PIPELINE_PACKAGES) - SHARED
    return subprocess.run(
        [sys.executable, "-c", BLOCKER.format(blocked=blocked) + code, *arguments], cwd=cwd, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def run_ctclip_in_core(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return run_in_core("from flows.cli import main\nmain()", *arguments, cwd=cwd)


def test_core_asks_for_no_prefect_dask_or_duckdb_and_the_extra_for_all_of_them():
    core, pipeline = list_names(PROJECT["dependencies"]), list_names(PROJECT["optional-dependencies"]["pipeline"])
    assert not core & {"prefect", "dask", "distributed", "duckdb"}
    assert {"prefect", "dask", "distributed", "duckdb"} <= pipeline
    assert {IMPORTED.get(name, name) for name in pipeline} - BY_OTHERS == set(PIPELINE_PACKAGES)
    assert "ctclip-rebuild[pipeline,dicom,s3,tensorboard]" in PROJECT["optional-dependencies"]["dev"]


def test_every_installation_of_the_checkout_asks_for_the_pipeline():
    assert '-e ".[dev]"' in (ROOT / "deploy/venv.sh").read_text()


@pytest.mark.parametrize(
    "command", [["status"], ["sql", "select 1"], ["rebuild"], ["doctor"], ["push", "m", "--to", "a/b"], ["deploy"]]
)
def test_command_of_the_pipeline_names_the_extra_in_one_line(command, tmp_path):
    done = run_ctclip_in_core(*command, cwd=tmp_path)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "pip install 'ctclip-rebuild[pipeline]'" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["--help", "--version"])
def test_help_and_version_need_no_pipeline(command, tmp_path):
    done = run_ctclip_in_core(command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_core_predicts_in_python_and_in_a_shell(few_phantoms, tmp_path):
    recipe = {"name": "tiny", "shape": (30, 40, 40), "spacing_mm": (8.0, 8.0, 8.0)}
    save_model_folder(tmp_path / "model", load_tiny_model(), make_tokenizer(200), extra={"recipe": recipe})
    scan = str(next(few_phantoms.rglob("valid_*.nii.gz")))
    code = "import sys, ctclip_model\n(volume,) = ctclip_model.open_model('model').predict([sys.argv[1]])\n"
    done = run_in_core(code + "print(len(volume.by_abnormality))", scan, cwd=tmp_path)
    assert (done.stdout, done.returncode) == ("18\n", 0), done.stderr
    done = run_ctclip_in_core("predict", scan, "--model", "model", "--json", "--page", "page.html", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Cardiomegaly" in json.dumps(json.loads(done.stdout))
    assert (tmp_path / "page.html").exists()
