"""Identity of a fine-tuning: its labels and label set."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.records import write_run

from ctclip_model.config import PRESETS, VERSIONS, compute_fingerprint
from ctclip_model.data.label_sets import BUILT_IN, CT_RATE_18, Finding, LabelSet
from ctclip_model.errors import MissingInputError
from ctclip_model.models.kinds import ModelKind
from tasks.evaluation.evaluations import choose_source
from tasks.labels.import_labels import import_labels
from tasks.labels.label_sources import LabelSource
from tasks.models.find import ModelReference
from tasks.training.fine_tune import Finetuning, parse_variant
from warehouse import store

OWN = LabelSet("own", (Finding("Stent", "A stent.", "No stent."),))
REWORDED = LabelSet("own", (Finding("Stent", "A stent is seen.", "No stent."),))


def refer(kind: ModelKind, model_id: str = "m") -> ModelReference:
    return ModelReference(model_id, kind, "smoke", Path("m"), "r", 1.0, "f", "w", "m")


def make(source: LabelSource) -> Finetuning:
    return Finetuning(ModelKind.lipro, refer(ModelKind.ct_clip), PRESETS["smoke"](), source)


def test_sources_of_the_18_keep_the_fingerprint_that_models_have():
    for name in ("published", "radbert"):
        expected = compute_fingerprint("lipro", "w", PRESETS["smoke"]().lipro, name, VERSIONS["finetune"])
        assert make(LabelSource(name, CT_RATE_18)).fingerprint == expected


def test_other_findings_and_prompts_make_another_model():
    sets = (CT_RATE_18, OWN, REWORDED)
    assert len({make(LabelSource("mine", label_set)).fingerprint for label_set in sets}) == 3


@pytest.mark.parametrize(("name", "variant"), [("published", "m/lipro"), ("mine", "m/lipro by mine")])
def test_each_source_has_its_variant(name: str, variant: str):
    assert make(LabelSource(name, CT_RATE_18)).variant == variant
    assert parse_variant(variant) == ("m", "lipro", name)


def test_a_lipro_of_other_findings_is_scored_on_the_labels_that_it_learned(tmp_path: Path):
    data_root = tmp_path / "data"
    models = [("own-head", "mine", OWN.name), ("head", "published", None), ("built-in", "mine", BUILT_IN)]
    write_run(
        data_root, 0, "finetune",
        volumes=[{"volume_name": "valid_1_a_1", "scan_id": "valid_1_a", "split": "valid", "fingerprint": "f"}],
        models=[
            {"model_id": name, "kind": "lipro", "config": json.dumps({"labels_of": labels, "label_set": label_set})}
            for name, labels, label_set in models
        ],
    )  # fmt: skip
    store.publish(data_root)
    (tmp_path / "labels.csv").write_text("scan_id,Stent\nvalid_1_a,1\n")
    import_labels(data_root, tmp_path / "labels.csv", "mine", OWN)
    chosen = {name: choose_source(data_root, refer(ModelKind.lipro, name), "published").name for name, *_ in models}
    assert chosen == {"own-head": "mine", "head": "published", "built-in": "published"}
    assert choose_source(data_root, refer(ModelKind.vocabfine, "own-head"), "published").name == "published"
    with pytest.raises(MissingInputError, match="there are no labels 'yours'"):
        choose_source(data_root, refer(ModelKind.lipro, "own-head"), "yours")
