"""Models from elsewhere: every published form becomes a model folder and a row, once, from a path or a hub."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from support.golden import load_golden
from support.hub import LoopbackHub
from support.models import make_tokenizer, write_radbert

from ctclip_model.config import PRESETS, RADBERT_BASE, smoke
from ctclip_model.data.label_sets import Finding, LabelSet
from ctclip_model.errors import CheckpointError, ConfigurationError, HubAccessError, MissingInputError
from ctclip_model.evaluation.decisions import Cohort, DecisionRule, Decisions, read_decisions, write_decisions
from ctclip_model.files import sha256_of
from ctclip_model.labelling.labeller import load_labeller
from ctclip_model.models.clip import CTCLIP
from ctclip_model.models.find_model import find_model, load_model
from ctclip_model.models.heads import LiPro
from ctclip_model.models.kinds import PUBLISHED, ModelKind
from ctclip_model.models.model_folder import describe_label_set, load_model_folder
from ctclip_model.models.report_labeller import read_labeller_tokenizer
from ctclip_model.models.text import PUBLISHED_TEXT_ENCODER
from tasks.labels.labellers import find_labeller
from tasks.models.import_model import ImportOptions, fetch_models, import_model
from tasks.settings import CT_RATE
from warehouse import store

SMOKE = ImportOptions(preset="smoke")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """CT-CLIP and LiPro in their published forms, and a tokenizer beside them."""
    torch.manual_seed(0)
    folder = tmp_path / "weights"
    folder.mkdir()
    model = LiPro(smoke().model)
    torch.save(model.trained_model.state_dict(), folder / "CT-CLIP_v2.pt")
    shutil.copy(folder / "CT-CLIP_v2.pt", folder / "CT_VocabFine_v2.pt")
    torch.save(model.state_dict(), folder / "CT_LiPro_v2.pt")
    make_tokenizer().backend_tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def rows(data_root: Path) -> list[dict[str, Any]]:
    with store.read(data_root) as connection:
        answer = connection.execute("select * from current_models order by model_id")
        return [dict(zip([c[0] for c in answer.description], row, strict=True)) for row in answer.fetchall()]


@pytest.mark.parametrize(
    ("name", "kind"), [("CT-CLIP_v2.pt", "ct-clip"), ("CT_VocabFine_v2.pt", "vocabfine"), ("CT_LiPro_v2.pt", "lipro")]
)
def test_published_file_becomes_a_folder_and_a_row_once(weights, tmp_path, name, kind):
    first = import_model(tmp_path / "data", str(weights / name), SMOKE)
    again = import_model(tmp_path / "data", str(weights / name), SMOKE)
    assert first.is_new
    assert again == dataclasses.replace(first, is_new=False)
    (row,) = rows(tmp_path / "data")
    assert (row["model_id"], row["kind"], row["preset"]) == (first.model_id, kind, "smoke")
    assert (row["source"], row["recipe_id"]) == (f"file://{weights / name}", smoke().recipe.recipe_id)
    folder = tmp_path / "data" / row["path"]
    assert row["source_sha256"] in (folder / "README.md").read_text()
    saved = load_model_folder(folder).model.state_dict()
    torch.testing.assert_close(dict(saved), torch.load(weights / name), rtol=0, atol=0)
    shutil.rmtree(weights)
    assert (load_model(folder).head is not None) == (kind == "lipro")
    assert find_model(tmp_path / "data" / "models", None) == folder


def test_folder_of_hugging_face_and_shards_are_imported_and_told_apart_by_their_shards(weights, tmp_path):
    tensors = torch.load(weights / "CT-CLIP_v2.pt", weights_only=True)
    found = []
    for change in (0.0, 1.0):
        folder = tmp_path / f"hugging-face-{change}"
        folder.mkdir()
        shutil.copy(weights / "tokenizer.json", folder)
        (folder / "config.json").write_text(json.dumps({"architectures": ["CTCLIP"], "torch_dtype": "float32"}))
        tensors["to_text_latent.weight"] += change
        torch.save({f"model.{key}": value for key, value in tensors.items()}, folder / "one.bin")
        shards = {f"model.{key}": "one.bin" for key in tensors}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": shards}))
        found.append(import_model(tmp_path / "data", str(folder), SMOKE))
        saved = load_model_folder(tmp_path / "data" / "models" / found[-1].model_id).model.state_dict()
        torch.testing.assert_close(dict(saved), tensors, rtol=0, atol=0)
    assert found[0].model_id != found[1].model_id


def test_checkpoint_of_the_published_trainer_is_imported(weights, tmp_path):
    tensors = torch.load(weights / "CT-CLIP_v2.pt", weights_only=True)
    optimizer = {"state": {}, "param_groups": [{"lr": 1.25e-6}]}
    torch.save({"model": tensors, "optim": optimizer}, weights / "CtClip.100.pt")
    imported = import_model(tmp_path / "data", str(weights / "CtClip.100.pt"), SMOKE)
    saved = load_model_folder(tmp_path / "data" / "models" / imported.model_id).model.state_dict()
    torch.testing.assert_close(dict(saved), tensors, rtol=0, atol=0)


def test_labeller_is_imported_with_the_config_beside_it(radbert, tmp_path):
    imported = import_model(tmp_path / "data", str(radbert))
    loaded = load_labeller(find_labeller(tmp_path / "data", imported.model_id).folder)
    torch.testing.assert_close(dict(loaded.model.state_dict()), load_golden("radbert_tiny.weights"), rtol=0, atol=0)


def test_kind_is_an_option_and_another_model(weights, tmp_path):
    path = str(weights / "CT-CLIP_v2.pt")
    plain = import_model(tmp_path / "data", path, SMOKE)
    tuned = import_model(tmp_path / "data", path, dataclasses.replace(SMOKE, kind=ModelKind.vocabfine))
    assert (plain.kind, tuned.kind) == ("ct-clip", "vocabfine")
    assert plain.model_id != tuned.model_id
    with pytest.raises(ConfigurationError, match=r"--kind lipro: .* holds ct-clip or vocabfine"):
        import_model(tmp_path / "data", path, dataclasses.replace(SMOKE, kind=ModelKind.lipro))


def test_own_model_folder_is_imported_and_one_of_this_data_root_is_not_doubled(weights, tmp_path):
    first = import_model(tmp_path / "other", str(weights / "CT-CLIP_v2.pt"), SMOKE)
    folder = tmp_path / "other" / "models" / first.model_id
    copied = import_model(tmp_path / "data", str(folder))
    assert (
        import_model(tmp_path / "data", str(tmp_path / "data" / "models" / copied.model_id)).model_id == copied.model_id
    )
    assert len(rows(tmp_path / "data")) == 1
    assert load_model(tmp_path / "data" / "models" / copied.model_id).recipe == smoke().recipe


def test_findings_that_a_folder_learned_are_part_of_the_imported_model(weights, tmp_path):
    """The same weights with other prompts are another model."""
    first = import_model(tmp_path / "other", str(weights / "CT_VocabFine_v2.pt"), SMOKE)
    folder = tmp_path / "other" / "models" / first.model_id
    description = json.loads((folder / "config.json").read_text())
    found = []
    for prompt in ("A mass is seen.", "A mass."):
        label_set = LabelSet("own", (Finding("Mass", prompt, "No mass."),))
        description["info"] |= describe_label_set(label_set)
        (folder / "config.json").write_text(json.dumps(description))
        found.append(import_model(tmp_path / "data", str(folder)).model_id)
        assert load_model(tmp_path / "data" / "models" / found[-1]).label_set == label_set
    assert found[0] != found[1]


def test_decisions_go_with_the_weights_of_an_imported_folder(weights, tmp_path):
    first = import_model(tmp_path / "other", str(weights / "CT-CLIP_v2.pt"), SMOKE)
    folder = tmp_path / "other" / "models" / first.model_id
    cohort = Cohort("ct-rate", "valid", "zero-shot", "published", "run", 5, 5)
    rules = (DecisionRule("Emphysema", 0.5, 1.0, 0.0, 0.8, 0.7, 10, 5),)
    write_decisions(folder, Decisions(sha256_of(folder / "model.safetensors"), cohort, rules))
    copy = tmp_path / "data" / "models" / import_model(tmp_path / "data", str(folder)).model_id
    found = read_decisions(copy, sha256_of(copy / "model.safetensors"))
    assert (found.cohort, found.rules) == (cohort, rules)


def test_damaged_folder_is_made_again(weights, tmp_path):
    first = import_model(tmp_path / "data", str(weights / "CT-CLIP_v2.pt"), SMOKE)
    path = tmp_path / "data" / "models" / first.model_id / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    left = path.parents[1] / f".{first.model_id}.killed"
    left.mkdir()
    assert import_model(tmp_path / "data", str(weights / "CT-CLIP_v2.pt"), SMOKE).is_new
    assert path.read_bytes() == content
    assert not left.exists()


def test_what_is_no_model_is_one_line_and_leaves_nothing(weights, tmp_path):
    (tmp_path / "png.pt").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(400))
    torch.save({"layer.weight": torch.ones(2)}, tmp_path / "other.pt")
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("png.pt", "cannot be read as weights"), ("other.pt", "holds neither CT-CLIP .* but layer.weight"),
        ("empty", "is not a model folder"), ("absent.pt", "there is no such file"),
    ):  # fmt: skip
        with pytest.raises(CheckpointError, match=message):
            import_model(tmp_path / "data", str(tmp_path / name))
    assert rows(tmp_path / "data") == []
    assert not (tmp_path / "data" / "models").exists()


@pytest.fixture
def radbert(tmp_path: Path) -> Path:
    return write_radbert(tmp_path / "radbert")


@pytest.fixture
def wide_labeller(monkeypatch: pytest.MonkeyPatch) -> str:
    """A preset with the golden labeller's widths and its number of heads, which the weights' shapes do not give."""
    shape = {"vocab_size": 300, "hidden_size": 32, "layers": 2, "heads": 4, "intermediate_size": 64, "max_length": 64}
    labeller = dataclasses.replace(smoke().labeller, by_sentence=False, **shape)
    monkeypatch.setitem(PRESETS, "wide", lambda: dataclasses.replace(smoke(), labeller=labeller))
    return "wide"


@pytest.mark.parametrize("name", ["CT-CLIP_v2.pt", "CT_LiPro_v2.pt"])
@pytest.mark.parametrize("temperature", [100.0, -200.0, torch.nan, torch.inf])
def test_temperature_that_loses_the_similarities_is_refused(weights, tmp_path, name, temperature):
    tensors = torch.load(weights / name, weights_only=True)
    (key,) = (key for key in tensors if key.endswith("temperature"))
    tensors[key].fill_(temperature)
    torch.save(tensors, weights / name)
    with pytest.raises(CheckpointError, match=f"{name}.*temperature"):
        import_model(tmp_path / "data", str(weights / name), SMOKE)
    assert not list((tmp_path / "data").glob("models/*"))


def test_labeller_is_imported_and_found_as_radbert(radbert, tmp_path, wide_labeller):
    (radbert / "config.json").unlink()
    imported = import_model(
        tmp_path / "data", str(radbert / "RadBertClassifier.pth"), ImportOptions(preset=wide_labeller)
    )
    found = find_labeller(tmp_path / "data", "radbert")
    assert found.labeller_id == imported.model_id == find_labeller(tmp_path / "data", imported.model_id).labeller_id
    labeller = load_labeller(found.folder)
    torch.testing.assert_close(dict(labeller.model.state_dict()), load_golden("radbert_tiny.weights"), rtol=0, atol=0)
    text = "There is no nodule."
    assert labeller.tokenizer(text)["input_ids"] == read_labeller_tokenizer(radbert)(text)["input_ids"]


def test_labeller_without_a_tokenizer_says_what_to_put_where(radbert):
    (radbert / "tokenizer.json").unlink()
    with pytest.raises(MissingInputError, match=rf"put vocab\.json and merges\.txt of {RADBERT_BASE} there"):
        load_labeller(radbert)


@pytest.fixture
def published(hub: LoopbackHub, weights: Path, tmp_path: Path) -> LoopbackHub:
    """CT-RATE's repository with a folder's models, and that of the text encoder."""
    repository = hub.repository(CT_RATE, is_gated=True)
    folder = tmp_path / "repository"
    for name in ("ct-clip", "vocabfine", "lipro"):
        path = folder / PUBLISHED[name].facts.published_path
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(weights / path.name, path)
    repository.commit(folder)
    encoder = hub.repository(PUBLISHED_TEXT_ENCODER, "models")
    (tmp_path / "encoder").mkdir()
    shutil.copy(weights / "tokenizer.json", tmp_path / "encoder")
    encoder.commit(tmp_path / "encoder")
    return hub


def test_published_models_are_fetched_checked_imported_and_not_fetched_again(published, tmp_path):
    names = ["ct-clip", "vocabfine", "lipro"]
    published.faults.play("wrong_bytes", on="CT_LiPro")
    found = fetch_models(tmp_path / "data", names, options=SMOKE)
    assert [model.kind for model in found] == names
    commit = published.repositories["datasets", CT_RATE].branches["main"]
    assert {model.revision for model in found} == {commit}
    assert {row["source"] for row in rows(tmp_path / "data")} == {
        f"hf://datasets/{CT_RATE}/{PUBLISHED[name].facts.published_path}" for name in names
    }
    assert not list((tmp_path / "data" / "raw").rglob("*.pt"))
    asked = len(published.requests)
    assert [model.is_new for model in fetch_models(tmp_path / "data", names, options=SMOKE)] == [False] * 3
    assert len(published.requests) == asked
    fetch_models(tmp_path / "data", names, commit, SMOKE)
    assert len(published.requests) == asked


def test_model_whose_download_was_broken_off_is_fetched_on(published, tmp_path, weights):
    path = weights / "CT-CLIP_v2.pt"
    partial = tmp_path / "data/raw/hub" / CT_RATE / ".partial" / sha256_of(path)
    partial.parent.mkdir(parents=True)
    partial.write_bytes(path.read_bytes()[:-5000])
    assert fetch_models(tmp_path / "data", ["ct-clip"], options=SMOKE)[0].source_sha256 == sha256_of(path)
    assert published.sent_bytes < 5000 + (weights / "tokenizer.json").stat().st_size + 1


def test_labeller_is_fetched_with_the_tokenizer_of_its_base(published, radbert, tmp_path, wide_labeller):
    folder = tmp_path / "labeller"
    (folder / "models").mkdir(parents=True)
    shutil.copy(radbert / "RadBertClassifier.pth", folder / PUBLISHED["radbert"].facts.published_path)
    published.repositories["datasets", CT_RATE].commit(folder)
    (tmp_path / "base").mkdir()
    shutil.copy(radbert / "tokenizer.json", tmp_path / "base")
    published.repository(RADBERT_BASE, "models").commit(tmp_path / "base")
    (fetched,) = fetch_models(tmp_path / "data", ["radbert"], options=ImportOptions(preset=wide_labeller))
    labeller = load_labeller(find_labeller(tmp_path / "data", "radbert").folder)
    assert fetched.kind == "labeller"
    text = "There is no nodule."
    assert labeller.tokenizer(text)["input_ids"] == read_labeller_tokenizer(radbert)(text)["input_ids"]


def test_model_that_may_not_be_had_says_what_to_do(published, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_not_accepted")
    with pytest.raises(HubAccessError, match="accept them there"):
        fetch_models(tmp_path / "data", ["ct-clip"])
    with pytest.raises(ConfigurationError, match="no model 'other' is published"):
        fetch_models(tmp_path / "data", ["other"])
    assert rows(tmp_path / "data") == []


def test_model_folder_without_a_tokenizer_embeds_and_is_not_asked(weights, tmp_path):
    first = import_model(tmp_path / "data", str(weights / "CT-CLIP_v2.pt"), SMOKE)
    folder = tmp_path / "data" / "models" / first.model_id
    (folder / "tokenizer.json").unlink()
    assert isinstance(load_model(folder, with_text=False).model, CTCLIP)
    with pytest.raises(MissingInputError, match=r"put the tokenizer\.json of its texts there"):
        load_model(folder)


def test_card_and_config_say_what_the_model_is(weights, tmp_path):
    first = import_model(tmp_path / "data", str(weights / "CT_VocabFine_v2.pt"), SMOKE)
    folder = tmp_path / "data" / "models" / first.model_id
    assert json.loads((folder / "config.json").read_text())["kind"] == "vocabfine"
    assert f"`ctclip predict VOLUME --model {first.model_id}`" in (folder / "README.md").read_text()
