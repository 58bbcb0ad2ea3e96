"""Models pushed to a hub, with the real client: what arrives opens there, and a rerun goes on or does nothing."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from support.command_line import run_ctclip
from support.hub import LoopbackHub
from support.hub.server import EXPIRED, NOT_ACCEPTED
from support.models import TINY, load_tiny_model, make_tokenizer
from support.paths import ROOT
from support.processes import wait_for
from support.records import write_run

from ctclip_model import open_model
from ctclip_model.config import Recipe
from ctclip_model.errors import HubUnavailableError
from ctclip_model.evaluation.decisions import Cohort, DecisionRule, Decisions, write_decisions
from ctclip_model.files import sha256_of
from ctclip_model.models.heads import LiPro
from ctclip_model.models.kinds import ModelKind
from ctclip_model.models.model_folder import save_model_folder
from tasks.hub.requests import Repository
from tasks.models.push_model import push_model
from tasks.settings import LIMITS
from warehouse import store

RECIPE = Recipe(name="tiny", shape=(30, 40, 40), spacing_mm=(8.0, 8.0, 8.0))
NAME = "someone/tiny-ct-clip"
CARD = "---\ntags: [chest-ct]\n---\n# tiny\n\n- Data: ct-rate:/home/me/ct, revision 0123abc; 7 volumes.\n"


@pytest.fixture
def data_root(tmp_path: Path) -> Path:
    """A data root without a warehouse, with a model that was evaluated."""
    folder = tmp_path / "data" / "models" / "tiny"
    info = {"recipe": dataclasses.asdict(RECIPE)}
    save_model_folder(folder, load_tiny_model(), make_tokenizer(200), extra=info, card=CARD)
    cohort = Cohort("ct-rate", "valid", "zero-shot", "published", "20261123T195300000001-abc001", 90, 110)
    rule = DecisionRule("Cardiomegaly", 0.37, 1.0, 0.0, 0.81, 0.77, 90, 30, 0.7, 0.9, 0.6, 0.85)
    write_decisions(folder, Decisions(sha256_of(folder / "model.safetensors"), cohort, (rule,)))
    return tmp_path / "data"


def push(data_root: Path, *arguments: str, to: str = NAME, **environment: str):
    return run_ctclip("push", "tiny", "--to", to, "--data-root", data_root, *arguments, **environment)


def files(hub: LoopbackHub, kind: str = "models", name: str = NAME) -> dict[str, bytes]:
    """The content of the newest commit."""
    repository = hub.repositories[kind, name]
    commit = repository.commits[repository.branches["main"]]
    return {path: (hub.store / blob.sha256).read_bytes() for path, blob in commit.items()}


def count_commits(hub: LoopbackHub) -> int:
    return len(hub.repositories["models", NAME].commits)


def test_pushed_model_is_private_and_opens_from_the_hub_with_its_thresholds(data_root, hub, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    result = push(data_root)
    assert result.returncode == 0, result.stderr
    assert f"{hub.endpoint}/{NAME} (private)" in result.stdout
    assert hub.repositories["models", NAME].is_private
    folder = data_root / "models" / "tiny"
    found = files(hub)
    assert sorted(found) == [
        ".gitattributes", "README.md", "config.json", "decisions.json", "model.safetensors", "tokenizer.json",
    ]  # fmt: skip
    assert found["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    model = open_model(f"hf://{NAME}")
    assert (model.name, model.recipe) == (NAME, RECIPE)
    assert model.decisions is not None
    assert model.decisions.by_abnormality["Cardiomegaly"].threshold == 0.37
    expected = open_model(folder).loaded.model.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in model.loaded.model.state_dict().items())


def test_card_has_the_data_thresholds_use_and_licence_once(data_root, hub):
    assert push(data_root).returncode == 0
    card = files(hub)["README.md"].decode()
    _, head, text = card.split("---\n", 2)
    facts = yaml.safe_load(head)
    assert (facts["license"], facts["library_name"]) == ("cc-by-nc-sa-4.0", "ctclip-rebuild")
    assert facts["datasets"] == ["ibrahimhamamci/CT-RATE"]
    assert "- Data: ct-rate, a local folder, revision 0123abc; 7 volumes" in text
    assert "| Cardiomegaly | 0.370 | 0.81 (0.70 to 0.90) | 0.77 (0.60 to 0.85) |" in text
    assert f'open_model("hf://{NAME}")' in text
    for title in ("Use", "Thresholds", "Evidence", "Intended use", "Licence"):
        assert text.count(f"## {title}\n") == 1
    assert "not a medical device" in " ".join(text.split())


def test_card_has_the_scores_that_the_warehouse_has_of_these_weights_alone(data_root, hub):
    weights = sha256_of(data_root / "models/tiny/model.safetensors")
    scored = {
        "dataset": "ct-rate", "split": "valid", "protocol": "zero-shot", "unit": "scan", "label_source": "published",
        "abnormality": "macro", "metric": "auroc", "fingerprint": "f", "n": 40, "label_set": "ct-rate-18",
    }  # fmt: skip
    write_run(
        data_root, 0, "evaluate",
        models=[{"model_id": "tiny", "kind": "ct-clip", "path": "models/tiny", "weights_sha256": weights}],
        metrics=[
            scored | {"model_id": "tiny", "value": 0.7312, "ci_low": 0.7, "ci_high": 0.76},
            scored | {"model_id": "other", "value": 0.9},
        ],
    )  # fmt: skip
    store.publish(data_root)
    assert push(data_root).returncode == 0
    _, head, text = files(hub)["README.md"].decode().split("---\n", 2)
    assert "| CT-RATE valid | zero-shot | published | 40 scans | 0.731 (0.700 to 0.760) |" in text
    ((result,),) = (model["results"] for model in yaml.safe_load(head)["model-index"])
    assert (result["dataset"]["type"], result["metrics"][0]["value"]) == ("ibrahimhamamci/CT-RATE", 0.7312)
    write_run(
        data_root, 1, "train",
        models=[{"model_id": "tiny", "kind": "ct-clip", "path": "models/tiny", "weights_sha256": "of a retraining"}],
    )  # fmt: skip
    store.publish(data_root)
    push(data_root)
    assert "## Evaluation" not in files(hub)["README.md"].decode()


def test_another_licence_names_no_data_set(data_root, hub):
    assert push(data_root, "--licence", "apache-2.0").returncode == 0
    facts = yaml.safe_load(files(hub)["README.md"].decode().split("---\n", 2)[1])
    assert facts["license"] == "apache-2.0"
    assert "datasets" not in facts


def test_licence_that_the_hub_does_not_know_is_one_line_and_nothing_is_uploaded(data_root, hub):
    result = push(data_root, "--licence", "mine")
    assert (result.returncode, len(result.stderr.splitlines())) == (1, 1)
    assert '"license" must be one of the list' in result.stderr
    assert "Is --licence one that it knows?" in result.stderr
    assert hub.commits.uploaded == []


def test_second_push_makes_no_commit_and_says_so(data_root, hub):
    push(data_root)
    before, uploads = hub.repositories["models", NAME].branches["main"], list(hub.commits.uploaded)
    result = push(data_root)
    assert (result.returncode, len(result.stdout.splitlines())) == (0, 1)
    assert "is up to date: no new commit" in result.stdout
    assert hub.repositories["models", NAME].branches["main"] == before
    assert hub.commits.uploaded == uploads


def test_changed_model_replaces_only_what_changed_and_takes_off_what_it_lacks(data_root, hub):
    push(data_root)
    hub.commits.uploaded.clear()
    (data_root / "models/tiny/decisions.json").unlink()
    result = push(data_root)
    assert result.returncode == 0, result.stderr
    assert "README.md, decisions.json in commit" in result.stdout
    assert {"decisions.json"} & set(files(hub)) == set()
    assert "## Thresholds" not in files(hub)["README.md"].decode()
    assert hub.commits.uploaded == []


def test_public_opens_a_new_and_an_existing_repository(data_root, hub):
    assert "(private)" in push(data_root).stdout
    result = push(data_root, "--public")
    assert "(public) is up to date" in result.stdout
    assert not hub.repositories["models", NAME].is_private
    assert "(public) is up to date" in push(data_root).stdout
    assert "(public)" in push(data_root, "--public", to="someone/other").stdout
    assert not hub.repositories["models", "someone/other"].is_private


@pytest.mark.parametrize(
    ("token", "line"),
    [
        ("", "needs a token and there is none"),
        (EXPIRED, "refuses the token, which may be expired or revoked"),
        (NOT_ACCEPTED, "the token may not write to model someone/tiny-ct-clip"),
    ],
)
def test_refused_push_is_one_line_that_names_the_remedy_and_no_token(data_root, hub, token, line):
    result = push(data_root, HF_TOKEN=token)
    assert (result.returncode, len(result.stderr.splitlines())) == (1, 1)
    assert line in result.stderr
    assert "/settings/tokens" in result.stderr
    assert not token or token not in result.stderr + result.stdout
    assert hub.repositories == {}


def test_token_that_may_only_read_an_existing_repository_is_one_line(data_root, hub):
    push(data_root, "--public")
    before = hub.repositories["models", NAME].branches["main"]
    (data_root / "models/tiny/decisions.json").unlink()
    result = push(data_root, HF_TOKEN=NOT_ACCEPTED)
    assert result.returncode == 1
    assert "may not write to model someone/tiny-ct-clip" in result.stderr
    assert hub.repositories["models", NAME].branches["main"] == before


def test_no_network_is_one_line_that_says_a_rerun_goes_on(data_root, hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    limits = dataclasses.replace(LIMITS, hub_attempts=2, hub_wait_s=0.01)
    with pytest.raises(HubUnavailableError, match=r"cannot be reached .* run this again"):
        push_model(data_root, "tiny", Repository(NAME, "model"), limits=limits)


@pytest.mark.parametrize(
    "name", ["tiny", "a/b/c", "someone/", "/x", "some one/x", "someone/x--y", "-/x", "hf://datasets/a/b"]
)
def test_name_that_is_no_owner_and_name_is_refused_before_anything_is_read(data_root, hub, name):
    result = push(data_root, to=name)
    assert (result.returncode, hub.requests) == (1, [])
    assert "write OWNER/NAME" in result.stderr


@pytest.mark.parametrize(
    ("lost", "line"),
    [
        ("model.safetensors", "model.safetensors"),
        ("tokenizer.json", "has no tokenizer"),
        ("config.json", "no model folder with a config.json"),
    ],
)
def test_folder_without_a_file_is_refused_and_nothing_is_pushed(data_root, hub, lost, line):
    (data_root / "models/tiny" / lost).unlink()
    result = push(data_root)
    assert (result.returncode, len(result.stderr.splitlines())) == (1, 1)
    assert line in result.stderr
    assert hub.requests == []


def test_thresholds_of_other_weights_and_weights_without_a_folder_are_refused(data_root, hub, tmp_path):
    path = data_root / "models/tiny/decisions.json"
    path.write_text(path.read_text().replace('"weights_sha256": "', '"weights_sha256": "0'))
    assert "belongs to other weights" in push(data_root).stderr
    torch.save(load_tiny_model().state_dict(), tmp_path / "weights.pt")
    result = run_ctclip("push", str(tmp_path / "weights.pt"), "--to", NAME, "--data-root", data_root)
    assert "ctclip import-model" in result.stderr
    assert hub.requests == []


def test_lipro_needs_no_tokenizer(data_root, hub):
    torch.manual_seed(0)
    save_model_folder(
        data_root / "models/tiny", LiPro(TINY), None, kind=ModelKind.lipro, extra={"recipe": dataclasses.asdict(RECIPE)}
    )
    result = push(data_root)
    assert result.returncode == 0, result.stderr
    assert "tokenizer.json" not in files(hub)


def test_faults_that_pass_are_tried_again(data_root, hub):
    hub.faults.play(503, on="/upload/")
    hub.faults.play(500, on="/commit/")
    result = push(data_root)
    assert result.returncode == 0, result.stderr
    assert len(hub.faults.played) == 2
    assert count_commits(hub) == 2  # the first one made the repository


def test_push_that_is_killed_midway_is_finished_by_a_rerun(data_root, hub):
    hub.commits.delay_s = 0.2
    command = [sys.executable, "-m", "flows", "push", "tiny", "--to", NAME, "--data-root", str(data_root)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for(lambda: hub.commits.received_bytes > 0, 60)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert hub.commits.uploaded == []
    assert list(files(hub)) == [".gitattributes"]
    hub.commits.delay_s = 0
    result = push(data_root)
    assert result.returncode == 0, result.stderr
    assert files(hub)["model.safetensors"] == (data_root / "models/tiny/model.safetensors").read_bytes()
    assert count_commits(hub) == 2


def test_uploaded_file_whose_commit_never_came_is_not_sent_again(data_root, hub, monkeypatch):
    hub.faults.play(403, on="/commit/")
    assert push(data_root).returncode == 1
    sent = hub.commits.received_bytes
    assert sent > 0
    assert push(data_root).returncode == 0
    assert hub.commits.received_bytes == sent


def test_two_pushes_at_once_leave_one_commit_of_the_model(data_root, hub):
    hub.commits.delay_s = 0.05
    command = [sys.executable, "-m", "flows", "push", "tiny", "--to", NAME, "--data-root", str(data_root), "--json"]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    answers = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], answers
    printed = [json.loads(out) for out, _ in answers]
    assert printed[0]["commit"] == printed[1]["commit"]
    assert count_commits(hub) == 2


def test_commit_of_somebody_else_meanwhile_stays(data_root, hub):
    push(data_root)
    repository = hub.repositories["models", NAME]
    (data_root / "models/tiny/decisions.json").unlink()
    hub.faults.play(412, on="/commit/")
    other = repository.keep_bytes("notes.txt", b"of somebody else")
    commit = repository.commits[repository.branches["main"]]
    repository.commit_files({**commit, "notes.txt": other})
    assert push(data_root).returncode == 0
    assert files(hub)["notes.txt"] == b"of somebody else"
    assert "decisions.json" not in files(hub)
