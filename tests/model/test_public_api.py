"""The public face of `ctclip_model`: light to import, typed, and with examples that run."""

from __future__ import annotations

import doctest
import errno
import fcntl
import inspect
import os
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import nibabel as nib
import numpy as np
import pytest
import torch
from support.models import SLIM, TINY, load_tiny_model
from support.paths import ROOT

import ctclip_model
from ctclip_model.config import LabellerConfig, Recipe, TfidfConfig
from ctclip_model.data.abnormalities import ABNORMALITIES, prompt_pair
from ctclip_model.errors import ConfigurationError, HubAccessError, HubNotFoundError, HubUnavailableError
from ctclip_model.evaluation.predict import VolumeModel
from ctclip_model.labelling.tfidf import TfidfLabeller
from ctclip_model.labelling.transformer import TransformerLabeller
from ctclip_model.models.clip import CTCLIP
from ctclip_model.models.heads import LiPro
from ctclip_model.models.model_folder import save_model_folder
from ctclip_model.models.report_labeller import ReportLabeller
from ctclip_model.models.text import train_tokenizer

RECIPE = Recipe("own", spacing_mm=(6.0, 7.0, 7.0), shape=(30, 40, 40))  # the golden model's size


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([prompt for name in ABNORMALITIES for prompt in prompt_pair(name)] * 2, vocab_size=120)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer) -> Path:
    """The files that the examples name, all tiny: a scan, weights with their tokenizer, and a labeller."""
    folder = tmp_path_factory.mktemp("examples")
    voxels = np.random.default_rng(0).integers(-1000, 500, (40, 40, 30), dtype=np.int16)
    nib.save(nib.Nifti1Image(voxels, np.diag([7.0, 7.0, 6.0, 1.0])), folder / "scan.nii.gz")
    torch.manual_seed(0)
    torch.save(CTCLIP(SLIM).state_dict(), folder / "CT-CLIP_v2.pt")
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    config = LabellerConfig(vocab_size=200, hidden_size=16, layers=1, heads=2, intermediate_size=16, max_length=40)
    save_model_folder(folder / "labeller", ReportLabeller(config), tokenizer)
    return folder


def test_import_is_light():
    code = "import sys, ctclip_model; sys.exit(bool({'torch', 'transformers', 'numpy'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_every_public_name_is_there_and_no_other():
    assert set(ctclip_model.__all__) < set(dir(ctclip_model))
    assert all(inspect.getdoc(getattr(ctclip_model, name)) for name in ctclip_model.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'load_everything'"):
        _ = ctclip_model.load_everything
    assert (Path(ctclip_model.__file__).parent / "py.typed").is_file()


EXAMPLES = ("load_volume", "load_ctclip", "load_labeller", "open_model")


@pytest.mark.parametrize("name", [*EXAMPLES, "predict", "embed"])
def test_example_runs(folder, monkeypatch, name):
    monkeypatch.chdir(folder)
    function = getattr(ctclip_model if name in EXAMPLES else VolumeModel, name)
    (test,) = doctest.DocTestFinder(recurse=False).find(function, name, globs={})
    assert test.examples
    assert doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test).failed == 0


@pytest.mark.parametrize("kind", [TransformerLabeller, TfidfLabeller])
def test_both_labellers_have_the_public_interface(folder, kind):
    count = len(ABNORMALITIES)
    labeller: ctclip_model.Labeller = ctclip_model.load_labeller(folder / "labeller")
    if kind is TfidfLabeller:
        zeros = np.zeros(count)
        labeller = TfidfLabeller("id", TfidfConfig(), ["nodule"], np.ones((count, 1)), zeros, zeros, zeros, zeros)
    assert isinstance(labeller, kind)
    assert labeller.label(["A nodule.", "Nothing."]).shape == (2, count)
    assert labeller.thresholds.shape == (count,)
    assert isinstance(labeller.labeller_id, str)


@pytest.fixture
def published(hub, tmp_path, monkeypatch, tokenizer):
    """A model folder in a repository of the loopback hub, and an empty cache."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    save_model_folder(tmp_path / "made", load_tiny_model(), tokenizer, extra={"recipe": vars(RECIPE)})
    repository = hub.repository("someone/tiny-ct-clip", "models")
    repository.commit(tmp_path / "made")
    shutil.rmtree(tmp_path / "made")
    return repository


def test_model_opens_by_its_hub_id_and_from_the_cache_afterwards(hub, published, folder, monkeypatch):
    model = ctclip_model.open_model("someone/tiny-ct-clip")
    assert (model.name, model.recipe) == ("someone/tiny-ct-clip", RECIPE)
    (first,) = model.predict([folder / "scan.nii.gz"])
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    (again,) = ctclip_model.open_model("someone/tiny-ct-clip").predict([folder / "scan.nii.gz"])
    assert np.array_equal(first.probabilities, again.probabilities)


def test_address_on_the_hub_opens_the_same_model_at_its_revision(hub, published):
    commit = hub.repositories["models", "someone/tiny-ct-clip"].branches["main"]
    for address in ("hf://someone/tiny-ct-clip", f"hf://someone/tiny-ct-clip@{commit}"):
        assert ctclip_model.open_model(address).name == "someone/tiny-ct-clip"
    with pytest.raises(HubNotFoundError, match="no revision v9"):
        ctclip_model.open_model("hf://someone/tiny-ct-clip@v9")


@pytest.mark.parametrize("address", ["hf://", "hf://tiny", "hf://datasets/a/b", "hf://a/b/model.safetensors"])
def test_other_address_is_refused_with_the_form_of_a_right_one(address):
    with pytest.raises(ConfigurationError, match="hf://OWNER/NAME"):
        ctclip_model.open_model(address)


def test_lipro_needs_no_tokenizer_from_the_hub_nor_from_the_cache(hub, published, folder, tmp_path, monkeypatch):
    model = LiPro(TINY)
    torch.nn.init.normal_(model.classifier.weight)
    save_model_folder(tmp_path / "lipro", model, None, extra={"recipe": vars(RECIPE)})
    hub.repository("someone/lipro", "models").commit(tmp_path / "lipro")
    (first,) = ctclip_model.open_model("someone/lipro").predict([folder / "scan.nii.gz"])
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    (again,) = ctclip_model.open_model("someone/lipro").predict([folder / "scan.nii.gz"])
    assert np.array_equal(first.probabilities, again.probabilities)


def test_a_cache_that_cannot_be_locked_is_named_with_its_cause(published, tmp_path, monkeypatch):
    def refuse(_descriptor, _operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(HubUnavailableError, match=r"cannot be stored in the cache .*: No locks available"):
        ctclip_model.open_model("someone/tiny-ct-clip")


@pytest.fixture
def lock_files(published, monkeypatch) -> list[Path]:
    """Lock files of the Hub's cache that a download with flock left, on a file system that has no flock any more."""
    cache = Path(huggingface_hub.constants.HF_HUB_CACHE)
    ctclip_model.open_model("someone/tiny-ct-clip")
    for snapshot in cache.glob("models--*/snapshots"):
        shutil.rmtree(snapshot)
    for blobs in cache.glob("models--*/blobs"):
        shutil.rmtree(blobs)
    left = sorted((cache / ".locks").rglob("*.lock"))
    assert left

    def refuse(_descriptor, _operation):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    return left


@pytest.mark.filterwarnings("ignore:flock not supported")
def test_lock_files_that_flock_left_hold_no_download_up(lock_files, monkeypatch):
    monkeypatch.setattr("ctclip_model.lock_files.BEGUN_S", 0.05)
    assert {path.stat().st_size for path in lock_files} == {0}
    assert ctclip_model.open_model("someone/tiny-ct-clip") is not None


@pytest.mark.filterwarnings("ignore:flock not supported")
def test_a_lock_file_of_another_machine_is_named_and_not_waited_for_without_end(lock_files, monkeypatch):
    monkeypatch.setattr("ctclip_model.lock_files.LOCK_WAIT_S", 0.05)
    for path in lock_files:
        path.write_text("7\nanother-machine\n")
    with pytest.raises(HubUnavailableError, match=r"another process has held .*\.lock too long.*delete that file"):
        ctclip_model.open_model("someone/tiny-ct-clip")


def test_hub_faults_say_what_to_do(hub, published, tmp_path, monkeypatch):
    with pytest.raises(HubNotFoundError, match="no revision v9"):
        ctclip_model.open_model("someone/tiny-ct-clip", revision="v9")
    with pytest.raises(HubNotFoundError, match="no such file or folder here"):
        ctclip_model.open_model("someone/else")
    hub.repository("someone/empty", "models").commit(tmp_path / "cache")
    with pytest.raises(HubNotFoundError, match="holds no model folder"):
        ctclip_model.open_model("someone/empty")
    published.is_gated = True
    monkeypatch.setenv("HF_TOKEN", "hf_not_accepted")
    with pytest.raises(HubAccessError, match="accept its terms"):
        ctclip_model.open_model("someone/tiny-ct-clip")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # a dead address is tried for 24 s
    with pytest.raises(HubUnavailableError, match="out of reach"):
        ctclip_model.open_model("someone/tiny-ct-clip")
