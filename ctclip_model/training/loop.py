"""The one training loop: batches by step number, warm-up and cosine, clipping, checkpoints, a record a step.

A batch is a function of its step's number alone, so that a killed run goes on as if it had never stopped.
"""

from __future__ import annotations

import math
import os
import resource
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from ctclip_model.errors import DivergedError
from ctclip_model.training.distributed import average_gradients, rank, sum_over_processes, world_size

Batch = TypeVar("Batch")


@dataclass(frozen=True)
class StepRecord:
    """What one step did; the names are the columns of `training_steps`."""

    phase: str
    step: int  # counted from 1
    samples: int  # seen so far, in this phase
    loss: float
    learning_rate: float
    gradient_norm: float  # before clipping
    volumes_per_s: float
    data_wait_share: float  # of the step's time
    memory_bytes: int  # the most that was ever held


@dataclass(frozen=True)
class Run(Generic[Batch]):
    """A phase of training.

    `batch_of` makes the batch of a step, in a thread of its own, from the step's number; `loss_of` gives its loss, or,
    with `adds_gradients`, adds the gradients too. Of several processes, each has its share of a batch and its loss;
    `after_step` is for what moves without gradients. With a `checkpoint` path the run goes on from there.
    """

    phase: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    batch_of: Callable[[int], Batch]
    loss_of: Callable[[Batch], Tensor]
    steps: int
    batch_size: int
    warm_up_share: float = 0.0  # of the steps; the rate then falls along a cosine to `final_rate`
    final_rate: float = 1.0  # of the optimizer's rates
    max_gradient_norm: float = 1.0
    adds_gradients: bool = False
    after_step: Callable[[], None] | None = None
    checkpoint: Path | None = None
    steps_per_checkpoint: int = 200
    on_step: Callable[[StepRecord], None] | None = None


def run_steps(run: Run[Any]) -> None:
    """Trains for the steps that are left, and leaves a checkpoint of the last.

    Raises `DivergedError` on a loss that is not finite: the checkpoint of before stays.
    """
    done = _resume(run)
    rates = [group.setdefault("initial_lr", group["lr"]) for group in run.optimizer.param_groups]
    parameters = [parameter for group in run.optimizer.param_groups for parameter in group["params"]]
    run.model.train()
    for step, batch, wait_s, started in _read_ahead(run.batch_of, done, run.steps):
        factor = rate_at(step, run.steps, run.warm_up_share, run.final_rate)
        for group, rate in zip(run.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        run.optimizer.zero_grad(set_to_none=True)
        loss = run.loss_of(batch)
        if not run.adds_gradients:
            loss.backward()
        loss = loss.detach() / world_size()
        sum_over_processes([loss])  # before it is judged, so that all processes stop or none
        if not loss.isfinite():
            raise DivergedError(f"{run.phase}: the loss is {loss.item()} at step {step + 1} of {run.steps}")
        average_gradients(parameters)
        norm = nn.utils.clip_grad_norm_(parameters, run.max_gradient_norm)
        run.optimizer.step()
        if run.after_step is not None:
            run.after_step()
        is_last = step + 1 == run.steps
        if run.checkpoint is not None and rank() == 0 and (is_last or (step + 1) % run.steps_per_checkpoint == 0):
            _save(run, step + 1)
        if run.on_step is not None:
            duration_s = time.monotonic() - started
            run.on_step(
                StepRecord(
                    phase=run.phase,
                    step=step + 1,
                    samples=(step + 1) * run.batch_size,
                    loss=loss.item(),
                    learning_rate=rates[0] * factor,
                    gradient_norm=norm.item(),
                    volumes_per_s=run.batch_size / duration_s,
                    data_wait_share=wait_s / duration_s,
                    memory_bytes=_peak_memory_bytes(),
                )
            )


def rate_at(step: int, steps: int, warm_up_share: float, final_rate: float) -> float:
    """The share of the full learning rate at a step, counted from 0: a line up, then a cosine down to `final_rate`."""
    warm_up = round(steps * warm_up_share)
    if step < warm_up:
        return (step + 1) / warm_up
    progress = (step - warm_up) / max(1, steps - warm_up)
    return final_rate + (1 - final_rate) * (1 + math.cos(math.pi * progress)) / 2


def split_decay(parameters: Iterator[nn.Parameter], rate: float, weight_decay: float) -> list[dict[str, Any]]:
    """AdamW's groups: matrices decay; biases, norms, scales and temperatures, of one dimension or none, do not."""
    learned = [parameter for parameter in parameters if parameter.requires_grad]
    return [
        {"params": [p for p in learned if p.ndim > 1], "lr": rate, "weight_decay": weight_decay},
        {"params": [p for p in learned if p.ndim <= 1], "lr": rate, "weight_decay": 0.0},
    ]


def _read_ahead(batch_of: Callable[[int], Batch], first: int, steps: int) -> Iterator[tuple[int, Batch, float, float]]:
    """Step, its batch, the seconds that it was waited for, and when the step began; the next is made meanwhile."""
    with ThreadPoolExecutor(1) as ahead:
        waiting = ahead.submit(batch_of, first) if first < steps else None
        for step in range(first, steps):
            started = time.monotonic()
            assert waiting is not None
            batch = waiting.result()
            waiting = ahead.submit(batch_of, step + 1) if step + 1 < steps else None
            yield step, batch, time.monotonic() - started, started


def _resume(run: Run[Any]) -> int:
    """The steps that a checkpoint of this phase has behind it, after loading it; 0 without one."""
    if run.checkpoint is None or not run.checkpoint.exists():
        return 0
    state = torch.load(run.checkpoint, map_location="cpu", weights_only=True)
    run.model.load_state_dict(state["model"])
    run.optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["random_state"])
    if state["cuda_random_states"]:
        torch.cuda.set_rng_state_all(state["cuda_random_states"])
    return int(state["step"])


def _save(run: Run[Any], step: int) -> None:
    assert run.checkpoint is not None
    state = {
        "step": step,
        "model": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "random_state": torch.get_rng_state(),
        "cuda_random_states": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    temporary = run.checkpoint.with_suffix(".tmp")
    with temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(run.checkpoint)


def _peak_memory_bytes() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
