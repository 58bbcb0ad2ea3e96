"""Zero-shot probabilities and their means over the reconstructions of a scan."""

import numpy as np
import pytest

from ctclip_model.evaluation.zero_shot import by_scan, zero_shot


def test_probability_is_the_first_share_of_a_softmax_over_the_pair():
    rng = np.random.default_rng(0)
    images, prompts = rng.normal(size=(5, 8)).astype(np.float32), rng.normal(size=(3, 2, 8)).astype(np.float32)
    logits = 1.7 * np.einsum("nd,lpd->nlp", images.astype(float), prompts)
    expected = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    assert zero_shot(images, prompts, 1.7) == pytest.approx(expected[..., 0], abs=1e-12)


def test_a_large_scale_does_not_overflow():
    prompts = np.array([[[1.0, 0.0], [-1.0, 0.0]]])
    assert zero_shot(np.array([[1.0, 0.0], [-1.0, 0.0]]), prompts, 1e4).tolist() == [[1.0], [0.0]]


def test_prompts_of_another_width_are_refused():
    with pytest.raises(ValueError, match="prompt latents"):
        zero_shot(np.ones((2, 4)), np.ones((3, 2, 5)), 1.0)


def test_reconstructions_of_a_scan_are_averaged_in_order_of_appearance():
    items = ["valid_2_a_1", "valid_1_a_1", "valid_2_a_2"]
    scans, probabilities = by_scan(items, ["valid_2_a", "valid_1_a", "valid_2_a"], np.array([[0.2], [0.9], [0.4]]))
    assert scans == ["valid_2_a", "valid_1_a"]
    assert probabilities == pytest.approx(np.array([[0.3], [0.9]]))


def test_a_volume_that_comes_twice_is_refused():
    with pytest.raises(ValueError, match="more than once"):
        by_scan(["valid_1_a_1"] * 2, ["valid_1_a"] * 2, np.zeros((2, 1)))
