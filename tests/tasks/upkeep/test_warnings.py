"""Models that have learnt little, as `ctclip status` and `ctclip evaluate` name them."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.records import write_run

from tasks.upkeep.queries import list_warnings
from warehouse import store

SCORED = {
    "dataset": "ct-rate", "split": "valid", "protocol": "zero_shot", "unit": "scan", "label_source": "published",
    "abnormality": "macro", "metric": "auroc",
}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "is_warned"),
    [
        ({}, True),
        ({"ci_low": 0.501}, False),
        ({"ci_low": None}, False),
        ({"label_source": "hand"}, False),
        ({"metric": "accuracy"}, False),
        ({"abnormality": "Emphysema"}, False),
    ],
)
def test_evaluation_whose_interval_reaches_chance_is_a_warning(tmp_path: Path, changed: dict, is_warned: bool) -> None:
    row = SCORED | {"model_id": "m", "value": 0.52, "ci_low": 0.5, "ci_high": 0.54} | changed
    write_run(tmp_path, 0, "evaluate", metrics=[row])
    store.publish(tmp_path)
    sentence = (
        "m is no better than chance on ct-rate valid, protocol zero_shot, by scan: macro AUROC 0.520 (0.500 to 0.540)"
    )
    assert list_warnings(tmp_path) == ([sentence] if is_warned else [])
    assert list_warnings(tmp_path, "another") == []


def test_evaluation_with_a_better_result_takes_the_warning_back(tmp_path: Path) -> None:
    poor = SCORED | {"model_id": "m", "value": 0.52, "ci_low": 0.5, "ci_high": 0.54, "fingerprint": "a"}
    write_run(tmp_path, 0, "evaluate", metrics=[poor])
    write_run(
        tmp_path, 1, "evaluate", metrics=[poor | {"value": 0.7, "ci_low": 0.65, "ci_high": 0.75, "fingerprint": "b"}]
    )
    store.publish(tmp_path)
    assert list_warnings(tmp_path) == []
