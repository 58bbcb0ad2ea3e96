"""Models that have learnt little, as `ctclip status` and `ctclip evaluate` name them."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from support.records import write_run

from ctclip_model.models.kinds import ModelKind
from tasks.labels.label_sources import DEFAULT_SOURCE
from tasks.models.find import ModelReference
from tasks.run.stage_run import open_run
from tasks.stages import evaluate
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


def test_evaluation_logs_the_warnings_of_its_own_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    poor = SCORED | {"value": 0.52, "ci_low": 0.5, "ci_high": 0.54}
    write_run(tmp_path, 0, "evaluate", metrics=[poor | {"model_id": "m"}, poor | {"model_id": "other"}])
    monkeypatch.setattr(evaluate, "get_run_logger", logging.getLogger)
    model = ModelReference("m", ModelKind.ct_clip, "tiny", tmp_path, "r", 1.0, "f", "w", "m")
    with open_run(tmp_path, "evaluate", "m") as run:
        evaluate.leave_with_model(run, model, DEFAULT_SOURCE)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [text.split(" is ")[0] for text in warnings if "chance" in text] == ["m"]
