"""Orders: GPU work of a stage, carried out by a worker that sees the data root and no warehouse.

`orders/<run_id>.json` is the order, `<run_id>.outcome.json` beside it the outcome. The worker records its rows under
the run that ordered them. The stage that ordered publishes them. An order whose file is gone is withdrawn.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ctclip_model import errors
from ctclip_model.errors import ConfigurationError, CTCLIPError, LeaseLostError, OrderWithdrawnError, PreemptedError
from ctclip_model.json_config import read_config
from ctclip_model.training.job import TrainingJob, move_paths, to_json, write_json
from tasks.evaluation.embed import EmbeddingWork, embed_reports_and_prompts, embed_volumes
from tasks.models.find import ModelReference
from tasks.run.lease import Lease, hold_lease
from tasks.run.logs import log_context
from tasks.run.stage_run import ORDERS, StageRun
from tasks.settings import Limits
from tasks.training.processes import Launch
from tasks.training.train import run_training

T = TypeVar("T")


@dataclass(frozen=True)
class TrainingWork:
    """A model to train."""

    job: TrainingJob
    launch: Launch

    def do(self, run: StageRun) -> None:
        run_training(run, self.job, self.launch)


@dataclass(frozen=True)
class LatentsWork:
    """Latents to compute."""

    model: ModelReference
    items: EmbeddingWork
    device: str
    processes: int | None = None  # they encode volumes. None: one per GPU

    def do(self, run: StageRun) -> None:
        embed_reports_and_prompts(run, self.model, self.items, self.device)
        embed_volumes(run, self.model, self.items, self.device, self.processes)


Work = TrainingWork | LatentsWork


@dataclass(frozen=True)
class Order:
    """Work, and the stage run that ordered it. In a file its paths are relative to the data root."""

    stage: str
    variant: str
    run_id: str
    limits: Limits
    work: Work


@dataclass(frozen=True)
class Outcome:
    """The end of an order's work."""

    count_done: int = 0
    count_rejected: int = 0
    detail: str = ""  # text of the error, if there is one
    error: str | None = None  # name of a class of `ctclip_model.errors`


class OrderedRun(StageRun):
    """A stage run on the worker. The stage that ordered announces it and publishes its rows."""

    def __init__(self, data_root: Path, order: Order, lease: Lease) -> None:
        super().__init__(data_root, order.stage, order.variant, order.run_id, limits=order.limits, lease=lease)
        self.is_announced = True
        # Numbers of record files that neither the stage nor an earlier attempt has used.
        self.records.count_files = time.time_ns() // 1_000_000

    def publish_if_due(self) -> None:
        """Publishes nothing. Raises `OrderWithdrawnError` once the order is gone, and `LeaseLostError`."""
        self.check_lease()
        if not order_path(self.data_root, self.run_id).exists():
            raise OrderWithdrawnError(f"{self.stage}: run {self.run_id} has ended and withdrawn its order")


def order_path(data_root: Path, run_id: str) -> Path:
    return data_root / ORDERS / f"{run_id}.json"


@contextmanager
def order_placed(run: StageRun, work: Work) -> Iterator[str]:
    """Places an order for the run and yields its name. Leaving the context withdraws the order."""
    run.announce()
    path = order_path(run.data_root, run.run_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    _outcome_path(path).unlink(missing_ok=True)
    order = Order(run.stage, run.variant, run.run_id, run.limits, work)
    write_json(path, move_paths(order, lambda inside: inside.relative_to(run.data_root)))
    try:
        yield run.run_id
    finally:
        path.unlink(missing_ok=True)
        _outcome_path(path).unlink(missing_ok=True)


def take_outcome(run: StageRun) -> Outcome | None:
    """Adds an outcome's counts to the run, or raises its error. None: no worker has come to an end."""
    path = _outcome_path(order_path(run.data_root, run.run_id))
    if not path.exists():
        return None
    outcome = _read(path, Outcome)
    run.count_done += outcome.count_done
    run.count_rejected += outcome.count_rejected
    if outcome.error is not None:
        kind = getattr(errors, outcome.error)
        raise (CTCLIPError if issubclass(kind, errors.BadItemError) else kind)(outcome.detail)
    run.detail = outcome.detail or run.detail
    return outcome


def carry_out(data_root: Path, name: str) -> Outcome:
    """Does the work of an order, with nothing except the data root, and writes the outcome.

    Waits for another worker of the same stage: if its order is withdrawn, it soon ends. Raises the work's own error,
    and `OrderWithdrawnError` for an order that is not there.
    """
    data_root = data_root.resolve()
    path = order_path(data_root, Path(name).name)
    if not path.exists():
        raise OrderWithdrawnError(
            f"there is no order {name!r} in {data_root}: its run has ended, or has another data root"
        )
    order = move_paths(_read(path, Order), lambda inside: data_root / inside)
    facts = {"stage": order.stage, "variant": order.variant, "run_id": order.run_id}
    with hold_lease(data_root, f"{order.stage}-worker", order.limits) as lease, log_context(**facts):
        run = OrderedRun(data_root, order, lease)
        run.publish_if_due()
        if _outcome_path(path).exists():  # written by an attempt that the stage believed dead
            return _read(_outcome_path(path), Outcome)
        try:
            order.work.do(run)
        except (LeaseLostError, PreemptedError, OrderWithdrawnError):
            raise  # no outcome: another attempt continues, or nobody needs one
        except CTCLIPError as error:
            outcome = Outcome(run.count_done, run.count_rejected, str(error), type(error).__name__)
            write_json(_outcome_path(path), outcome)
            raise
        outcome = Outcome(run.count_done, run.count_rejected, run.detail)
        write_json(_outcome_path(path), outcome)
    return outcome


def _outcome_path(path: Path) -> Path:
    return path.with_suffix(".outcome.json")


def _read(path: Path, kind: type[T]) -> T:
    """Reads an order or outcome. Raises `ConfigurationError` for a file that this version would write differently.

    So a setting of another version is never passed over, be it unknown here or absent there.
    """
    try:
        value = read_config(kind, path)
        is_equal = to_json(value) == path.read_bytes()
    except ConfigurationError as error:
        raise ConfigurationError(_describe_version(path, str(error))) from error
    if not is_equal:
        raise ConfigurationError(_describe_version(path, "it lacks a setting, or writes one differently"))
    return value


def _describe_version(path: Path, reason: str) -> str:
    return f"{path} was written by another version of the code: use the same commit on both machines ({reason})"
