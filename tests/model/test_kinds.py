"""Kinds of models: one registry, one spelling, old spellings read."""

import json

import pytest
from support.models import load_tiny_model

from ctclip_model.errors import ConfigurationError
from ctclip_model.models.find_model import list_models
from ctclip_model.models.kinds import FINE_TUNED, KINDS, PUBLISHED, ModelKind, find_kind
from ctclip_model.models.model_folder import MODEL_TYPES, load_model_folder, save_model_folder
from ctclip_model.models.text import train_tokenizer
from warehouse.comments import glossary


def test_every_kind_is_registered_and_has_a_class_that_loads_it():
    assert set(KINDS) == set(ModelKind)
    assert {facts.model_type for facts in KINDS.values()} <= MODEL_TYPES.keys()
    assert {*PUBLISHED.values(), ModelKind.external} == set(ModelKind)


def test_glossary_of_the_warehouse_names_every_kind():
    comment = glossary()["only"]["models"]["kind"]
    assert [kind for kind in ModelKind if kind not in comment] == []


def test_old_spelling_is_the_same_kind():
    assert find_kind("ctclip") is ModelKind("ctclip") is ModelKind.ct_clip


def test_unknown_kind_is_refused_by_name():
    with pytest.raises(ConfigurationError, match="no kind 'lora': choose one of lipro, vocabfine"):
        find_kind("lora", FINE_TUNED)


@pytest.mark.parametrize(("info", "kind"), [({}, "ct-clip"), ({"parent": "p", "kind": "vocabfine"}, "vocabfine")])
def test_model_folder_of_the_old_spelling_is_read(tmp_path, info, kind):
    folder = tmp_path / "models" / "old"
    save_model_folder(folder, load_tiny_model(), train_tokenizer(["No nodule."], vocab_size=80))
    description = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(description | {"kind": "ctclip", "info": info}))
    loaded = load_model_folder(folder)
    assert (loaded.kind, "kind" in loaded.info) == (kind, False)
    assert list_models(tmp_path / "models") == [folder]


def test_model_folder_names_its_kind_once(tmp_path):
    save_model_folder(tmp_path / "a", load_tiny_model(), None, kind=ModelKind.vocabfine, extra={"parent": "p"})
    description = json.loads((tmp_path / "a" / "config.json").read_text())
    assert (description["kind"], description["info"]) == ("vocabfine", {"parent": "p"})
    assert load_model_folder(tmp_path / "a").kind is ModelKind.vocabfine
