"""Work on the workers of other pools: a stage as a deployment of its own, and what a stage orders of a GPU worker."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import httpx
from prefect import get_client, get_run_logger
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.exceptions import PrefectHTTPStatusError
from pydantic_core import to_jsonable_python

from ctclip_model.errors import StageFailedError
from tasks.run.stage_run import StageRun
from tasks.settings import DEPLOYED_ATTEMPTS, DEPLOYED_POLL_S, DEPLOYED_SILENCE_S
from tasks.training.orders import Work, order_placed, take_outcome
from warehouse import store

COMPUTE = "compute"  # the deployment that does what is ordered


def run_deployed(data_root: Path, stage: str, parameters: dict[str, Any]) -> list[dict[str, Any]]:
    """Runs the stage's deployment to its end and returns what its runs did; one whose worker died is run again.

    Where the worker finds the data root its own CTCLIP_DATA_ROOT says. Raises `StageFailedError`.
    """
    flow_run = _run(stage, {name: to_jsonable_python(value) for name, value in parameters.items() if value is not None})
    assert flow_run.state is not None
    if not flow_run.state.is_completed():
        raise StageFailedError(_describe(stage, flow_run))
    return _summarise(data_root, stage, str(flow_run.id))


def execute(run: StageRun, work: Work, deployed: bool) -> None:
    """Does the work here, or has it done by the deployment `compute`, on a worker that sees the data root alone.

    What that worker records is published here while it works. Raises the work's own error, and `StageFailedError`
    where the worker came to no end.
    """
    if not deployed:
        work.do(run)
        return
    with order_placed(run, work) as name:
        flow_run = _run(COMPUTE, {"order": name}, run.publish_if_due)
        if take_outcome(run) is None:
            raise StageFailedError(_describe(COMPUTE, flow_run))


def _run(name: str, parameters: dict[str, Any], meanwhile: Callable[[], None] = lambda: None) -> FlowRun:
    """Runs a deployment to its end, which it returns; again where its worker has died."""
    for attempt in range(1, DEPLOYED_ATTEMPTS + 1):
        started = cast(FlowRun, run_deployment(f"{name}/{name}", parameters=parameters, timeout=0))
        flow_run = _wait(started, meanwhile)
        assert flow_run.state is not None
        if not flow_run.state.is_crashed() or attempt == DEPLOYED_ATTEMPTS:
            break
        get_run_logger().warning("%s", _describe(name, flow_run))
    return flow_run


def _wait(flow_run: FlowRun, meanwhile: Callable[[], None]) -> FlowRun:
    """Until the flow run has ended; a server that is away for a while does not end a training of days."""
    told_after = time.monotonic() + DEPLOYED_SILENCE_S
    with get_client(sync_client=True) as client:
        while flow_run.state is None or not flow_run.state.is_final():
            time.sleep(DEPLOYED_POLL_S)
            meanwhile()
            try:
                flow_run = client.read_flow_run(flow_run.id)
                if flow_run.state is not None and flow_run.state.is_scheduled() and time.monotonic() > told_after:
                    get_run_logger().warning("%s", _describe_waiting(flow_run))
                    told_after = math.inf
            except (httpx.TransportError, PrefectHTTPStatusError) as error:
                if isinstance(error, PrefectHTTPStatusError) and error.response.status_code < 500:
                    raise
                get_run_logger().warning("Prefect's server does not answer (%s): asking again", type(error).__name__)
    return flow_run


def _describe_waiting(flow_run: FlowRun) -> str:
    pool = flow_run.work_pool_name
    return (
        f"no worker has taken {flow_run.name} yet: `prefect worker start --pool {pool}` on a machine that is to run it"
    )


def _describe(name: str, flow_run: FlowRun) -> str:
    assert flow_run.state is not None
    return f"{name}: flow run {flow_run.name} ended as {flow_run.state.name}: {flow_run.state.message}"


def _summarise(data_root: Path, stage: str, flow_run_id: str) -> list[dict[str, Any]]:
    """As `StageRun.summary` has it; a run that found nothing to do has left no row."""
    with store.read(data_root) as connection:
        rows = connection.execute(
            "select stage, coalesce(variant, ''), run_id, count_done, count_rejected, detail, round(duration_s, 2) "
            "from runs where flow_run_id = ? and status = 'completed' order by run_id",
            [flow_run_id],
        ).fetchall()
    names = ("stage", "variant", "run_id", "done", "rejected", "detail", "duration_s")
    nothing = (stage, "", "", 0, 0, "", 0.0)
    return [dict(zip(names, row, strict=True)) for row in rows or [nothing]]
