"""Weights files: published ones load in every form, all others are refused by name."""

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.golden import load_tiny_weights
from support.models import TINY, load_tiny_model
from support.paths import GOLDEN
from torch import Tensor

from ctclip_model.config import CTCLIPConfig, TextConfig, VisionConfig
from ctclip_model.errors import CheckpointError
from ctclip_model.models.clip import CTCLIP
from ctclip_model.models.weights import load_ctclip

# The published widths, which shapes do not determine, and as little as possible of the rest.
SLIM = CTCLIPConfig(
    vision=VisionConfig(
        dim=24,
        codebook_size=16,
        patch_size=60,
        temporal_patch_size=15,
        spatial_layers=1,
        temporal_layers=2,
        dim_head=4,
        heads=3,
    ),
    text=TextConfig(vocab_size=50, layers=1, intermediate_size=32),
    latent_dim=8,
)


def stored(path: Path, weights: dict[str, Tensor]) -> Path:
    save_file(weights, path) if path.suffix == ".safetensors" else torch.save(weights, path)
    return path


def assert_holds(model: torch.nn.Module, weights: dict[str, Tensor]) -> None:
    torch.testing.assert_close(dict(model.state_dict()), weights, rtol=0, atol=0)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_published_weights_load_in_every_form_they_come_in(tmp_path, suffix, prefix):
    weights = load_tiny_weights()
    extra = {"text_transformer.embeddings.position_ids": torch.arange(512)[None]}
    path = stored(tmp_path / f"weights{suffix}", {prefix + key: value for key, value in (weights | extra).items()})
    model = load_ctclip(path, TINY)
    assert_holds(model, weights)
    assert not model.training


def test_parameters_without_elements_may_be_left_out():
    assert_holds(load_ctclip(GOLDEN / "ctclip_tiny.weights.safetensors", TINY), load_tiny_weights())


def test_a_loaded_model_computes_and_learns_like_the_one_that_was_built():
    loaded, built = load_ctclip(GOLDEN / "ctclip_tiny.weights.safetensors", TINY), load_tiny_model()
    assert dict(loaded.named_buffers()).keys() == dict(built.named_buffers()).keys()
    for (name, ours), theirs in zip(loaded.named_buffers(), built.buffers(), strict=True):
        assert torch.equal(ours, theirs), name
    learning = {name for name, parameter in built.named_parameters() if parameter.requires_grad}
    assert {name for name, parameter in loaded.named_parameters() if parameter.requires_grad} == learning


def test_the_config_is_read_off_the_shapes(tmp_path):
    path = stored(tmp_path / "slim.safetensors", CTCLIP(SLIM).state_dict())
    assert load_ctclip(path).config == SLIM


def test_a_config_that_the_shapes_cannot_tell_must_be_given():
    with pytest.raises(CheckpointError, match="load it with its config"):
        load_ctclip(GOLDEN / "ctclip_tiny.weights.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("temperature"), "missing temperature"),
        (lambda weights: weights.update(other=torch.ones(1)), "unexpected other"),
        (lambda weights: weights.update(temperature=torch.ones(3)), r"temperature \(3,\) in place of \(\)"),
        (lambda weights: weights.update(temperature=torch.tensor(1)), "not floating-point: temperature"),
        (
            lambda weights: weights["to_text_latent.weight"][0].fill_(torch.nan),
            "NaN or infinite: to_text_latent.weight",
        ),
        (lambda weights: weights["temperature"].fill_(90), "beyond about -103 to 88.*temperature 90"),
        (lambda weights: weights["temperature"].fill_(-200), "exp is 0 or infinite"),
        (lambda weights: weights["temperature"].fill_(torch.nan), "NaN or infinite: temperature"),
        (
            lambda weights: weights.update(temperature=torch.tensor(700.0, dtype=torch.float64)),
            "exp is 0 or infinite in float32",
        ),
    ],
)
def test_other_weights_are_refused_by_name(tmp_path, change, message):
    weights = load_tiny_weights()
    change(weights)
    with pytest.raises(CheckpointError, match=message):
        load_ctclip(stored(tmp_path / "weights.pt", weights), TINY)


@pytest.mark.parametrize("temperature", [-100.0, 0.0, 4.6, 88.0])
def test_a_temperature_whose_exp_is_a_number_is_kept(tmp_path, temperature):
    weights = load_tiny_weights()
    weights["temperature"].fill_(temperature)
    loaded = load_ctclip(stored(tmp_path / "weights.pt", weights), TINY)
    assert loaded.temperature.item() == pytest.approx(temperature)


def test_a_mixture_of_prefixes_is_refused(tmp_path):
    weights = {f"module.{key}" if key == "temperature" else key: value for key, value in load_tiny_weights().items()}
    with pytest.raises(CheckpointError, match=r"missing temperature; unexpected module\.temperature"):
        load_ctclip(stored(tmp_path / "weights.pt", weights), TINY)


class Harm:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("save", [torch.save, lambda thing, path: path.write_bytes(pickle.dumps(thing))])
def test_a_pickle_that_carries_code_is_refused_and_does_not_run(tmp_path, save):
    trace = tmp_path / "it-ran"
    save({"temperature": Harm(trace)}, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_ctclip(tmp_path / "weights.pt", TINY)
    assert not trace.exists()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_damaged_files_are_refused(tmp_path, suffix):
    path = stored(tmp_path / f"weights{suffix}", load_tiny_weights())
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[: len(whole) - 1], b"", b"garbage" * 100):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="cannot be read"):
            load_ctclip(path, TINY)


@pytest.mark.parametrize("content", [[1, 2], {"step": 3}, {"model": {"step": 3}}, torch.ones(2)])
def test_what_is_no_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match="is not a state dict"):
        load_ctclip(tmp_path / "weights.pt", TINY)
