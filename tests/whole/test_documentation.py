"""The tutorial and the how-to pages do what they say: their blocks of code are run on phantoms."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from support.encoders import install_encoders
from support.models import SLIM, make_model, make_tokenizer
from support.pages import RUN, read_blocks, run_blocks
from support.paths import ROOT

from tasks.models.import_model import import_encoder
from warehouse import store

DOCS = ROOT / "docs"
HOW_TO = sorted((DOCS / "how-to").glob("*.md"))
LONG = ("rerun_stage", "train")  # pages that run several stages
RUNNABLE = [pytest.param(page, marks=[pytest.mark.slow] * (page.stem in LONG)) for page in HOW_TO]
SMALLER = {
    "--preset tiny_modern": "--preset smoke",
    "train_patients=2000": "train_patients=12",
    "valid_patients=300": "valid_patients=6",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder. Variables that a page exports are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CTCLIP_DATA_ROOT", str(tmp_path / "data"))
    return tmp_path


@pytest.fixture
def own_files(folder: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Things that how-to pages name: a scan, weights with a tokenizer, an encoder, and a label set as a page has it."""
    shutil.copy(next(source.rglob("valid_*.nii.gz")), folder / "scan.nii.gz")
    torch.save(make_model(SLIM).state_dict(), folder / "CT-CLIP_v2.pt")
    make_tokenizer().backend_tokenizer.save(str(folder / "tokenizer.json"))
    install_encoders(folder / "package", monkeypatch, encoders={"my-encoder": "MeanHU"})
    (label_set,) = (block for block in read_blocks(DOCS / "how-to/predict.md") if block.language == "toml")
    (folder / "FINDINGS.toml").write_text(label_set.code)
    return folder


@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: page.stem)
def test_blocks_of_how_to_pages_run(page, own_files, data_root):
    ((model_id,),) = store.query(data_root, "select max(model_id) from current_models where kind = 'ct-clip'")
    paths = {"/backup/ct-clip": str(own_files / "backup"), "/new/data": str(own_files / "restored")}
    names = {"MODEL_ID": model_id}
    if page.stem == "external_encoder":
        names["ENCODER_ID"] = import_encoder(data_root, "my-encoder", {"width": 9}).model_id
    run_blocks(page, data_root, SMALLER | paths | names)


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_blocks_of_the_tutorial_run(folder):
    done = run_blocks(DOCS / "tutorial.md", folder / "demo" / "data", SMALLER)
    assert len(done) > 10


@pytest.mark.parametrize("page", [DOCS / "tutorial.md", *HOW_TO], ids=lambda page: page.stem)
def test_a_block_runs_or_says_why_not(page):
    silent = [
        f"{block.page}:{block.line}" for block in read_blocks(page) if block.language not in RUN and not block.reason
    ]
    assert silent == []


def test_a_failing_block_is_found(folder):
    (folder / "page.md").write_text("```sh\nfalse\n```\n")
    with pytest.raises(AssertionError, match=r"page\.md:1: false"):
        run_blocks(folder / "page.md", folder, {})
    (folder / "page.md").write_text("<!-- not run: fails -->\n```sh\nfalse\n```\n```python\nassert [1]\n```\n")
    assert [block.language for block in run_blocks(folder / "page.md", folder, {})] == ["python"]
