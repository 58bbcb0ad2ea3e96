"""Weights as they come: each container, wrapper and prefix loads, or is refused in words that say what it is."""

from __future__ import annotations

import argparse
import gzip
import json
import logging
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.golden import load_golden, load_tiny_weights
from support.models import TINY, TINY_LABELLER, write_radbert
from torch import Tensor, nn

from ctclip_model.config import smoke
from ctclip_model.errors import CheckpointError
from ctclip_model.labelling.labeller import load_labeller
from ctclip_model.models.heads import LiPro
from ctclip_model.models.weights import load_ctclip, load_labeller_weights, load_weights
from ctclip_model.models.weights_files import hash_weights

Weights = dict[str, Any]
OPTIMIZER = {"state": {0: {"step": torch.ones(()), "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}


def prefixed(prefix: str, weights: Weights) -> Weights:
    return {prefix + key: value for key, value in weights.items()}


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def assert_holds(model: nn.Module, weights: dict[str, Tensor]) -> None:
    torch.testing.assert_close(dict(model.state_dict()), weights, rtol=0, atol=0)


WRAPPERS: dict[str, Callable[[Weights], Any]] = {
    "the published trainer": lambda w: {"model": w, "optim": OPTIMIZER},
    "state_dict": lambda w: {"state_dict": w, "epoch": 3, "arch": "ct-clip"},
    "model_state_dict": lambda w: {"model_state_dict": w, "optimizer_state_dict": OPTIMIZER, "loss": 0.5},
    "an ordered dict": OrderedDict,
    "nested wrappers": lambda w: {"state": {"net": {"model": prefixed("module.", w)}}, "step": torch.ones(())},
    "torch.compile": lambda w: prefixed("_orig_mod.", w),
    "DDP of torch.compile": lambda w: prefixed("module._orig_mod.", w),
    "torch.compile of DDP": lambda w: prefixed("_orig_mod.module.", w),
    "clip": lambda w: prefixed("clip.", w),
    "net": lambda w: prefixed("net.", w),
    "Lightning": lambda w: {
        "state_dict": prefixed("model.", w) | {"train_auroc.count": torch.ones(3)}, "optimizer_states": [OPTIMIZER],
        "pytorch-lightning_version": "2.4", "hyper_parameters": {"lr": 1e-4},
    },
    "Lightning and torch.compile": lambda w: {"state_dict": prefixed("model._orig_mod.", w)},
    "DeepSpeed": lambda w: {"module": w, "optimizer": None, "ds_version": "0.16", "param_shapes": [{"a": [2]}]},
    "AveragedModel": lambda w: {"n_averaged": torch.tensor(7), **prefixed("module.", w)},
    "a compiled encoder": lambda w: {key.replace("visual_transformer.", "visual_transformer._orig_mod."): v
                                     for key, v in w.items()},
    "FSDP": lambda w: {key.replace("encoder.layer.0.", "encoder.layer.0._fsdp_wrapped_module."): v
                       for key, v in prefixed("_fsdp_wrapped_module.", w).items()},
    "an optimizer in the same mapping": lambda w: {**w, "optimizer": OPTIMIZER, "epoch": 2},
    "an optimizer's tensors by names": lambda w: {
        **prefixed("model.", w), **{f"optim.state.{key}.exp_avg": value for key, value in w.items()},
    },
    "an average beside": lambda w: {"model": w, "ema": {key: value + 1 for key, value in w.items()}},
    "an average of the state": lambda w: {"state_dict": w, "state_dict_ema": {key: v + 1 for key, v in w.items()}},
    "an average in the same mapping": lambda w: {**w, **prefixed("ema.", {key: v + 1 for key, v in w.items()})},
    "an average of ema_pytorch": lambda w: {
        **prefixed("online_model.", w), **prefixed("ema_model.", {key: v + 1 for key, v in w.items()}),
        "initted": torch.tensor(True), "step": torch.tensor(3),
    },
    **{
        f"an average under {name}": lambda w, name=name: {"model": w, name: {key: v + 1 for key, v in w.items()}}
        for name in ("modelEMA", "emaModel", "ema0.9999", "polyak", "mean_model", "mean_teacher", "weights_avg", "EMA")
    },
    "an optimizer under opt": lambda w: {
        "model": w, "opt": {"state": w}, "opt_state": w, "g": {key: {"square_avg": v} for key, v in w.items()},
    },
    "only an average": lambda w: {"ema": w, "decay": 0.999},
}  # fmt: skip


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("make", [load_tiny_weights, lambda: prefixed("trained_model.", load_tiny_weights())])
def test_every_wrapper_and_prefix_is_taken_off(tmp_path, wrapper, make):
    weights = make()
    is_lipro = "trained_model.temperature" in weights
    if is_lipro:
        weights |= {"classifier.weight": torch.ones(18, TINY.latent_dim), "classifier.bias": torch.ones(18)}
    path = saved(tmp_path / "weights.pt", WRAPPERS[wrapper](weights))
    preset = smoke().__class__("tiny-golden", model=TINY)
    model = load_weights(path, preset)
    assert isinstance(model, LiPro) == is_lipro
    assert_holds(model, weights)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrapped_labellers_load(tmp_path, wrapper):
    weights = load_golden("radbert_tiny.weights")
    path = saved(tmp_path / "weights.pt", WRAPPERS[wrapper](weights))
    assert_holds(load_labeller_weights(path, TINY_LABELLER), weights)


def test_parameters_of_every_type_load_as_weights_without_history(tmp_path):
    weights = load_tiny_weights()
    content = {key: nn.Parameter(value.half()) for key, value in weights.items()}
    model = load_ctclip(saved(tmp_path / "weights.pt", content), TINY)
    assert_holds(model, {key: value.half().float() for key, value in weights.items()})
    assert all(parameter.is_leaf for parameter in model.parameters())
    assert not any(buffer.requires_grad for buffer in model.buffers())


def test_an_average_that_is_left_out_is_told(tmp_path, caplog):
    weights = load_tiny_weights()
    with caplog.at_level(logging.WARNING):
        load_ctclip(saved(tmp_path / "weights.pt", {"model": weights, "model_ema": weights}), TINY)
    assert "the average of the weights (model_ema) is left out" in caplog.text


@pytest.mark.parametrize("wrap", [lambda w: w, lambda w: {"model": w}])
def test_names_that_are_bytes_are_refused(tmp_path, wrap):
    content = wrap({key.encode(): value for key, value in load_tiny_weights().items()})
    with pytest.raises(CheckpointError, match=r"the name b'\w.*' is bytes and no text"):
        load_ctclip(saved(tmp_path / "weights.pt", content), TINY)


@pytest.mark.parametrize("keys", [("student", "teacher"), ("model", "grads"), ("ema", "swa")])
def test_several_models_in_a_file_are_refused(tmp_path, keys):
    path = saved(tmp_path / "weights.pt", {key: load_tiny_weights() for key in keys} | {"step": 3})
    with pytest.raises(CheckpointError, match=rf"several sets of weights \({keys[0]}, {keys[1]}\).*are {keys[0]}, "):
        load_ctclip(path, TINY)


@pytest.mark.parametrize("name", ["a.pt", "a.pth", "a.bin", "a.ckpt", "a.PT", "pytorch_model.bin", "blob"])
@pytest.mark.parametrize("save", ["zip", "legacy", "safetensors"])
def test_the_content_of_a_file_decides_and_not_its_name(tmp_path, name, save):
    path, weights = tmp_path / name, load_tiny_weights()
    if save == "safetensors":
        save_file(weights, path)
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=save == "zip")
    assert_holds(load_ctclip(path, TINY), weights)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2]
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_every_floating_type_and_their_mixtures_become_float32(tmp_path, dtype, suffix):
    weights = load_tiny_weights()
    mixed = {key: value.to(dtype) if index % 2 else value for index, (key, value) in enumerate(weights.items())}
    path = tmp_path / f"weights{suffix}"
    save_file(mixed, path) if suffix == ".safetensors" else torch.save(mixed, path)
    assert_holds(load_ctclip(path, TINY), {key: value.float() for key, value in mixed.items()})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w["to_text_latent.weight"].to(torch.float8_e4m3fn).fill_(torch.nan), "NaN or infinite: to_text"),
        (lambda w: w["to_text_latent.weight"].double().fill_(1e300), "NaN or infinite: to_text_latent"),
        (lambda w: w["to_text_latent.weight"].to_sparse(), "sparse, packed or without content: to_text_latent"),
        (lambda w: w["to_text_latent.weight"].to("meta"), "sparse, packed or without content: to_text_latent"),
        (lambda w: w["to_text_latent.weight"].to(torch.complex64), "not floating-point: to_text_latent"),
    ],
)
def test_tensors_that_are_no_weights_are_refused_by_name(tmp_path, change, message):
    weights = load_tiny_weights()
    weights["to_text_latent.weight"] = change(weights)
    with pytest.raises(CheckpointError, match=message):
        load_ctclip(saved(tmp_path / "weights.pt", weights), TINY)


class Harm:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("save", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda trace: Harm(trace), r"pathlib\S*.Path"),
        (lambda trace: argparse.Namespace(lr=0.1), "argparse.Namespace"),
        (lambda trace: np.float64(0.1), "numpy"),
        (lambda trace: np.ones(3), "numpy"),
        (lambda trace: nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
    ],
)
def test_code_is_named_with_the_keys_and_does_not_run(tmp_path, save, protocol, make, code):
    trace, path = tmp_path / "it-ran", tmp_path / "weights.pt"
    content = {"model": {"temperature": torch.ones(())} if save != "pickle" else {}, "args": make(trace)}
    if save == "pickle":
        path.write_bytes(pickle.dumps(content, protocol))
    else:
        torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=save == "zip")
    with pytest.raises(CheckpointError, match=rf"carries code \(.*{code}.*top-level keys are model, args"):
        load_ctclip(path, TINY)
    assert not trace.exists()


def zipped(name: str, content: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, content)

    return write


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


FOREIGN: list[tuple[Callable[[Path], Any], str]] = [
    (lambda p: p.write_bytes(b""), "it is empty"),
    (lambda p: p.write_bytes(bytes(1000)), "begins with zeros"),
    (lambda p: p.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"), "Git LFS pointer"),
    (lambda p: p.write_bytes(b"<!DOCTYPE html><html>Sign in</html>"), "is a web page"),
    (lambda p: p.write_bytes(b"\xef\xbb\xbf\r\n <?xml version='1.0'?><Error/>"), "is a web page or an XML text"),
    (lambda p: p.write_bytes(b"Access denied\n"), "is a text"),
    (lambda p: p.write_text(json.dumps({"error": "gated", "status": 403})), "JSON text .*keys are error, status"),
    (lambda p: p.write_text(json.dumps({"weight_map": {}, "metadata": {}})), "keys are weight_map, metadata"),
    (lambda p: p.write_bytes(b'{"weight_map": '), "begins like a JSON text"),
    (lambda p: p.write_bytes(gzip.compress(b"\x80\x02" * 99)), "compressed with gzip: unpack it"),
    (lambda p: p.write_bytes(b"\xfd7zXZ" + bytes(99)), "compressed with xz.*unpack it"),
    (lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(400)), "HDF5"),
    (lambda p: p.write_bytes(b"GGUF" + bytes(99)), "GGUF"),
    (lambda p: p.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(400)), "PNG"),
    (lambda p: np.save(p.with_suffix(".npy"), np.ones(3)) or p.with_suffix(".npy").rename(p), "NumPy array"),
    (zipped("weights/CT-CLIP.pt", b"x"), "zip archive of weights/CT-CLIP.pt"),
    (zipped("arr_0.npy", b"x"), "zip archive of arr_0.npy"),
    (lambda p: torch.jit.script(Doubled()).save(str(p)), "carries code, a program of TorchScript"),
    (lambda p: save_file({}, p, metadata={"format": "pt", "epoch": "3"}), "without tensors, with metadata"),
    (lambda p: torch.save({}, p), "is not a state dict.*it holds nothing"),
    (lambda p: torch.save(OPTIMIZER, p), "state of an optimizer.*keys are state, param_groups"),
    (lambda p: torch.save({"optimizer": OPTIMIZER, "epoch": 3}, p), "state of an optimizer.*keys are optimizer, epoch"),
    (lambda p: torch.save({"optimizer_state_dict": {"fp32_flat_groups": [torch.ones(3)]}, "ds_version": "0.16"}, p),
     "state of an optimizer.*keys are optimizer_state_dict, ds_version"),
    (lambda p: torch.save({"optimizer": OPTIMIZER, "random_states": {"cpu": torch.ones(2)}}, p),
     "keys are optimizer, random_states.*but random_states.cpu"),
    (lambda p: torch.save({"last_epoch": 3, "_step_count": 4}, p), "holds no tensors.*keys are last_epoch, _step_c"),
    (lambda p: torch.save([torch.ones(1), 2], p), "but an object of type list of length 2"),
    (lambda p: torch.save(torch.ones(2, 3), p), r"but a single tensor of shape \(2, 3\)"),
    (lambda p: torch.save({"bert.embeddings.word_embeddings.weight": torch.ones(2, 2)}, p), "a BERT or RoBERTa alone"),
    (lambda p: torch.save({"to_patch_emb.1.weight": torch.ones(2)}, p), "a CT-ViT alone: to_patch_emb"),
    (lambda p: torch.save({"state_dict": {"layer.weight": torch.ones(2)}}, p), "but state_dict.layer.weight"),
    (lambda p: torch.save({"model": {"temperature": torch.ones(())}, "optim": OPTIMIZER}, p),
     r"\(under model; its top-level keys are model, optim\).*but temperature"),
]  # fmt: skip


@pytest.mark.parametrize(("write", "message"), FOREIGN)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.jit is deprecated
def test_what_holds_no_model_is_refused_by_what_it_is(tmp_path, write, message):
    path = tmp_path / "weights.pt"
    write(path)
    with pytest.raises(CheckpointError, match=message):
        load_weights(path)


def sharded(folder: Path, weights: dict[str, Tensor], stem: str = "model", suffix: str = "safetensors") -> Path:
    folder.mkdir(exist_ok=True)
    names, shards = list(weights), {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        name = f"{stem}-{number:05}-of-00002.{suffix}"
        tensors = {key: weights[key].contiguous() for key in part}
        save_file(tensors, folder / name) if suffix == "safetensors" else torch.save(tensors, folder / name)
        shards |= dict.fromkeys(part, name)
    index = folder / f"{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": shards}))
    return index


@pytest.mark.parametrize(("stem", "suffix"), [("model", "safetensors"), ("pytorch_model", "bin")])
@pytest.mark.parametrize("prefix", ["", "model."])
def test_shards_load_by_their_index_and_by_their_folder(tmp_path, stem, suffix, prefix):
    weights = load_tiny_weights()
    index = sharded(tmp_path / "weights", prefixed(prefix, weights), stem, suffix)
    for path in (index, index.parent):
        assert_holds(load_ctclip(path, TINY), weights)


def edit(index: Path, change: Callable[[dict[str, str]], Any]) -> None:
    content = json.loads(index.read_text())
    change(content["weight_map"])
    index.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (
            lambda index: (index.parent / "model-00002-of-00002.safetensors").unlink(),
            "shards are missing: put model-00002",
        ),
        (
            lambda index: edit(index, lambda shards: shards.update(other="model-00001-of-00002.safetensors")),
            "lacks other",
        ),
        (lambda index: edit(index, lambda shards: shards.update(temperature="../secret.pt")), r"outside .*\.\./secret"),
        (lambda index: edit(index, lambda shards: shards.update(temperature="/etc/secret")), "outside .*/etc/secret"),
        (lambda index: edit(index, lambda shards: shards.update(temperature="..\\secret")), "outside its folder"),
        (lambda index: edit(index, lambda shards: shards.update(temperature=index.name)), "JSON text"),
        (lambda index: edit(index, lambda shards: shards.update(temperature=3)), "names no shards"),
        (lambda index: edit(index, lambda shards: shards.pop("temperature")), "missing temperature"),
    ],
)
def test_an_index_that_differs_from_its_shards_is_refused(tmp_path, harm, message):
    torch.save({"temperature": torch.ones(())}, tmp_path / "secret.pt")
    index = sharded(tmp_path / "weights", load_tiny_weights())
    harm(index)
    with pytest.raises(CheckpointError, match=message):
        load_ctclip(index, TINY)


def test_one_shard_alone_is_refused(tmp_path):
    index = sharded(tmp_path / "weights", load_tiny_weights())
    with pytest.raises(CheckpointError, match=r"is shard 00001 of 00002: name the index"):
        load_ctclip(index.with_name("model-00001-of-00002.safetensors"), TINY)


def test_the_hash_of_an_index_is_that_of_its_shards_too(tmp_path):
    weights = load_tiny_weights()
    first = hash_weights(sharded(tmp_path / "a", weights))
    assert hash_weights(sharded(tmp_path / "b", weights)) == first
    assert hash_weights(sharded(tmp_path / "c", weights | {"temperature": torch.ones(())})) != first


def test_folders_without_one_weights_file_name_their_files(tmp_path):
    for names, message in (
        (["notes.txt"], "holds no weights, but notes.txt"),
        (["a.pt", "b.CKPT"], "holds 2 weights files: name one of a.pt, b.CKPT"),
    ):
        folder = tmp_path / str(len(names))
        folder.mkdir()
        for name in names:
            (folder / name).touch()
        with pytest.raises(CheckpointError, match=message):
            load_weights(folder)


@pytest.mark.parametrize("form", ["model.safetensors", "pytorch_model.bin", "shards"])
def test_labeller_in_a_folder_of_hugging_face_loads(tmp_path, form):
    folder = write_radbert(tmp_path / "radbert")
    expected = load_labeller(folder)
    (folder / "RadBertClassifier.pth").unlink()
    weights = load_golden("radbert_tiny.weights")
    if form == "shards":
        sharded(folder, weights)
    else:
        save_file(weights, folder / form) if form.endswith("safetensors") else torch.save(weights, folder / form)
    text = ["There is no nodule."]
    np.testing.assert_array_equal(load_labeller(folder).label(text), expected.label(text))
    assert_holds(load_weights(folder), weights)
