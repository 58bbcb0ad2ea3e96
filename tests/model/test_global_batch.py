"""The loss is that of the whole batch, on one process or two, and with any number of samples at a time."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from support.reports import write_reports
from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from transformers import PreTrainedTokenizerFast

from ctclip_model.config import Negatives, Pooling, Preset, VocabFineConfig, smoke
from ctclip_model.device import Compute
from ctclip_model.errors import ConfigurationError
from ctclip_model.models.clip import CTCLIP, contrastive_loss
from ctclip_model.models.text import train_tokenizer
from ctclip_model.training.contrastive import teach_contrast, teach_image
from ctclip_model.training.engine import processes as distributed
from ctclip_model.training.engine.checkpoints import FULL_STATE, Checkpoints
from ctclip_model.training.engine.loop import StepRecord
from ctclip_model.training.labeller import train_labeller
from ctclip_model.training.losses import backward_in_parts, batch_loss, sigmoid_loss
from ctclip_model.training.samples import TrainingData
from ctclip_model.training.vocabfine import teach_prompts

BATCH, STEPS = 8, 4
# AdamW makes a step of the full rate along a gradient that is 0 except for rounding. A large epsilon makes the weights
# a smooth function of the gradients, and lets them show a gradient that is too large or too small.
EPSILON = 1e-3


@contextlib.contextmanager
def smooth_adamw() -> Iterator[None]:
    with mock.patch.object(torch.optim, "AdamW", functools.partial(torch.optim.AdamW, eps=EPSILON)):
        yield


def few_codes() -> Preset:
    """The smoke preset with codes so few that no token is about as near to two, which rounding would decide."""
    base = smoke()
    vision = dataclasses.replace(base.model.vision, codebook_size=8)
    return dataclasses.replace(base, model=dataclasses.replace(base.model, vision=vision))


def untrained(preset: Preset) -> tuple[CTCLIP, PreTrainedTokenizerFast, TrainingData]:
    """A model without dropout, and twenty scans. Some have no known label, and none has 18."""
    rng = np.random.default_rng(0)
    volumes = torch.from_numpy(rng.integers(-1000, 1000, (20, *preset.recipe.shape), np.int16))
    reports = [[[f"Finding {index} is seen.", "The rest is normal."], [f"Number {index}."]] for index in range(20)]
    labels = torch.from_numpy(rng.choice([0.0, 1.0, np.nan], (20, 18)).astype(np.float32))
    labels[::3] = torch.nan
    data = TrainingData(
        lambda rows: volumes[torch.as_tensor(rows)], [str(i) for i in range(20)], reports, labels, [""] * 20, [""] * 20
    )
    tokenizer = train_tokenizer(
        [" ".join(sentence for section in report for sentence in section) for report in reports], 200
    )
    torch.manual_seed(0)
    model = CTCLIP(preset.model)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model, tokenizer, data


@smooth_adamw()
def learn(
    negatives: Negatives = Negatives.global_batch,
    encoded_at_once: int | None = None,
    sharded: bool = False,
    checkpoints: Checkpoints | None = None,
    stop_after: int | None = None,
    preset: Preset | None = None,
    **settings: Any,
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The losses of a few steps, in float32 and without dropout, and the weights after them (on the first process)."""
    preset = preset or few_codes()
    common = {"negatives": negatives, "text_learning_rate": None, "learning_rate": 1e-3, "texts_per_volume": 2}
    config = dataclasses.replace(
        preset.training, batch_size=BATCH, samples=BATCH * STEPS, **common | settings,
    )  # fmt: skip
    model, tokenizer, data = untrained(preset)
    losses: list[float] = []

    def on_step(step: StepRecord) -> None:
        losses.append(step.loss)
        if step.step == stop_after:
            raise InterruptedError

    compute = Compute("cpu", encoded_at_once=encoded_at_once, sharded=sharded)
    teach_image(model, data, config, compute=compute, on_step=on_step)
    with contextlib.suppress(InterruptedError):
        teach_contrast(model, tokenizer, data, config, compute=compute, checkpoints=checkpoints, on_step=on_step)
    return losses, cast(dict[str, torch.Tensor], get_model_state_dict(model, options=FULL_STATE))


@smooth_adamw()
def fine_tune(encoded_at_once: int | None = None) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The same of VocabFine."""
    model, tokenizer, data = untrained(few_codes())
    config = VocabFineConfig(batch_size=BATCH, epochs=2, learning_rate=1e-3, warm_up_steps=1, varies_samples=True)
    losses: list[float] = []
    compute = Compute("cpu", encoded_at_once=encoded_at_once)
    teach_prompts(model, tokenizer, data, config, compute=compute, on_step=lambda step: losses.append(step.loss))
    return losses, model.state_dict()


@smooth_adamw()
def label(folder: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
    reports, labels = write_reports(40, seed=0)
    config = dataclasses.replace(smoke().labeller, batch_size=BATCH, epochs=2, dropout=0.0)
    losses: list[float] = []
    path = folder / f"labeller-of-{distributed.world_size()}"
    train_labeller(reports, labels, config, path, on_step=lambda step: losses.append(step.loss))
    distributed.wait_for_all()  # until the first has written
    return losses, load_file(path / "model.safetensors")


def learn_sharded_and_continue(folder: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Stops in the third step, before its checkpoint, and continues with a model that is sharded anew."""
    settings: dict[str, Any] = {"sharded": True, "encoded_at_once": 2, "average_decay": 0.5, "steps_per_checkpoint": 1}
    before, _ = learn(checkpoints=Checkpoints(folder / "checkpoints", 2), stop_after=3, **settings)
    dist.barrier()  # until the first has written
    after, weights = learn(checkpoints=Checkpoints(folder / "checkpoints", 2), **settings)
    return before[:2] + after, weights


def learn_all_parts(**settings: Any) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The same with labels for the image encoder, prompts, texts encoded once, and attention without a code book."""
    base = few_codes()
    vision = dataclasses.replace(base.model.vision, codebook_size=0, pooling=Pooling.attention, queries=2)
    return learn(
        preset=dataclasses.replace(base, model=dataclasses.replace(base.model, vision=vision)),
        image_pretraining_samples=2 * BATCH, image_pretraining_batch_size=BATCH, prompt_loss_weight=0.5,
        text_learning_rate=0.0, texts_per_report=3, **settings,
    )  # fmt: skip


USUAL: dict[str, Callable[[Path], Any]] = {
    "copies": lambda _: learn(),
    "copies, in parts": lambda _: learn(encoded_at_once=2),
    "vocabfine": lambda _: fine_tune(),
    "vocabfine, in parts": lambda _: fine_tune(encoded_at_once=3),
    "labeller": label,
}
OTHERS: dict[str, Callable[[Path], Any]] = {
    "sigmoid": lambda _: learn(Negatives.sigmoid),
    "local": lambda _: learn(Negatives.local),
    "two volumes": lambda _: learn(volumes_per_scan=2),
    "two volumes, in parts": lambda _: learn(volumes_per_scan=2, encoded_at_once=5),
    "all parts": lambda _: learn_all_parts(),
    "all parts, in parts": lambda _: learn_all_parts(encoded_at_once=3),
    "all parts, shares": lambda _: learn_all_parts(sharded=True),
    "shares": lambda _: learn(sharded=True),
    "shares, continued": learn_sharded_and_continue,
}


def learn_as_one_of_two(rank: int, folder: Path, names: Sequence[str]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save({name: (USUAL | OTHERS)[name](folder) for name in names}, folder / f"{rank}.pt")
    dist.barrier()  # as the worker does: a process that leaves while the other still talks to it may be aborted
    dist.destroy_process_group()


def learn_on_two(folder: Path, names: Sequence[str]) -> dict[str, Any]:
    """Results of the first of two processes. Both had the same losses."""
    torch.multiprocessing.spawn(learn_as_one_of_two, (folder, names), nprocs=2)
    first, second = (torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2))
    for name in names:
        assert first[name][0] == second[name][0], name
        assert all(torch.equal(value, first[name][1][key]) for key, value in second[name][1].items()), name
    return cast(dict[str, Any], first)


def assert_same(found: tuple[list[float], dict], expected: tuple[list[float], dict]) -> None:
    """Losses and all weights agree except for rounding, which normalising multiplies where a code has few tokens."""
    assert found[0] == pytest.approx(expected[0], rel=1e-4)
    assert found[1].keys() == expected[1].keys()
    for name, weight in expected[1].items():
        atol = 5e-5 if name.endswith("_codebook.embed") else 1e-5
        torch.testing.assert_close(
            found[1][name], weight, rtol=1e-4, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.slow
def test_two_processes_learn_as_one_with_twice_the_batch(tmp_path: Path) -> None:
    found = learn_on_two(tmp_path, list(USUAL))
    for training, whole in {"copies": learn(), "vocabfine": fine_tune()}.items():
        assert_same(found[training], whole)
        assert_same(found[f"{training}, in parts"], whole)
    labelled = label(tmp_path)
    assert_same(found["labeller"], labelled)
    assert len(labelled[0]) >= STEPS


@pytest.mark.slow
def test_other_ways_of_two_processes_learn_as_one_with_twice_the_batch(tmp_path: Path) -> None:
    found = learn_on_two(tmp_path, list(OTHERS))
    assert_same(found["sigmoid"], learn(Negatives.sigmoid))
    assert_same(found["shares"], learn())
    for way in ("two volumes", "two volumes, in parts"):
        assert_same(found[way], learn(volumes_per_scan=2))
    for way in ("all parts", "all parts, in parts", "all parts, shares"):
        assert_same(found[way], learn_all_parts())
    assert_same(found["shares, continued"], learn(average_decay=0.5))
    assert found["local"][0] != pytest.approx(learn(Negatives.local)[0], rel=1e-2)  # half the negatives


@pytest.mark.parametrize("at_once", [1, 3])
def test_a_few_samples_at_a_time_learn_as_the_whole_batch(at_once: int) -> None:
    assert_same(learn(encoded_at_once=at_once), learn())


@pytest.mark.parametrize("negatives", list(Negatives))
def test_gradients_in_parts_are_those_of_the_whole(negatives: Negatives) -> None:
    torch.manual_seed(0)
    inputs, scale = torch.randn(6, 5), nn.Parameter(torch.tensor(1.0))
    encoder = nn.Linear(5, 8)
    other, other_scale = copy.deepcopy(encoder), copy.deepcopy(scale)

    def encode(layer: nn.Linear, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        images, texts = nn.functional.normalize(layer(rows), dim=-1).chunk(2, dim=-1)
        return images, torch.stack([texts, texts.roll(1, dims=-1)], dim=1)

    loss = batch_loss(*encode(encoder, inputs), scale, negatives)
    loss.backward()
    parts = [lambda part=part: encode(other, part) for part in inputs.split(4)]
    found_loss = backward_in_parts(parts, functools.partial(batch_loss, logit_scale=other_scale, negatives=negatives))
    torch.testing.assert_close(found_loss, loss.detach())
    for found, expected in ((other.weight, encoder.weight), (other.bias, encoder.bias), (other_scale, scale)):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-5, atol=1e-6)


def test_the_whole_batch_of_one_process_has_the_published_loss() -> None:
    torch.manual_seed(0)
    images, texts = nn.functional.normalize(torch.randn(2, 6, 4), dim=-1)
    scale = torch.tensor(2.0)
    assert torch.equal(
        batch_loss(images, texts[:, None], scale, Negatives.global_batch), contrastive_loss(images, texts, scale)
    )


def test_the_sigmoid_loss_judges_each_pair_alone() -> None:
    images, texts = torch.eye(2), torch.eye(2)
    right, wrong = math.e, 0.0  # exp(1) times the similarities; the bias of two columns is 0
    expected = math.log1p(math.exp(-right)) + math.log1p(math.exp(wrong))
    assert sigmoid_loss(images, texts, torch.tensor(1.0)).item() == pytest.approx(expected)


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_a_batch_without_overlap_or_loss(processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: processes)
    rows: list[int] = []
    for number in range(processes):
        monkeypatch.setattr(distributed, "rank", lambda number=number: number)
        rows += range(8)[distributed.share(8)]
    assert rows == list(range(8))
    with pytest.raises(ConfigurationError, match="9 does not divide"):
        distributed.share(9)
