"""Shared fixtures: a Prefect server, a small data set of phantoms, and a preset that trains in seconds."""

from __future__ import annotations

import os

# The Hub's client reads these when it is imported: nobody is logged in, a connection that stalls is soon given up, and
# files are sent as they are, since the hub on loopback has no storage of chunks.
os.environ |= {"HF_TOKEN_PATH": "/nonexistent", "HF_HUB_DOWNLOAD_TIMEOUT": "2", "HF_HUB_DISABLE_XET": "1"}
# PyTorch reads this, in workers too: models this small wait for a second thread longer than it works for them, and sums
# of two threads come in another order, so that a code of the code book may flip.
os.environ["OMP_NUM_THREADS"] = "1"

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import close_session
from support.hub import LoopbackHub
from support.hub.server import ACCEPTED
from support.once import make_once, serve_prefect
from support.paths import SHARED

from ctclip_model.data.phantom import PhantomConfig, make_phantoms


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that fork come first and those that need Prefect last: a process with its threads can be forked no more.

    Of the last, the longest files begin, so that both processes end at the same time.
    """
    items.sort(
        key=lambda item: (
            "prefect_server" in getattr(item, "fixturenames", ()),
            item.path.stem != "test_loader",
            item.path.parent.name != "whole",
        )
    )


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of this test run share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def prefect_server(shared_folder: Path) -> Iterator[None]:
    """A real Prefect server with a database of its own, on loopback."""
    with serve_prefect(shared_folder):
        yield


@pytest.fixture(scope="session")
def few_phantoms(shared_folder: Path) -> Path:
    """Twelve patients without an anomaly; tests that change them copy them first."""
    config = PhantomConfig(seed=1, train_patients=6, valid_patients=6)
    return make_once(shared_folder / "few_phantoms", lambda folder: make_phantoms(folder, config, processes=1))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """An empty hub on loopback, asked in place of the real one with a token that opens all of it."""
    with LoopbackHub(tmp_path / "hub").running() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.endpoint)
        monkeypatch.setenv("HF_TOKEN", ACCEPTED)
        yield running
    close_session()  # whose connections would outlive the hub


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real public data beside the project, which it may not contain; tests that need it skip where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"SKIPPED LOUDLY: no real data in {SHARED}")
    return SHARED
