"""The one training loop: batches by step number, warm-up and cosine, clipping, checkpoints, a record a step.

A batch is a function of its step's number alone, so that a killed run goes on as if it had never stopped.
"""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from ctclip_model.errors import DivergedError, PreemptedError
from ctclip_model.training.engine.checkpoints import Checkpoints, WeightAverage, capture, restore, set_weights
from ctclip_model.training.engine.processes import (
    average_gradients,
    clip_gradients,
    rank,
    sum_over_processes,
    wait_for_all,
    world_size,
)
from ctclip_model.training.engine.sigterm import StopRequest, heeding_sigterm

Batch = TypeVar("Batch")


@dataclass(frozen=True)
class StepRecord:
    """What one step did; the names are the columns of `training_steps`."""

    phase: str
    step: int  # counted from 1
    samples: int  # seen so far, in this phase
    loss: float  # not finite where the step was skipped
    learning_rate: float
    gradient_norm: float  # before clipping
    volumes_per_s: float
    data_wait_share: float  # of the step's time
    memory_bytes: int  # the most that was ever held
    validation_auroc: float | None = None  # after the step, where it was measured


@dataclass(frozen=True)
class Validation:
    """How well a model in training does on held-out samples."""

    auroc: float  # macro; NaN where no abnormality is both present and absent
    loss: float | None = None  # by which it is judged, where there is one

    @property
    def score(self) -> float:
        """The higher the better."""
        return self.auroc if self.loss is None else -self.loss


@dataclass(frozen=True)
class Run(Generic[Batch]):
    """A phase of training.

    `batch_of` makes the batch of a step, in a thread of its own, from the step's number; `loss_of` gives its loss, or,
    with `adds_gradients`, adds the gradients too. Of several processes, each has its share of a batch and its loss.
    `after_step` is for what moves without gradients, `after_skip` forgets what a step that counts for nothing has
    left. With `checkpoints` the run goes on from the newest. With `patience` it ends early, so many validations after
    the best one, and the model then has that one's weights.
    """

    phase: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    batch_of: Callable[[int], Batch]
    loss_of: Callable[[Batch], Tensor]
    steps: int
    batch_size: int  # of all processes together
    warm_up_share: float = 0.0  # of the steps; the rate then falls along a cosine to `final_rate`
    final_rate: float = 1.0  # of the optimizer's rates
    max_gradient_norm: float = 1.0
    adds_gradients: bool = False
    averaged: Sequence[nn.Parameter] | None = None  # whose gradients are not the processes' mean already; None: all
    after_step: Callable[[], None] | None = None
    after_skip: Callable[[], None] | None = None
    tolerated_skips: int = 0  # steps in a row without a finite loss
    names_of: Callable[[int], Sequence[str]] | None = None  # the samples of a step, for a person to look at
    average: WeightAverage | None = None
    checkpoints: Checkpoints | None = None
    steps_per_checkpoint: int = 200
    validate: Callable[[], Validation] | None = None
    steps_per_validation: int = 0  # 0: never
    patience: int | None = None  # validations; needs checkpoints, which hold the best weights
    on_step: Callable[[StepRecord], None] | None = None


def run_steps(run: Run[Any]) -> int:
    """Trains for the steps that are left, leaves a checkpoint of the last, and returns its number.

    Raises `DivergedError` after more losses in a row that are not finite than the run tolerates: the checkpoint of
    before stays. Raises `PreemptedError` after SIGTERM, when the step is done and the state saved.
    """
    with heeding_sigterm() as request:
        try:
            return _run_steps(run, request)
        finally:
            if run.checkpoints is not None:
                run.checkpoints.wait()


def _run_steps(run: Run[Any], request: StopRequest) -> int:
    rates = [group.setdefault("initial_lr", group["lr"]) for group in run.optimizer.param_groups]
    done = _resume(run)
    best = run.checkpoints.best if run.checkpoints is not None else None
    skipped = 0
    run.model.train()
    for step, batch, wait_s, started in read_ahead(run.batch_of, done, run.steps):
        if _is_patience_over(run, best, step):
            break
        factor = rate_at(step, run.steps, run.warm_up_share, run.final_rate)
        for group, rate in zip(run.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        loss, norm, is_asked_to_stop = _step(run, batch, request)
        skipped = 0 if math.isfinite(loss) and math.isfinite(norm) else skipped + 1
        if skipped > run.tolerated_skips:
            raise DivergedError(_describe_divergence(run, step, loss, skipped))
        done = step + 1
        validation = None
        if run.validate is not None and run.steps_per_validation and done % run.steps_per_validation == 0:
            validation = _validate(run.validate)
            run.model.train()
            if best is None or validation.score > best[0]:
                best = validation.score, done
        is_due = done % run.steps_per_checkpoint == 0 or done == run.steps
        snapshot = None
        if run.checkpoints is not None and (is_due or is_asked_to_stop or validation is not None):
            score = validation.score if validation is not None else None
            snapshot = capture(run.model, run.optimizer, run.average, done * run.batch_size, score)
        if run.on_step is not None:
            duration_s = time.monotonic() - started
            run.on_step(
                StepRecord(
                    phase=run.phase,
                    step=done,
                    samples=done * run.batch_size,
                    loss=loss,
                    learning_rate=rates[0] * factor,
                    gradient_norm=norm,
                    volumes_per_s=run.batch_size / duration_s,
                    data_wait_share=wait_s / duration_s,
                    memory_bytes=_peak_memory_bytes(),
                    validation_auroc=_known(validation.auroc) if validation is not None else None,
                )
            )
        if run.checkpoints is not None and snapshot is not None and rank() == 0:
            run.checkpoints.save(done, snapshot)  # what a rerun does not do again has been told by now
        if is_asked_to_stop:
            saved = f"is saved after step {done}" if run.checkpoints is not None else "is lost"
            raise PreemptedError(f"{run.phase}: stopped on request (SIGTERM); the training {saved} of {run.steps}")
    if run.patience is not None and best is not None:
        _take_best(run, best[1])
    return done


def _step(run: Run[Any], batch: Any, request: StopRequest) -> tuple[float, float, bool]:
    """One step of the optimizer: its loss, the norm of its gradient, and whether any process was asked to stop.

    Where loss or norm is not finite, nothing is changed.
    """
    parameters = [parameter for group in run.optimizer.param_groups for parameter in group["params"]]
    run.optimizer.zero_grad(set_to_none=True)
    loss = run.loss_of(batch)
    if not run.adds_gradients:
        loss.backward()
    # Judged when it is the whole batch's, so that all processes go on, skip or stop together.
    verdict = torch.stack([loss.detach().float() / world_size(), loss.new_tensor(float(request.is_made)).float()])
    sum_over_processes([verdict])
    total, stops = verdict.tolist()
    norm = math.nan
    if math.isfinite(total):
        average_gradients(parameters if run.averaged is None else run.averaged)
        norm = clip_gradients(parameters, run.max_gradient_norm)
    if not math.isfinite(norm):
        if run.after_skip is not None:
            run.after_skip()
        return total, norm, stops > 0
    run.optimizer.step()
    if run.after_step is not None:
        run.after_step()
    if run.average is not None:
        run.average.update()
    return total, norm, stops > 0


def _describe_divergence(run: Run[Any], step: int, loss: float, skipped: int) -> str:
    what = f"the loss is {loss}" if not math.isfinite(loss) else "the gradient is not finite"
    in_a_row = f", after {skipped - 1} skipped" if skipped > 1 else ""
    names = f"; its samples: {', '.join(run.names_of(step))}" if run.names_of is not None else ""
    return f"{run.phase}: {what} at step {step + 1} of {run.steps}{in_a_row}{names}"


def rate_at(step: int, steps: int, warm_up_share: float, final_rate: float) -> float:
    """The share of the full learning rate at a step, counted from 0: a line up, then a cosine down to `final_rate`."""
    warm_up = round(steps * warm_up_share)
    if step < warm_up:
        return (step + 1) / warm_up
    progress = (step - warm_up) / max(1, steps - warm_up)
    return final_rate + (1 - final_rate) * (1 + math.cos(math.pi * progress)) / 2


def split_decay(parameters: Iterable[nn.Parameter], rate: float, weight_decay: float) -> list[dict[str, Any]]:
    """AdamW's groups: matrices decay; biases, norms, scales and temperatures, of one dimension or none, do not."""
    learned = [parameter for parameter in parameters if parameter.requires_grad]
    return [
        {"params": [p for p in learned if p.ndim > 1], "lr": rate, "weight_decay": weight_decay},
        {"params": [p for p in learned if p.ndim <= 1], "lr": rate, "weight_decay": 0.0},
    ]


def read_ahead(batch_of: Callable[[int], Batch], first: int, steps: int) -> Iterator[tuple[int, Batch, float, float]]:
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
    found = run.checkpoints.load() if run.checkpoints is not None else None
    if found is None:
        return 0
    _, snapshot = found
    restore(snapshot, run.model, run.optimizer, run.average)
    return snapshot.samples // run.batch_size


def _validate(validate: Callable[[], Validation]) -> Validation:
    """The same on every process, lest one should stop where another goes on."""
    found = validate()
    values = torch.tensor([found.auroc, math.nan if found.loss is None else found.loss], dtype=torch.float64)
    sum_over_processes([values])
    auroc, loss = (values / world_size()).tolist()
    return Validation(auroc, None if found.loss is None else loss)


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _is_patience_over(run: Run[Any], best: tuple[float, int] | None, done: int) -> bool:
    if run.patience is None or best is None:
        return False
    return done - best[1] >= run.patience * run.steps_per_validation


def _take_best(run: Run[Any], step: int) -> None:
    assert run.checkpoints is not None
    run.checkpoints.wait()
    wait_for_all()  # the first process has written it
    set_weights(run.model, run.checkpoints.weights(step))


def _peak_memory_bytes() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
