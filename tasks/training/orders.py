"""Work that a stage has done elsewhere: an order in the data root, carried out by a worker that sees nothing else.

`orders/<run_id>.json` says what to do, `<run_id>.outcome.json` beside it what became of it. The worker writes its rows
to the records, as of the run that ordered them; whoever ordered publishes them. An order that is gone is withdrawn.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from ctclip_model import errors
from ctclip_model.config import Preset
from ctclip_model.device import Compute
from ctclip_model.errors import ConfigurationError, CTCLIPError, LeaseLostError, OrderWithdrawnError, PreemptedError
from ctclip_model.files import whole_file
from tasks.evaluation.embed import EmbeddingWork, embed_reports_and_prompts, embed_volumes
from tasks.models.find import ModelReference
from tasks.run.lease import Lease, hold_lease
from tasks.run.logs import log_context
from tasks.run.stage_run import ORDERS, StageRun
from tasks.settings import Limits
from tasks.training.ct_clip import run_training
from tasks.training.fine_tune import Finetuning, run_finetuning
from tasks.training.labeller import run_roberta_training
from tasks.training.manifest import Manifest
from tasks.training.processes import Launch

T = TypeVar("T")


@dataclass(frozen=True)
class TrainingWork:
    """A CT-CLIP to train."""

    preset: Preset
    manifest: Manifest
    compute: Compute
    launch: Launch
    what: Literal["ct-clip"] = "ct-clip"

    def do(self, run: StageRun) -> None:
        run_training(run, self.preset, self.manifest, self.compute, self.launch)


@dataclass(frozen=True)
class FinetuningWork:
    """A model to fine-tune."""

    finetuning: Finetuning
    manifest: Manifest
    compute: Compute
    launch: Launch
    what: Literal["fine-tuning"] = "fine-tuning"

    def do(self, run: StageRun) -> None:
        run_finetuning(run, self.finetuning, self.manifest, self.compute, self.launch)


@dataclass(frozen=True)
class LabellerWork:
    """A report labeller to train."""

    preset: Preset
    manifest: Manifest
    compute: Compute
    launch: Launch
    what: Literal["labeller"] = "labeller"

    def do(self, run: StageRun) -> None:
        run_roberta_training(run, self.preset, self.manifest, self.compute, self.launch)


@dataclass(frozen=True)
class LatentsWork:
    """Latents to compute."""

    model: ModelReference
    items: EmbeddingWork
    device: str
    what: Literal["latents"] = "latents"

    def do(self, run: StageRun) -> None:
        embed_reports_and_prompts(run, self.model, self.items, self.device)
        embed_volumes(run, self.model, self.items, self.device)


# Of the same fields, some of them: `what` tells them apart in the file.
Work = TrainingWork | FinetuningWork | LabellerWork | LatentsWork


@dataclass(frozen=True)
class Order:
    """Work, and the run of the stage that wants it. In the file its paths are relative to the data root."""

    stage: str
    variant: str
    run_id: str
    limits: Limits
    work: Work


@dataclass(frozen=True)
class Outcome:
    """What became of an order; `error` is the name of one of `ctclip_model.errors`, whose text is `detail`."""

    count_done: int = 0
    count_rejected: int = 0
    detail: str = ""
    error: str | None = None


class OrderedRun(StageRun):
    """A stage's run as the worker sees it: others have announced it, and others publish its rows."""

    def __init__(self, data_root: Path, order: Order, lease: Lease) -> None:
        super().__init__(data_root, order.stage, order.variant, order.run_id, limits=order.limits, lease=lease)
        self.is_announced = True
        self.records.count_files = time.time_ns() // 1_000_000  # beyond those of the stage, and of an earlier attempt

    def publish_if_due(self) -> None:
        self.check_lease()
        if not order_path(self.data_root, self.run_id).exists():
            raise OrderWithdrawnError(f"{self.stage}: run {self.run_id} has ended, and wants no more of this")


def order_path(data_root: Path, run_id: str) -> Path:
    return data_root / ORDERS / f"{run_id}.json"


@contextmanager
def order_placed(run: StageRun, work: Work) -> Iterator[str]:
    """Places an order for the run, and yields its name; at the end it is withdrawn, whatever became of it."""
    run.announce()
    path = order_path(run.data_root, run.run_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    _outcome_path(path).unlink(missing_ok=True)
    order = Order(run.stage, run.variant, run.run_id, run.limits, work)
    _write(path, Order, _move(order, lambda place: place.relative_to(run.data_root)))
    try:
        yield run.run_id
    finally:
        path.unlink(missing_ok=True)
        _outcome_path(path).unlink(missing_ok=True)


def take_outcome(run: StageRun) -> Outcome | None:
    """Counts what was done for the run, or raises the error that came of it; None where nobody came to an end."""
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
    """Does what was ordered under that name, with nothing but the data root, and leaves word of how it ended.

    Waits while another worker is at work for the same stage: one whose order is withdrawn soon ends. Raises the work's
    own error, and `OrderWithdrawnError` where there is no such order any more.
    """
    data_root = data_root.resolve()
    path = order_path(data_root, Path(name).name)
    if not path.exists():
        raise OrderWithdrawnError(
            f"there is no order {name!r} in {data_root}: whoever placed it has ended, or has another data root"
        )
    order = _move(_read(path, Order), lambda place: data_root / place)
    facts = {"stage": order.stage, "variant": order.variant, "run_id": order.run_id}
    with hold_lease(data_root, f"{order.stage}-worker", order.limits) as lease, log_context(**facts):
        run = OrderedRun(data_root, order, lease)
        run.publish_if_due()
        if _outcome_path(path).exists():  # of an attempt that was given up too soon
            return _read(_outcome_path(path), Outcome)
        try:
            order.work.do(run)
        except (LeaseLostError, PreemptedError, OrderWithdrawnError):
            raise  # another attempt goes on from here, or nobody wants one
        except CTCLIPError as error:
            outcome = Outcome(run.count_done, run.count_rejected, str(error), type(error).__name__)
            _write(_outcome_path(path), Outcome, outcome)
            raise
        outcome = Outcome(run.count_done, run.count_rejected, run.detail)
        _write(_outcome_path(path), Outcome, outcome)
    return outcome


def _outcome_path(path: Path) -> Path:
    return path.with_suffix(".outcome.json")


def _write(path: Path, kind: type[T], value: T) -> None:
    with whole_file(path) as file:
        file.write(TypeAdapter(kind).dump_json(value))


def _read(path: Path, kind: type[T]) -> T:
    content, adapter = path.read_bytes(), TypeAdapter(kind)
    try:
        value = adapter.validate_json(content)
    except ValidationError as error:
        raise ConfigurationError(f"{path} is not of this version of the code, but of whoever ordered it") from error
    if adapter.dump_json(value) != content:  # a setting that is not known here would be passed over without a word
        raise ConfigurationError(f"{path} is not of this version of the code, but of whoever ordered it")
    return value


def _move(value: T, place: Callable[[Path], Path]) -> T:
    """The same with every path of its parts somewhere else."""
    changed: dict[str, Any] = {}
    for field in fields(cast(Any, value)):
        part = getattr(value, field.name)
        if isinstance(part, Path):
            changed[field.name] = place(part)
        elif is_dataclass(part):
            changed[field.name] = _move(part, place)
    return cast(T, replace(cast(Any, value), **changed))
