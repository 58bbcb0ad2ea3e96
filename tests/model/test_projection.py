"""Projections of degenerate latents: t-SNE would divide by zero and kill the process."""

import numpy as np
import pytest

from ctclip_model.config import EvaluationConfig
from ctclip_model.evaluation.projection import draw_items, project

CONFIG = EvaluationConfig(projection_steps=250)


def latents(count=30, width=8, seed=0):
    return np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)


def equal(count=30):
    return latents(1).repeat(count, axis=0)


def replaced(value):
    some = latents()
    some[3, 2] = value
    return some


NO_PLANE = {
    "all equal": equal(),
    "equal but for rounding": equal() * (1 + np.float32(1e-7) * latents(30, 1)),
    "zeros": np.zeros((30, 8), np.float32),
    "nan": replaced(np.nan),
    "infinite": replaced(np.inf),
    "all nan": np.full((30, 8), np.nan, np.float32),
    "three": latents(3),
    "none": latents(0),
    "width 1": latents(30, 1),
    "width 0": latents(30, 0),
}


@pytest.mark.parametrize("name", NO_PLANE)
def test_latents_without_a_plane_have_no_points(name):
    assert project(NO_PLANE[name], CONFIG).shape == (0, 2)


PLANES = {
    "four": latents(4),
    "two places": np.concatenate([equal(15), -equal(15)]),
    "all but one equal": np.concatenate([equal(29), -equal(1)]),
    "a line": latents(30, 1) * np.ones((1, 8), np.float32),
    "tiny": latents() * np.float32(1e-30),
    "huge": latents() * np.float32(1e30),
    "far from 0": latents() + 1000,
    "width 2": latents(30, 2),
}


@pytest.mark.parametrize("name", PLANES)
def test_latents_with_a_spread_have_finite_points(name):
    points = project(PLANES[name], CONFIG)
    assert points.shape == (len(PLANES[name]), 2)
    assert np.isfinite(points).all()
    assert np.ptp(points) > 0
    assert np.array_equal(points, project(PLANES[name], CONFIG))


def test_scale_of_the_latents_does_not_matter():
    assert project(latents() * 1024, CONFIG) == pytest.approx(project(latents(), CONFIG))


def test_seeds_beyond_those_of_scikit_learn_are_taken():
    large, small = (project(latents(), EvaluationConfig(projection_steps=250, seed=seed)) for seed in (2**32 + 5, 5))
    assert np.array_equal(large, small)


def test_items_are_drawn_once_each():
    drawn = draw_items(5000, CONFIG)
    assert len(set(drawn)) == len(drawn) == CONFIG.projection_items
    assert draw_items(0, CONFIG).tolist() == []
