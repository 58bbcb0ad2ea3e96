"""The preset for smaller GPUs, at its full size, from phantoms to scores; a few steps only, for a CPU to bear."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from ctclip_model.config import PRESETS, Preset, small_gpu, tiny
from ctclip_model.data.phantom import PhantomConfig, make_phantoms
from warehouse import store


def few_steps() -> Preset:
    preset = small_gpu()
    return dataclasses.replace(
        preset,
        name="few_steps",
        training=dataclasses.replace(preset.training, batch_size=2, samples=4),
        vocabfine=dataclasses.replace(preset.vocabfine, epochs=1),
        labeller=tiny().labeller,
    )


@pytest.fixture
def _few_steps_preset() -> Iterator[None]:
    PRESETS["few_steps"] = few_steps
    yield
    del PRESETS["few_steps"]


def test_its_patches_tile_its_recipe():
    preset = small_gpu()
    vision = preset.model.vision
    assert (vision.patch_size, vision.temporal_patch_size) == (30, 15)
    assert preset.recipe.shape == (vision.depth, vision.image_size, vision.image_size)
    assert vision.grid == (16, 16, 16)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("prefect_server", "_few_steps_preset")
def test_it_trains_fine_tunes_and_evaluates_end_to_end(tmp_path: Path) -> None:
    from flows.ingest import ingest
    from flows.rebuild import rebuild

    make_phantoms(tmp_path / "source", PhantomConfig(seed=1, train_patients=8, valid_patients=3), processes=1)
    ingest(str(tmp_path / "source"), tmp_path / "data")
    rebuild(None, tmp_path / "data", "few_steps", "tfidf", from_stage="convert")
    with store.read(tmp_path / "data") as connection:
        scored = connection.execute("select distinct protocol from predictions order by all").fetchall()
        (width,) = connection.execute("select distinct len(latent) from current_latents").fetchone() or (None,)
        (unfinished,) = connection.execute("select count(*) from pending").fetchone() or (None,)
    assert scored == [("lipro",), ("published",), ("vocabfine",), ("zero-shot",)]
    assert width == small_gpu().model.latent_dim
    assert unfinished == 0
