"""Work on other workers: a stage as its own deployment, and orders to a GPU worker."""

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

COMPUTE = "compute"  # the deployment that carries out orders


def run_deployed(data_root: Path, stage: str, parameters: dict[str, Any]) -> list[dict[str, Any]]:
    """Runs the deployment of a stage and returns the summaries of its stage runs.

    Without a `data_root` among the parameters, the worker's own CTCLIP_DATA_ROOT holds. After a worker's death the
    deployment runs again. Raises `StageFailedError`.
    """
    given = {name: to_jsonable_python(value) for name, value in parameters.items() if value is not None}
    flow_run = _run_to_end(stage, given)
    assert flow_run.state is not None
    if not flow_run.state.is_completed():
        raise StageFailedError(_describe(stage, flow_run))
    return _summarise(data_root, stage, str(flow_run.id))


def execute(run: StageRun, work: Work, deployed: bool) -> None:
    """Does the work here, or orders it from the deployment `compute`.

    The worker of `compute` sees the data root alone. Its records are published here while it works. Raises the work's
    own error, or `StageFailedError` if the worker left no outcome.
    """
    if not deployed:
        work.do(run)
        return
    with order_placed(run, work) as name:
        flow_run = _run_to_end(COMPUTE, {"order": name}, run.publish_if_due)
        if take_outcome(run) is None:
            raise StageFailedError(_describe(COMPUTE, flow_run))


def _run_to_end(name: str, parameters: dict[str, Any], meanwhile: Callable[[], None] = lambda: None) -> FlowRun:
    """Runs a deployment and returns its ended flow run. A deployment whose worker dies runs again."""
    for attempt in range(1, DEPLOYED_ATTEMPTS + 1):
        started = cast(FlowRun, run_deployment(f"{name}/{name}", parameters=parameters, timeout=0))
        flow_run = _wait(started, meanwhile)
        assert flow_run.state is not None
        if not flow_run.state.is_crashed() or attempt == DEPLOYED_ATTEMPTS:
            break
        get_run_logger().warning("%s", _describe(name, flow_run))
    return flow_run


def _wait(flow_run: FlowRun, meanwhile: Callable[[], None]) -> FlowRun:
    """Waits for the end of a flow run, and calls `meanwhile` at each poll.

    A Prefect server that is away for a while must not end a training of days.
    """
    warn_after = time.monotonic() + DEPLOYED_SILENCE_S
    with get_client(sync_client=True) as client:
        while flow_run.state is None or not flow_run.state.is_final():
            time.sleep(DEPLOYED_POLL_S)
            meanwhile()
            try:
                flow_run = client.read_flow_run(flow_run.id)
                if flow_run.state is not None and flow_run.state.is_scheduled() and time.monotonic() > warn_after:
                    get_run_logger().warning("%s", _describe_waiting(flow_run))
                    warn_after = math.inf
            except (httpx.TransportError, PrefectHTTPStatusError) as error:
                if isinstance(error, PrefectHTTPStatusError) and error.response.status_code < 500:
                    raise
                get_run_logger().warning("the Prefect server does not answer (%s). Asking again", type(error).__name__)
    return flow_run


def _describe_waiting(flow_run: FlowRun) -> str:
    pool = flow_run.work_pool_name
    return f"no worker has taken {flow_run.name} yet: start one with `prefect worker start --pool {pool}`"


def _describe(name: str, flow_run: FlowRun) -> str:
    assert flow_run.state is not None
    return f"{name}: flow run {flow_run.name} ended as {flow_run.state.name}: {flow_run.state.message}"


def _summarise(data_root: Path, stage: str, flow_run_id: str) -> list[dict[str, Any]]:
    """Summaries of the stage runs of a flow run. A stage run without work leaves no row, and gets one here."""
    with store.read(data_root) as connection:
        result = connection.execute(store.load_sql(__package__, "summaries"), [flow_run_id])
        names = [column[0] for column in result.description]
        rows = result.fetchall()
    without_work = (stage, "", "", 0, 0, "", 0.0)
    return [dict(zip(names, row, strict=True)) for row in rows or [without_work]]
