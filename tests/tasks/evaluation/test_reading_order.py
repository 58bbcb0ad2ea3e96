"""Reports are embedded in the order of sections that the model was trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.records import write_run

from ctclip_model.device import Precision
from ctclip_model.errors import ConfigurationError
from ctclip_model.models.kinds import ModelKind
from tasks.evaluation.embed import plan_work
from tasks.models.find import ModelReference
from tasks.models.presets import find_preset
from warehouse import store


@pytest.mark.parametrize(
    ("trained", "text"),
    [
        (["impression", "findings"], "Impression. Findings."),
        (["findings", "impression"], "Findings. Impression."),
        (["findings"], "Findings. Impression."),
        (None, "Findings. Impression."),
    ],
)
def test_an_impression_that_was_trained_first_is_embedded_first(
    tmp_path: Path, trained: list[str] | None, text: str
) -> None:
    reports = [{"scan_id": "train_1_a", "findings": "Findings. ", "impression": "Impression. ", "fingerprint": "f"}]
    write_run(tmp_path, 1, "ingest", reports=reports)
    store.publish(tmp_path)
    folder = tmp_path / "models" / "m"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"info": {"report_sections": trained} if trained else {}}))
    model = ModelReference("m", ModelKind.ct_clip, "smoke", folder, "smoke-1", 1.0, "config", "sha256", "m")
    assert plan_work(tmp_path, model, Precision.float32).texts["report:train_1_a"] == text


def test_sections_are_a_part_of_the_training_and_unknown_ones_are_refused() -> None:
    assert find_preset("tiny") == find_preset("tiny", report_sections=("findings", "impression"))
    assert find_preset("tiny", report_sections=("impression", "findings")).training.report_sections[0] == "impression"
    for wrong in ((), ("technique",)):
        with pytest.raises(ConfigurationError, match="a report has the sections"):
            find_preset("tiny", report_sections=wrong)
