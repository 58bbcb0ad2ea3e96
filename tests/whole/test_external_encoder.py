"""An encoder of another package beside CT-CLIP: converted for, embedded, probed, scored, compared and shown."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.command_line import run_ctclip
from support.data_roots import start_cluster
from support.encoders import SOURCE, install_encoders, remove_encoders
from support.paths import ROOT
from support.rebuilds import count_done, find_labeller

from ctclip_model.errors import ConfigurationError, MissingInputError
from flows.convert import convert
from flows.embed import embed
from flows.evaluate import evaluate
from flows.finetune import finetune
from flows.rebuild import rebuild
from flows.report import report
from tasks.models.import_model import import_encoder
from warehouse.store import query

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    install_encoders(tmp_path / "package", monkeypatch)
    return tmp_path / "package"


def import_model(data_root: Path, *options: str, name: str = "boxes") -> str:
    done = run_ctclip("import-model", "--encoder", name, *options, "--data-root", data_root, "--json")
    assert done.returncode == 0, done.stderr
    ((model,),) = [json.loads(done.stdout)]
    assert model["is_new"]
    return str(model["model_id"])


def rebuild_with(data_root: Path, source: Path, model: str) -> dict[str, int]:
    """Number of items of each stage that did something, from the conversion on."""
    summaries = rebuild(
        str(source), data_root, "smoke", model=model, from_stage="convert", labeller=find_labeller(data_root),
        dask_address=start_cluster(),
    )  # fmt: skip
    return count_done({summary["stage"]: summary for summary in summaries})


def test_a_frozen_encoder_is_probed_and_stands_beside_ct_clip(data_root, source, package, monkeypatch):
    model = import_model(data_root, "--option", "width=9")
    with pytest.raises(MissingInputError, match=r"20 x 20 x 20 voxels of 14 x 14 x 14 mm.*ctclip convert --recipe '{"):
        embed(data_root, model=model)

    done = rebuild_with(data_root, source, model)
    ((volumes,),) = query(data_root, "select count(*) from latents where model_id = ?", [model])
    assert done == {"convert": volumes, "embed": volumes}  # no text side: no reports, no prompts, no scores, no page
    assert query(data_root, "select distinct len(latent), kind from latents where model_id = ?", [model]) == [
        (9, "volume")
    ]
    assert rebuild_with(data_root, source, model) == {}

    remove_encoders(package, monkeypatch)  # latents are there: a probe needs no package
    (tuned,) = finetune(data_root, model=model, kind="lipro")
    columns = "model_id, config ->> '$.is_standardised'"
    ((probe, scaled),) = query(data_root, f"select {columns} from current_models where parent_model_id = ?", [model])
    assert (tuned["done"], probe.startswith("external-boxes-lipro-"), scaled) == (1, True, "true")
    assert evaluate(data_root, model=probe)["done"] > 0
    assert report(data_root, model=probe)["done"] == 1
    page = (data_root / "reports" / f"{probe}-phantom-valid.html").read_text()
    assert "Retrieval" not in page
    assert "Evidence" not in page

    board = query(data_root, "select model, protocol from model_leaderboard where not is_published")
    assert {(probe, "lipro"), (probe, "published")} <= {*board}
    others = query(data_root, "select distinct other_model_id from current_comparisons where model_id = ?", [probe])
    assert len(others) >= 1
    assert not query(data_root, "select * from current_retrieval where model_id in (?, ?)", [model, probe])


def test_a_text_side_is_scored_without_a_probe(data_root, source, hub):
    model = import_model(data_root, name="boxes-and-texts")
    done = rebuild_with(data_root, source, model)
    kinds = dict(query(data_root, "select kind, count(*) from latents where model_id = ? group by kind", [model]))
    assert (kinds["prompt"], set(kinds)) == (36, {"prompt", "report", "volume"})
    assert done["embed"] == sum(kinds.values())
    protocols = query(data_root, "select distinct protocol from current_metrics where model_id = ?", [model])
    assert {("zero-shot",), ("published",)} <= {*protocols}
    assert query(data_root, "select * from current_retrieval where model_id = ?", [model])
    (tuned,) = finetune(data_root, model=model, kind="lipro")
    assert tuned["done"] == 1
    pushed = run_ctclip("push", "latents", "--model", model, "--to", "someone/latents", "--data-root", data_root)
    assert pushed.returncode == 0, pushed.stderr
    repository = hub.repositories["datasets", "someone/latents"]
    card = (hub.store / repository.commits[repository.branches["main"]]["README.md"].sha256).read_text()
    assert f"{model} (boxes-and-texts, an encoder of another package)" in card
    assert "CT-CLIP" not in card


def test_other_weights_are_another_model_whose_latents_are_pending(data_root, source, package, tmp_path, monkeypatch):
    first = import_model(data_root)
    again = import_encoder(data_root, "boxes")
    assert (again.model_id, again.is_new) == (first, False)
    assert again.recipe is not None
    convert(data_root, "smoke", recipe=json.dumps(vars(again.recipe)), dask_address=start_cluster())
    embed(data_root, model=first)
    remove_encoders(package, monkeypatch)
    install_encoders(tmp_path / "new", monkeypatch, source=SOURCE.replace("manual_seed(seed)", "manual_seed(seed + 1)"))
    second = import_model(data_root)
    plan = run_ctclip("plan", "embed", "--model", second, "--data-root", data_root, "--json")
    ((volumes,),) = query(data_root, "select count(*) from latents where model_id = ?", [first])
    assert (second != first, json.loads(plan.stdout)["pending"]) == (True, volumes)


def test_an_encoder_is_never_trained(data_root):
    model = import_model(data_root)
    with pytest.raises(ConfigurationError, match=r"trains both encoders, and external-boxes-.* stays as it is"):
        finetune(data_root, model=model, kind="vocabfine")


def test_a_missing_package_is_a_line_in_plan_status_and_embed(data_root, package, monkeypatch):
    model = import_model(data_root)
    remove_encoders(package, monkeypatch)
    line = "the encoder 'boxes' is not installed: if you trust its package, pip install made-up-encoders"
    scan = data_root / "scan.nii.gz"  # not even looked for
    for command, code in (
        (("status",), 0), (("plan", "embed"), 0), (("embed-volume", scan, "--model", model), 1),
        (("predict", scan, "--model", model), 1), (("import-model", "--encoder", "boxes"), 1),
    ):  # fmt: skip
        done = run_ctclip(*command, "--data-root", data_root, COLUMNS="300")
        shown = done.stdout if code == 0 else done.stderr
        expected = line if "--encoder" not in command else "no installed package declares the encoder boxes"
        assert (done.returncode, expected in shown) == (code, True), (command, done)
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_example_package_of_a_monai_network_of_random_weights(data_root, source, tmp_path, monkeypatch):
    pytest.importorskip("monai", reason="SKIPPED LOUDLY: monai is not installed, which `make install` brings")
    shutil.copytree(ROOT / "examples" / "monai_encoder", tmp_path / "monai_encoder")
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index")
    subprocess.run([*pip, "--target", tmp_path / "site", tmp_path / "monai_encoder"], check=True)
    monkeypatch.syspath_prepend(tmp_path / "site")
    options = ("depth=10", "shape=[24,32,32]", "spacing_mm=[12.0,9.0,9.0]")
    model = import_model(data_root, *(word for one in options for word in ("--option", one)), name="monai-resnet")
    done = rebuild_with(data_root, source, model)
    assert done["convert"] == done["embed"] > 0
    finetune(data_root, model=model, kind="lipro")
    ((probe,),) = query(data_root, "select model_id from current_models where parent_model_id = ?", [model])
    assert probe.startswith("external-monai-resnet-lipro-")
    evaluate(data_root, model=probe)
    report(data_root, model=probe)
    board = query(data_root, "select auroc from model_leaderboard where model = ? and protocol = 'lipro'", [probe])
    assert [0 < auroc < 1 for (auroc,) in board] == [True]
    scan = next(source.rglob("valid_*.nii.gz"))
    predicted = run_ctclip("predict", scan, "--model", probe, "--data-root", data_root, "--json")
    assert len(json.loads(predicted.stdout)["volumes"][0]["probabilities"]) == 18
