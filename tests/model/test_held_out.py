"""The held-out score of a training: what beats a baseline, and where the score is read."""

import json

import numpy as np
import pytest

from ctclip_model.labelling.scores import macro_f1, score_labels
from ctclip_model.models.held_out import HeldOut, read_held_out
from ctclip_model.models.model_card import write_card


@pytest.mark.parametrize(
    ("score", "baselines", "unbeaten"),
    [
        (0.257, {"always absent": 0.0, "tf-idf": 0.925}, ["tf-idf"]),
        (0.93, {"always absent": 0.0, "tf-idf": 0.925}, []),
        (0.0, {"always absent": 0.0}, ["always absent"]),
        (0.5, {"chance": 0.5}, ["chance"]),
        (float("nan"), {"chance": 0.5}, ["chance"]),
        (1.0, {"tf-idf": 1.0}, []),
    ],
)
def test_a_score_has_to_beat_every_baseline(score, baselines, unbeaten):
    held_out = HeldOut("macro F1", score, baselines)
    assert held_out.unbeaten == unbeaten
    assert bool(held_out.warning) == bool(unbeaten)
    card = write_card("model", tags=[], description="", facts={}, metrics={}, held_out=held_out)
    assert ("**Warning: this model has learnt no more than" in card) == bool(unbeaten)


def test_constant_labels_are_baselines_and_abnormalities_without_a_label_do_not_count():
    labels = np.array([[1, 0, 0], [0, 0, 0], [1, 0, 1], [0, 0, 0]])
    held_out = score_labels(labels, labels, {"other": 1 - labels})
    assert held_out.score == 1
    assert held_out.baselines["always absent"] == 0
    assert held_out.baselines["always present"] == pytest.approx((2 / 3 + 0 + 0.4) / 3)
    assert held_out.baselines["other"] == 0
    assert macro_f1(np.zeros((2, 3)), np.zeros((2, 3))) == 0


def test_the_score_of_a_folder_is_read_and_of_others_is_none(tmp_path):
    assert read_held_out(tmp_path) is None
    for info in ({}, {"held_out": None}, {"held_out": {"metric": 1}}):
        (tmp_path / "config.json").write_text(json.dumps({"info": info}))
        assert read_held_out(tmp_path) is None
    held_out = {"metric": "macro F1", "score": 0.5, "baselines": {"chance": 0.25}}
    (tmp_path / "config.json").write_text(json.dumps({"info": {"held_out": held_out}}))
    assert read_held_out(tmp_path) == HeldOut(**held_out)
