"""The training loop: batches by step number, warm-up and cosine, clipping, checkpoints, a record a step.

A batch is a function of its step's number alone, so that a killed run continues as if it had never stopped.
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
from ctclip_model.training.engine.checkpoints import (
    Checkpoints,
    Snapshot,
    WeightAverage,
    capture,
    restore,
    set_weights,
)
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
    """A row of `training_steps`: one step of the optimizer."""

    phase: str
    step: int  # counted from 1
    samples: int  # seen so far in this phase
    loss: float  # not finite for a skipped step
    learning_rate: float
    gradient_norm: float  # before clipping
    volumes_per_s: float
    data_wait_share: float  # share of the step's time
    memory_bytes: int  # peak so far
    validation_auroc: float | None = None  # measured after the step, or None


@dataclass(frozen=True)
class Validation:
    """The quality of a model in training on held-out samples."""

    auroc: float  # macro, or NaN where no label is both present and absent
    loss: float | None = None  # decides the score where it is known

    @property
    def score(self) -> float:
        """Higher is better."""
        return self.auroc if self.loss is None else -self.loss


@dataclass(frozen=True)
class Run(Generic[Batch]):
    """A phase of training.

    `make_batch` runs in a thread of its own. With several processes, each has its share of a batch and its own loss.
    With `checkpoints` the run continues from the newest one. With `patience` it ends that many validations after the
    best one, and the model then has the best one's weights.
    """

    phase: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    make_batch: Callable[[int], Batch]  # from the step's number, counted from 0
    compute_loss: Callable[[Batch], Tensor]
    steps: int
    batch_size: int  # samples of all processes together
    volumes_per_sample: int = 1
    warm_up_share: float = 0.0  # share of the steps; afterwards the rate falls along a cosine to `final_rate`
    final_rate: float = 1.0  # share of the optimizer's rates
    max_gradient_norm: float = 1.0
    runs_backward: bool = False  # `compute_loss` adds the gradients itself
    to_average: Sequence[nn.Parameter] | None = None  # gradients to average over the processes; None: all
    after_step: Callable[[], None] | None = None  # moves weights that have no gradients
    after_skip: Callable[[], None] | None = None  # forgets the traces of a skipped step
    tolerated_skips: int = 0  # steps in a row without a finite loss
    name_samples: Callable[[int], Sequence[str]] | None = None  # sample names of a step, for error messages
    average: WeightAverage | None = None
    checkpoints: Checkpoints | None = None
    steps_per_checkpoint: int = 200
    validate: Callable[[], Validation] | None = None
    steps_per_validation: int = 0  # 0: never
    patience: int | None = None  # validations; needs checkpoints, which hold the best weights
    on_step: Callable[[StepRecord], None] | None = None


def run_steps(run: Run[Any]) -> int:
    """Trains for the steps that are left, saves a checkpoint of the last, and returns its number.

    Raises `DivergedError` after more skips in a row than the run tolerates; the last checkpoint stays. Raises
    `PreemptedError` after SIGTERM, once the step is done and the state saved.
    """
    with heeding_sigterm() as request:
        try:
            return _Loop(run, request).train()
        finally:
            if run.checkpoints is not None:
                run.checkpoints.wait()


def rate_at(step: int, steps: int, warm_up_share: float, final_rate: float) -> float:
    """The share of the full learning rate at a step, counted from 0: a line up, then a cosine down to `final_rate`."""
    warm_up = round(steps * warm_up_share)
    if step < warm_up:
        return (step + 1) / warm_up
    progress = (step - warm_up) / max(1, steps - warm_up)
    return final_rate + (1 - final_rate) * (1 + math.cos(math.pi * progress)) / 2


def split_decay(parameters: Iterable[nn.Parameter], rate: float, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups for AdamW: matrices decay. Biases, norms, scales and temperatures do not."""
    learned = [parameter for parameter in parameters if parameter.requires_grad]
    return [
        {"params": [p for p in learned if p.ndim > 1], "lr": rate, "weight_decay": weight_decay},
        {"params": [p for p in learned if p.ndim <= 1], "lr": rate, "weight_decay": 0.0},
    ]


def read_ahead(make_batch: Callable[[int], Batch], first: int, steps: int) -> Iterator[tuple[int, Batch, float, float]]:
    """Step, batch, seconds spent waiting for the batch, and the step's start. The next batch is made meanwhile."""
    with ThreadPoolExecutor(1) as ahead:
        waiting = ahead.submit(make_batch, first) if first < steps else None
        for step in range(first, steps):
            started = time.monotonic()
            assert waiting is not None
            batch = waiting.result()
            waiting = ahead.submit(make_batch, step + 1) if step + 1 < steps else None
            yield step, batch, time.monotonic() - started, started


@dataclass(frozen=True)
class _Outcome:
    """One step of the optimizer, equal on all processes."""

    loss: float  # loss of the whole batch
    gradient_norm: float  # NaN where the loss is not finite
    is_asked_to_stop: bool  # a process has received SIGTERM

    @property
    def is_skipped(self) -> bool:
        return not (math.isfinite(self.loss) and math.isfinite(self.gradient_norm))


class _Loop:
    """A run in progress: steps done, skips in a row, and the best validation."""

    def __init__(self, run: Run[Any], request: StopRequest) -> None:
        self.run, self.request = run, request
        self.rates = [group.setdefault("initial_lr", group["lr"]) for group in run.optimizer.param_groups]
        self.done = _resume(run)
        self.best = run.checkpoints.best if run.checkpoints is not None else None  # score and number of steps
        self.skipped = 0

    def train(self) -> int:
        run = self.run
        run.model.train()
        for step, batch, wait_s, started in read_ahead(run.make_batch, self.done, run.steps):
            if self._is_patience_over():
                break
            factor = self._set_rates(step)
            outcome = _step(run, batch, self.request)
            self._count_skips(step, outcome)
            self.done = step + 1
            validation = self._validate_if_due()
            snapshot = self._capture_if_due(outcome, validation)
            self._report(outcome, validation, self.rates[0] * factor, wait_s, started)
            # Saved after the report, so that a rerun repeats every step that nobody has heard of.
            if run.checkpoints is not None and snapshot is not None and rank() == 0:
                run.checkpoints.save(self.done, snapshot)
            if outcome.is_asked_to_stop:
                saved = f"is saved after step {self.done}" if run.checkpoints is not None else "is lost"
                raise PreemptedError(f"{run.phase}: stopped on request (SIGTERM); the training {saved} of {run.steps}")
        if run.patience is not None and self.best is not None:
            _take_best(run, self.best[1])
        return self.done

    def _is_patience_over(self) -> bool:
        if self.run.patience is None or self.best is None:
            return False
        return self.done - self.best[1] >= self.run.patience * self.run.steps_per_validation

    def _set_rates(self, step: int) -> float:
        run = self.run
        factor = rate_at(step, run.steps, run.warm_up_share, run.final_rate)
        for group, rate in zip(run.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        return factor

    def _count_skips(self, step: int, outcome: _Outcome) -> None:
        """Raises `DivergedError` at one skip too many."""
        self.skipped = self.skipped + 1 if outcome.is_skipped else 0
        if self.skipped > self.run.tolerated_skips:
            raise DivergedError(_describe_divergence(self.run, step, outcome.loss, self.skipped))

    def _validate_if_due(self) -> Validation | None:
        run = self.run
        if run.validate is None or not run.steps_per_validation or self.done % run.steps_per_validation:
            return None
        validation = _average_validation(run.validate())
        run.model.train()
        if self.best is None or validation.score > self.best[0]:
            self.best = validation.score, self.done
        return validation

    def _capture_if_due(self, outcome: _Outcome, validation: Validation | None) -> Snapshot | None:
        run = self.run
        is_due = self.done % run.steps_per_checkpoint == 0 or self.done == run.steps
        if run.checkpoints is None or not (is_due or outcome.is_asked_to_stop or validation is not None):
            return None
        score = validation.score if validation is not None else None
        return capture(run.model, run.optimizer, run.average, self.done * run.batch_size, score)

    def _report(
        self, outcome: _Outcome, validation: Validation | None, rate: float, wait_s: float, started: float
    ) -> None:
        run = self.run
        if run.on_step is None:
            return
        duration_s = time.monotonic() - started
        auroc = validation.auroc if validation is not None else math.nan
        run.on_step(
            StepRecord(
                phase=run.phase,
                step=self.done,
                samples=self.done * run.batch_size,
                loss=outcome.loss,
                learning_rate=rate,
                gradient_norm=outcome.gradient_norm,
                volumes_per_s=run.batch_size * run.volumes_per_sample / duration_s,
                data_wait_share=wait_s / duration_s,
                memory_bytes=_peak_memory_bytes(),
                validation_auroc=None if math.isnan(auroc) else auroc,
            )
        )


def _step(run: Run[Any], batch: Any, request: StopRequest) -> _Outcome:
    """One step of the optimizer. Changes nothing where the loss or the gradient is not finite."""
    parameters = [parameter for group in run.optimizer.param_groups for parameter in group["params"]]
    run.optimizer.zero_grad(set_to_none=True)
    loss = run.compute_loss(batch)
    if not run.runs_backward:
        loss.backward()
    # Summed over the processes before it is judged, so that all of them continue, skip or stop together.
    verdict = torch.stack([loss.detach().float() / world_size(), loss.new_tensor(float(request.is_made)).float()])
    sum_over_processes([verdict])
    average_gradients(parameters if run.to_average is None else run.to_average)
    norm = clip_gradients(parameters, run.max_gradient_norm)
    # The only wait for a GPU in a step, unless the weights are sharded.
    total, stops, norm_before = torch.stack([*verdict, norm.to(verdict)]).tolist()
    outcome = _Outcome(total, norm_before if math.isfinite(total) else math.nan, stops > 0)
    if outcome.is_skipped:
        if run.after_skip is not None:
            run.after_skip()
        return outcome
    run.optimizer.step()
    if run.after_step is not None:
        run.after_step()
    if run.average is not None:
        run.average.update()
    return outcome


def _describe_divergence(run: Run[Any], step: int, loss: float, skipped: int) -> str:
    fault = f"the loss is {loss}" if not math.isfinite(loss) else "the gradient is not finite"
    in_a_row = f", after {skipped - 1} skipped" if skipped > 1 else ""
    names = f"; its samples: {', '.join(run.name_samples(step))}" if run.name_samples is not None else ""
    return f"{run.phase}: {fault} at step {step + 1} of {run.steps}{in_a_row}{names}"


def _resume(run: Run[Any]) -> int:
    """Restores the newest checkpoint of this phase. Returns its number of steps, 0 without a checkpoint."""
    found = run.checkpoints.load() if run.checkpoints is not None else None
    if found is None:
        return 0
    _, snapshot = found
    restore(snapshot, run.model, run.optimizer, run.average)
    return snapshot.samples // run.batch_size


def _average_validation(found: Validation) -> Validation:
    """The mean over the processes, so that none stops while another continues."""
    values = torch.tensor([found.auroc, math.nan if found.loss is None else found.loss], dtype=torch.float64)
    sum_over_processes([values])
    auroc, loss = (values / world_size()).tolist()
    return Validation(auroc, None if found.loss is None else loss)


def _take_best(run: Run[Any], step: int) -> None:
    assert run.checkpoints is not None
    run.checkpoints.wait()
    wait_for_all()  # until the first process has written the checkpoint
    set_weights(run.model, run.checkpoints.weights(step))


def _peak_memory_bytes() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
