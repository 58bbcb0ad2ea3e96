"""What tests share: a Prefect server, a small data set of phantoms, and a preset that trains in seconds."""

from __future__ import annotations

import os

# The Hub's client reads these when it is imported: nobody is logged in, and a connection that stalls is soon given up.
os.environ |= {"HF_TOKEN_PATH": "/nonexistent", "HF_HUB_DOWNLOAD_TIMEOUT": "2"}

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub import LoopbackHub
from hub.server import ACCEPTED
from huggingface_hub import close_session

from ctclip_model.config import (
    PRESETS,
    LabellerConfig,
    LiProConfig,
    Preset,
    TrainingConfig,
    VisionConfig,
    VocabFineConfig,
    tiny,
)


def smoke() -> Preset:
    """The tiny preset, too small and too short to learn: every stage runs for real, in seconds."""
    base = tiny()
    depth, image_size, _ = base.recipe.shape
    vision = VisionConfig(
        dim=16, codebook_size=32, image_size=image_size, patch_size=image_size // 2, depth=depth,
        temporal_patch_size=depth // 2, spatial_layers=1, temporal_layers=1, dim_head=8, heads=2,
    )  # fmt: skip
    text = dataclasses.replace(base.model.text, vocab_size=512, hidden_size=32, layers=1, heads=2, intermediate_size=64)
    shape = {"hidden_size": 32, "layers": 1, "heads": 2, "intermediate_size": 64, "vocab_size": 512}
    labeller: LabellerConfig = dataclasses.replace(base.labeller, **shape, epochs=1)
    training: TrainingConfig = dataclasses.replace(base.training, batch_size=8, samples=64, text_pretraining_samples=64)
    return dataclasses.replace(
        base, name="smoke", model=dataclasses.replace(base.model, vision=vision, text=text, latent_dim=16),
        training=training, vocabfine=VocabFineConfig(batch_size=4, epochs=1, warm_up_steps=1, steps_per_checkpoint=1),
        lipro=LiProConfig(batch_size=8, epochs=2), labeller=labeller,
    )  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need Prefect come last: a process that runs its threads can no longer be forked."""
    items.sort(key=lambda item: "prefect_server" in getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session", autouse=True)
def _smoke_preset() -> Iterator[None]:
    PRESETS["smoke"] = smoke
    yield
    del PRESETS["smoke"]


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """A real Prefect server with a database of its own, on loopback."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


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
    folder = Path(__file__).parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"SKIPPED LOUDLY: no real data in {folder}")
    return folder
