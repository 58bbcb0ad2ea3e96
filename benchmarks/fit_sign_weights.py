"""Fits the weights by which the judge of values tells upright values from inverted ones. Prints `SIGN_WEIGHTS`.

Usage: python benchmarks/fit_sign_weights.py [volumes] [seed]
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from functools import partial

import numpy as np
from bench_value_check import draw_case
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from ctclip_model.data.value_check import LEAST_WEIGHED, SIGN_WEIGHTS, share_within, without_padding

CONTRAST, DIFFERENCE = 5.0, 10.0  # scales of the two kinds of features, which the penalty of the fit depends on


def list_features(number: int, seed: int) -> tuple[NDArray, NDArray]:
    """Features of a volume and of its inverted twin: contrast and difference of each range and its opposite."""
    _, hu = draw_case(number, seed)
    return _features(hu), _features(-hu)


def _features(hu: NDArray) -> NDArray:
    inside = without_padding(np.sort(hu.ravel()))
    ranges = np.array([[share_within(inside, low_high), share_within(inside, (-low_high[1], -low_high[0]))]
                       for low_high in SIGN_WEIGHTS])  # fmt: skip
    difference = ranges[:, 0] - ranges[:, 1]
    return np.concatenate([CONTRAST * difference / (ranges.sum(1) + LEAST_WEIGHED), DIFFERENCE * difference])


def main(count: int = 6000, seed: int = 1) -> None:
    with multiprocessing.Pool(os.cpu_count()) as pool:
        pairs = pool.map(partial(list_features, seed=seed), range(count), chunksize=20)
    upright, inverted = (np.stack(features) for features in zip(*pairs, strict=True))
    labels = np.repeat([1, 0], count)
    model = LogisticRegression(C=1, fit_intercept=False, max_iter=20_000).fit(
        np.concatenate([upright, inverted]), labels
    )
    contrasts, differences = np.split(model.coef_[0], 2)
    for bounds, contrast, difference in zip(SIGN_WEIGHTS, CONTRAST * contrasts, DIFFERENCE * differences, strict=True):
        print(f"    {bounds}: ({contrast:.1f}, {difference:.0f}),")
    for threshold in (-2.0, -1.5, -1.2, -1.0, -0.5):
        signs = [features @ model.coef_[0] < threshold for features in (upright, inverted)]
        print(f"below {threshold}: {signs[0].mean():.2%} of the upright, {signs[1].mean():.2%} of the inverted")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
