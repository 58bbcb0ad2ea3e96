"""Stage run around a Prefect flow run."""

from __future__ import annotations

import time
from asyncio import CancelledError
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

from prefect import State, runtime
from prefect.states import AwaitingRetry
from prefect.utilities.annotations import opaque

from ctclip_model.errors import PreemptedError, StageFailedError
from tasks.run.logs import configure_logging, is_log_requested
from tasks.run.progress import REPORTER, LogReporter, show_stage
from tasks.run.stage_run import StageRun, open_run
from tasks.settings import LIMITS
from tasks.stages.prefect_pages import ProgressArtifact, show_end, with_server

T = TypeVar("T")


def as_opaque(plan: T) -> T:
    """Marks a large argument of a task. Prefect would otherwise visit each of its items, which takes a minute."""
    return cast(T, cast(Any, opaque)(plan))


def await_retry(error: PreemptedError) -> State[Any]:
    """State of a preempted flow run: a worker runs it again later.

    Raises the error if the flow run has no deployment, because nobody would run it again.
    """
    if runtime.deployment.id is None:
        raise error
    due = datetime.now(UTC) + timedelta(seconds=LIMITS.training_retry_delay_s)
    return AwaitingRetry(message=str(error), scheduled_time=due)


@contextmanager
def end_in_time(stage: str) -> Iterator[None]:
    """Turns Prefect's cancellation at the flow's timeout into a `StageFailedError`."""
    started = time.monotonic()
    try:
        yield
    except CancelledError as error:
        took_s = time.monotonic() - started
        raise StageFailedError(
            f"{stage}: not done after {took_s:.0f} s, and ended; a rerun goes on from here"
        ) from error


@contextmanager
def stage_run(data_root: Path, stage: str, variant: str = "") -> Iterator[StageRun]:
    """Opens a run of a stage, with the id and the parameters of the flow run, which shows the run's summary.

    Raises `StageFailedError` at the flow's timeout.
    """
    run = None
    flow_run = {"parameters": runtime.flow_run.parameters, "flow_run_id": runtime.flow_run.id}
    try:
        with (
            showing_progress(),
            show_stage(stage),
            end_in_time(stage),
            open_run(data_root, stage, variant, **flow_run) as run,
            end_in_time(stage),
        ):
            yield run
    finally:
        if run is not None and run.is_announced:
            with_server(show_end, run)


@contextmanager
def showing_progress() -> Iterator[None]:
    """Shows progress as an artifact of the flow run too, and writes log lines as `CTCLIP_LOG` asks."""
    if is_log_requested():
        configure_logging()
    token = REPORTER.set(ProgressArtifact(REPORTER.get() or LogReporter()))
    try:
        yield
    finally:
        REPORTER.reset(token)
