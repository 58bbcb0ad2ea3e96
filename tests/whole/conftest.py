"""A data root after one whole rebuild, made once for all files of this folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.once import make_once
from support.rebuilds import rebuild_all

from ctclip_model.data.phantom import ANOMALIES, PhantomConfig, make_phantoms


@pytest.fixture(scope="session")
def phantoms(shared_folder: Path) -> Path:
    """Twenty-four patients with every anomaly; tests that change them copy them first."""
    config = PhantomConfig(seed=3, train_patients=16, valid_patients=8, anomalies=ANOMALIES)
    return make_once(shared_folder / "phantoms", lambda folder: make_phantoms(folder, config, processes=1))


@pytest.fixture(scope="session")
def built(prefect_server: None, phantoms: Path, shared_folder: Path) -> Path:
    """A data root after one whole rebuild of the phantoms; tests that change it copy it first."""
    return make_once(shared_folder / "built", lambda data_root: rebuild_all(data_root, phantoms))


@pytest.fixture
def data_root(built: Path, tmp_path: Path) -> Path:
    """A copy of it, for tests that change it."""
    return Path(shutil.copytree(built, tmp_path / "data"))


@pytest.fixture
def source(phantoms: Path, tmp_path: Path) -> Path:
    """The same phantoms elsewhere, for tests that change them."""
    return Path(shutil.copytree(phantoms, tmp_path / "source"))
