"""Random numbers of a training, from the seed and the step alone, so that a killed run draws them again.

Each purpose has a stream of its own. The numbers of the streams are part of every result: never change one.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.random import Generator

from ctclip_model.training.engine.processes import rank


class Stream(IntEnum):
    """Purpose of random numbers."""

    text_pretraining = 1
    contrastive = 2
    vocabfine = 3
    dropout = 4
    hold_out = 5
    image_pretraining = 6
    report_texts = 7


def open_stream(seed: int, stream: Stream, *counters: int) -> Generator:
    """A generator for one purpose and, by its counters, one step. The same on every process."""
    return np.random.default_rng([seed, int(stream), *counters])


def draw_dropout_seed(seed: int, step: int) -> int:
    """A seed for the dropout of a step, different on each process."""
    return int(open_stream(seed, Stream.dropout, step, rank()).integers(2**31))
