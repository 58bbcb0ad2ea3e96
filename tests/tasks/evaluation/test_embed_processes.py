"""Latents of several processes: those of one, and its errors."""

from __future__ import annotations

import dataclasses
import multiprocessing
import pickle
import signal
from collections.abc import Sequence
from multiprocessing.process import BaseProcess

import numpy as np
import pytest
import torch
from support.models import save_random_model
from support.volumes import make_shard_volume

from ctclip_model.config import smoke
from ctclip_model.data.loader import SampleRef
from ctclip_model.data.shards import write_shard
from ctclip_model.device import Precision
from ctclip_model.errors import ConfigurationError, ShardError, WorkerDiedError
from tasks.evaluation.embed_processes import Encoding, choose_devices, encoding

PRESET = smoke()
TWO = ("cpu", "cpu")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Encoding:
    """Five volumes in two shards, and a model with random weights."""
    data_root = tmp_path_factory.mktemp("data")
    save_random_model(data_root / "model", PRESET)
    samples = []
    for shard, names in {
        "a": ("train_1_a_1", "train_2_a_1", "train_3_a_1"),
        "b": ("valid_1_a_1", "valid_2_a_1"),
    }.items():
        volumes = [make_shard_volume(name, PRESET.recipe, seed=seed) for seed, name in enumerate(names)]
        write_shard(data_root / f"{shard}.arrow", PRESET.recipe, volumes)
        samples += [SampleRef(name, f"{shard}.arrow", row) for row, name in enumerate(names)]
    return Encoding(data_root / "model", data_root, samples, "cpu", Precision.float32, cpu_threads=1)


def encode(whole: Encoding, devices: Sequence[str]) -> dict[str, np.ndarray]:
    with encoding(whole, devices) as batches:
        return {name: latent for names, latents in batches for name, latent in zip(names, latents, strict=True)}


def test_latents_are_those_of_one_process(whole):
    alone, together = encode(whole, ["cpu"]), encode(whole, TWO)
    assert together.keys() == alone.keys() == {sample.name for sample in whole.samples}
    for name, latent in alone.items():
        np.testing.assert_allclose(together[name], latent, atol=1e-6)


def test_fewer_volumes_than_processes_are_encoded_too(whole):
    one = dataclasses.replace(whole, samples=whole.samples[:1])
    assert encode(one, TWO).keys() == {"train_1_a_1"}


def test_error_of_a_process_is_raised_here(whole):
    wrong = dataclasses.replace(whole, samples=[*whole.samples[:4], SampleRef("other_1_a_1", "b.arrow", 1)])
    with pytest.raises(ShardError, match="valid_2_a_1"):
        encode(wrong, TWO)


def test_error_of_a_library_is_one_line_with_its_traceback_as_a_note(whole):
    with pytest.raises(WorkerDiedError, match=r"a process on cpu failed \(RuntimeError: ") as caught:
        encode(dataclasses.replace(whole, cpu_threads="two"), TWO)  # type: ignore[arg-type]
    assert "Traceback" in caught.value.__notes__[0]
    pickle.loads(pickle.dumps(caught.value))


def test_killed_process_is_one_line_and_the_others_end(whole):
    others = {*multiprocessing.active_children()}  # those of earlier tests
    with pytest.raises(WorkerDiedError, match="exit code -9"), encoding(whole, TWO) as batches:
        own = {*multiprocessing.active_children()} - others
        own.pop().kill()
        list(batches)
    assert not {*multiprocessing.active_children()} - others


def test_ctrl_c_is_not_blocked_after_a_process_that_cannot_begin(whole, monkeypatch):
    monkeypatch.setattr(BaseProcess, "start", lambda self: 1 // 0)
    with pytest.raises(ZeroDivisionError), encoding(whole, TWO):
        pass
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_every_gpu_is_used_unless_a_number_is_given(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert choose_devices("auto", None) == choose_devices("cuda", 3) == ["cuda:0", "cuda:1", "cuda:2"]
    assert choose_devices("cuda", 2) == ["cuda:0", "cuda:1"]
    assert choose_devices("cuda:1", None) == ["cuda:1"]
    for name, processes in (("auto", 4), ("cuda:1", 2)):
        with pytest.raises(ConfigurationError, match="each needs one of its own"):
            choose_devices(name, processes)


def test_cpu_is_used_by_as_many_processes_as_are_asked_for():
    assert (choose_devices("cpu", None), choose_devices("cpu", 3)) == (["cpu"], ["cpu"] * 3)
