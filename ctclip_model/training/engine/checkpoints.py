"""Checkpoints of a training: a folder each, whole or absent, that any number of processes goes on from.

`step-000200/` holds `model.safetensors`, under the keys of the model's `state_dict`, and `training.pt`: optimizer,
averaged weights, random state and place in the data. Nothing in it depends on how many processes have written it.
"""

from __future__ import annotations

import logging
import pickle
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor, distribute_tensor

from ctclip_model.errors import CheckpointError, StorageError
from ctclip_model.files import replace_folder

logger = logging.getLogger(__name__)

# Whole tensors by their published names, however the processes share them. A weight that no loss has reached yet has
# no optimizer state: that must not be asked for.
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True, strict=False)
WEIGHTS, REST = "model.safetensors", "training.pt"
DAMAGE = (OSError, EOFError, KeyError, ValueError, RuntimeError, pickle.UnpicklingError, SafetensorError)


@dataclass(frozen=True)
class Snapshot:
    """All that a training needs to go on, in this process's own memory."""

    samples: int  # seen by all processes together: the place in the data
    weights: dict[str, Any]  # tensors
    optimizer: dict[str, Any]
    random_states: dict[str, Tensor]  # by device type
    average: dict[str, Tensor]  # averaged weights by name; none without averaging
    score: float | None = None  # of the last validation; the higher the better


@contextmanager
def storing(folder: Path) -> Iterator[None]:
    """Whatever goes wrong with writing there is a `StorageError`: PyTorch and safetensors have errors of their own."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise StorageError(
            f"{folder} cannot be written ({reason}); the same call goes on from the last checkpoint that is whole"
        ) from error


class WeightAverage:
    """The exponential moving average of a model's learned weights, such as are better than any single step's.

    After Polyak; as `average = decay * average + (1 - decay) * weight` after each step.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.learned = {name: value for name, value in model.named_parameters() if value.requires_grad}
        self.average = {name: value.detach().clone() for name, value in self.learned.items()}

    @torch.no_grad()
    def update(self) -> None:
        for name, value in self.average.items():
            value.lerp_(self.learned[name].detach(), 1 - self.decay)

    @torch.no_grad()
    def apply(self) -> None:
        """Puts the averages in the weights' place."""
        for name, value in self.average.items():
            self.learned[name].copy_(value)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The averages in the weights' place for a while, such as a validation."""
        weights = {name: value.detach().clone() for name, value in self.learned.items()}
        self.apply()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in weights.items():
                    self.learned[name].copy_(value)

    def state(self) -> dict[str, Tensor]:
        return {name: _whole(value) for name, value in self.average.items()}

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        for name, value in self.average.items():
            value.copy_(_spread_like(state[name], value))


def capture(
    model: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage | None, samples: int, score: float | None
) -> Snapshot:
    """The state of a training; every process must call it, for each may hold a share of the weights."""
    random_states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        random_states["cuda"] = torch.cuda.get_rng_state()
    return Snapshot(
        samples=samples,
        weights=_copied(get_model_state_dict(model, options=WHOLE)),
        optimizer=_copied(get_optimizer_state_dict(model, optimizer, options=WHOLE)),
        random_states=random_states,
        average=_copied(average.state()) if average else {},
        score=score,
    )


def restore(
    snapshot: Snapshot, model: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage | None
) -> None:
    """Puts a training into the state that a snapshot has kept."""
    set_weights(model, snapshot.weights)
    set_optimizer_state_dict(model, optimizer, snapshot.optimizer, options=WHOLE)
    if average is not None and snapshot.average:
        average.restore(snapshot.average)
    torch.set_rng_state(snapshot.random_states["cpu"])
    if torch.cuda.is_available() and "cuda" in snapshot.random_states:
        torch.cuda.set_rng_state(snapshot.random_states["cuda"])


def set_weights(model: nn.Module, weights: Mapping[str, Any]) -> None:
    """Puts whole tensors in the place of a model's, however the processes share them.

    Raises `CheckpointError` where they are not those of this model.
    """
    keys = set_model_state_dict(model, dict(weights), options=WHOLE)
    if odd := [*keys.missing_keys, *keys.unexpected_keys]:
        raise CheckpointError(f"a checkpoint is of another model: {odd[0]} is in one of them alone")


class Checkpoints:
    """A folder of checkpoints, of which the last few and the best are kept. One process writes, all may read."""

    def __init__(self, folder: Path, kept: int) -> None:
        self.folder, self.kept = folder, kept
        self.best: tuple[float, int] | None = None  # score and step, of those that are there
        self._writer = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None

    def load(self) -> tuple[int, Snapshot] | None:
        """The newest whole checkpoint and its step; one that a failing disk has damaged is passed over, loudly."""
        found = None
        for step, path in reversed(self._listed()):
            try:
                snapshot = _read(path)
            except DAMAGE as error:
                logger.warning("%s is damaged (%s) and not used", path, type(error).__name__)
                continue
            found = found or (step, snapshot)
            if snapshot.score is not None and (self.best is None or snapshot.score >= self.best[0]):
                self.best = snapshot.score, step  # of equal ones the first, as while training
        return found

    def weights(self, step: int) -> dict[str, Tensor]:
        """Those of a checkpoint that is there."""
        return load_file(_path(self.folder, step) / WEIGHTS)

    def save(self, step: int, snapshot: Snapshot) -> None:
        """Writes a checkpoint while training goes on; waits for the one before, and raises what went wrong with it."""
        self.wait()
        self._writing = self._writer.submit(self._write, step, snapshot)

    def wait(self) -> None:
        """Until all that was saved is on the disk."""
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    def _write(self, step: int, snapshot: Snapshot) -> None:
        with storing(self.folder), replace_folder(_path(self.folder, step)) as temporary:
            save_file(snapshot.weights, temporary / WEIGHTS)
            rest = {name: value for name, value in vars(snapshot).items() if name != "weights"}
            torch.save(rest, temporary / REST)
        if snapshot.score is not None and (self.best is None or snapshot.score > self.best[0]):
            self.best = snapshot.score, step
        best_step = self.best[1] if self.best else None
        for old, path in self._listed()[: -self.kept]:
            if old != best_step:
                shutil.rmtree(path)
        for half_written in self.folder.glob(".step-*"):  # by a process that was killed
            shutil.rmtree(half_written, ignore_errors=True)

    def _listed(self) -> list[tuple[int, Path]]:
        paths = self.folder.glob("step-*") if self.folder.is_dir() else ()
        return sorted((int(path.name.removeprefix("step-")), path) for path in paths)


def _path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:06d}"


def _read(path: Path) -> Snapshot:
    rest = torch.load(path / REST, map_location="cpu", weights_only=True)
    return Snapshot(weights=load_file(path / WEIGHTS), **rest)


def _whole(value: Tensor) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value


def _spread_like(value: Tensor, example: Tensor) -> Tensor:
    if not isinstance(example, DTensor):
        return value.to(example.device)
    return distribute_tensor(value.to(example.device), example.device_mesh, example.placements)


def _copied(state: Any) -> Any:
    """The same with tensors of its own on the CPU: the training changes its tensors while they are written."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True).contiguous()
    if isinstance(state, Mapping):
        return {key: _copied(value) for key, value in state.items()}
    return [_copied(value) for value in state] if isinstance(state, list) else state
