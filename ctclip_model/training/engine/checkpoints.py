"""Checkpoints of a training: one folder each, complete or absent, read by any number of processes.

`step-000200/` holds `model.safetensors`, under the keys of the model's `state_dict`, and `training.pt`: optimizer,
averaged weights, random state and samples seen. Its content does not depend on the number of processes.
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

# Full tensors under their published names, for copies and shares alike. Not strict: a weight that no loss has reached
# yet has no optimizer state.
FULL_STATE = StateDictOptions(full_state_dict=True, cpu_offload=True, strict=False)
WEIGHTS, REST = "model.safetensors", "training.pt"
DAMAGE = (OSError, EOFError, KeyError, ValueError, RuntimeError, pickle.UnpicklingError, SafetensorError)


@dataclass(frozen=True)
class Snapshot:
    """The state of a training, copied to the memory of this process."""

    samples: int  # seen by all processes together
    weights: dict[str, Any]  # tensors by name
    optimizer: dict[str, Any]
    random_states: dict[str, Tensor]  # generator states by device type
    average: dict[str, Tensor]  # averaged weights by name, empty without averaging
    score: float | None = None  # score of the last validation, higher is better


@contextmanager
def storage_errors(folder: Path) -> Iterator[None]:
    """Raises `StorageError` for every failed write inside the context, PyTorch's and safetensors' errors included."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise StorageError(
            f"{folder} cannot be written ({reason}); the same call continues from the last complete checkpoint"
        ) from error


class WeightAverage:
    """Exponential moving average of a model's trainable weights, after Polyak.

    After each step, `average = decay * average + (1 - decay) * weight`.
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
        """Replaces the weights by their averages."""
        for name, value in self.average.items():
            self.learned[name].copy_(value)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Replaces the weights by their averages inside the context, for a validation."""
        weights = {name: value.detach().clone() for name, value in self.learned.items()}
        self.apply()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in weights.items():
                    self.learned[name].copy_(value)

    def state(self) -> dict[str, Tensor]:
        """Full averages by name, for a checkpoint."""
        return {name: _gather_shares(value) for name, value in self.average.items()}

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        for name, value in self.average.items():
            value.copy_(_share_like(state[name], value))


def capture(
    model: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage | None, samples: int, score: float | None
) -> Snapshot:
    """Copies the state of a training. Every process calls it, since each may hold a share of the weights."""
    random_states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        random_states["cuda"] = torch.cuda.get_rng_state()
    return Snapshot(
        samples=samples,
        weights=_copied(get_model_state_dict(model, options=FULL_STATE)),
        optimizer=_copied(get_optimizer_state_dict(model, optimizer, options=FULL_STATE)),
        random_states=random_states,
        average=_copied(average.state()) if average else {},
        score=score,
    )


def restore(
    snapshot: Snapshot, model: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage | None
) -> None:
    """Puts a training back into the state of a snapshot."""
    set_weights(model, snapshot.weights)
    set_optimizer_state_dict(model, optimizer, snapshot.optimizer, options=FULL_STATE)
    if average is not None and snapshot.average:
        average.restore(snapshot.average)
    torch.set_rng_state(snapshot.random_states["cpu"])
    if torch.cuda.is_available() and "cuda" in snapshot.random_states:
        torch.cuda.set_rng_state(snapshot.random_states["cuda"])


def set_weights(model: nn.Module, weights: Mapping[str, Any]) -> None:
    """Loads full tensors into a model, be it copied or shared out. Raises `CheckpointError` for another model's."""
    keys = set_model_state_dict(model, dict(weights), options=FULL_STATE)
    if odd := [*keys.missing_keys, *keys.unexpected_keys]:
        raise CheckpointError(f"a checkpoint is of another model: only one of the two has {odd[0]}")


class Checkpoints:
    """A folder of checkpoints that keeps the last `kept` and the best. One process writes, all may read."""

    def __init__(self, folder: Path, kept: int) -> None:
        self.folder, self.kept = folder, kept
        self.best: tuple[float, int] | None = None  # score and step of the best checkpoint in the folder
        self._writer = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None

    def load(self) -> tuple[int, Snapshot] | None:
        """The newest readable checkpoint and its step. Warns of damaged ones and skips them."""
        found = None
        for step, path in reversed(self._listed()):
            try:
                snapshot = _read(path)
            except DAMAGE as error:
                logger.warning("%s is damaged (%s): skipped", path, type(error).__name__)
                continue
            found = found or (step, snapshot)
            if snapshot.score is not None and (self.best is None or snapshot.score >= self.best[0]):
                self.best = snapshot.score, step  # the earliest of equal scores, as while training
        return found

    def weights(self, step: int) -> dict[str, Tensor]:
        """The weights of a checkpoint that exists, by name."""
        return load_file(_path(self.folder, step) / WEIGHTS)

    def save(self, step: int, snapshot: Snapshot) -> None:
        """Writes a checkpoint in the background. Waits for the write before it, and raises that write's error."""
        self.wait()
        self._writing = self._writer.submit(self._write, step, snapshot)

    def wait(self) -> None:
        """Returns when every saved checkpoint is on the disk. Raises the error of a failed write."""
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    def _write(self, step: int, snapshot: Snapshot) -> None:
        with storage_errors(self.folder), replace_folder(_path(self.folder, step)) as temporary:
            save_file(snapshot.weights, temporary / WEIGHTS)
            rest = {name: value for name, value in vars(snapshot).items() if name != "weights"}
            torch.save(rest, temporary / REST)
        if snapshot.score is not None and (self.best is None or snapshot.score > self.best[0]):
            self.best = snapshot.score, step
        best_step = self.best[1] if self.best else None
        for old, path in self._listed()[: -self.kept]:
            if old != best_step:
                shutil.rmtree(path)
        for half_written in self.folder.glob(".step-*"):  # left by a process that was killed
            shutil.rmtree(half_written, ignore_errors=True)

    def _listed(self) -> list[tuple[int, Path]]:
        paths = self.folder.glob("step-*") if self.folder.is_dir() else ()
        return sorted((int(path.name.removeprefix("step-")), path) for path in paths)


def _path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:06d}"


def _read(path: Path) -> Snapshot:
    rest = torch.load(path / REST, map_location="cpu", weights_only=True)
    return Snapshot(weights=load_file(path / WEIGHTS), **rest)


def _gather_shares(value: Tensor) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value


def _share_like(value: Tensor, example: Tensor) -> Tensor:
    if not isinstance(example, DTensor):
        return value.to(example.device)
    return distribute_tensor(value.to(example.device), example.device_mesh, example.placements)


def _copied(state: Any) -> Any:
    """A copy with its own tensors on the CPU: training changes the originals while the copy is written."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True).contiguous()
    if isinstance(state, Mapping):
        return {key: _copied(value) for key, value in state.items()}
    return [_copied(value) for value in state] if isinstance(state, list) else state
