"""The presets `modern` and `tiny_modern`: shapes, shards that are shared, and memory."""

from __future__ import annotations

import dataclasses
import math

import torch

from ctclip_model.config import CTCLIPConfig, modern, published, tiny, tiny_modern
from ctclip_model.device import Compute, Precision
from ctclip_model.models.clip import CTCLIP
from ctclip_model.training.step_memory import estimate_step

CARD_BYTES = 24 * 10**9


def test_its_patches_tile_its_recipe_at_half_the_published_resolution():
    preset, whole = modern(), published().recipe
    vision = preset.model.vision
    assert preset.recipe.shape == (vision.depth, vision.image_size, vision.image_size)
    assert preset.recipe.spacing_mm == tuple(2 * spacing for spacing in whole.spacing_mm)
    assert 8 * math.prod(preset.recipe.shape) == math.prod(whole.shape)
    assert vision.grid == (15, 15, 15)


def test_tiny_modern_reads_the_shards_of_tiny():
    assert tiny_modern().recipe.recipe_id == tiny().recipe.recipe_id


def test_both_have_the_published_text_encoder_and_blocks_of_the_image_encoder():
    for ours, other in ((modern(), published()), (tiny_modern(), tiny())):
        assert ours.model.text == other.model.text
        for name in ("dim", "spatial_layers", "temporal_layers", "dim_head", "heads"):
            assert getattr(ours.model.vision, name) == getattr(other.model.vision, name)


def test_its_image_latent_takes_a_fifth_of_the_published_weights():
    def count(config: CTCLIPConfig) -> int:
        with torch.device("meta"):
            return CTCLIP(config).to_visual_latent.weight.numel()

    assert count(modern().model) < count(published().model) / 5


def test_a_card_of_24_gb_holds_its_whole_batch():
    preset = modern()
    compute = Compute("cpu", precision=Precision.bfloat16, recompute=preset.recompute)
    assert estimate_step(preset, compute).count_fitting(CARD_BYTES) >= preset.training.batch_size


def test_both_train_by_the_same_parts():
    parts = ("negatives", "prompt_loss_weight", "image_pretraining_samples", "text_learning_rate", "texts_per_volume")
    first, second = (dataclasses.asdict(preset.training) for preset in (modern(), tiny_modern()))
    assert {name: first[name] for name in parts} == {name: second[name] for name in parts}
