"""Stages as deployments of their own, so that each runs on a worker of its pool, wherever that is."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from prefect import get_run_logger
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from pydantic_core import to_jsonable_python

from ctclip_model.errors import StageFailedError
from tasks.settings import DEPLOYED_ATTEMPTS, DEPLOYED_POLL_S
from warehouse import store


def run_deployed(data_root: Path, stage: str, parameters: dict[str, Any]) -> list[dict[str, Any]]:
    """Runs the stage's deployment to its end and returns what its runs did; one whose worker died is run again.

    Where the worker finds the data root its own CTCLIP_DATA_ROOT says. Raises `StageFailedError`.
    """
    given = {name: to_jsonable_python(value) for name, value in parameters.items() if value is not None}
    problem = ""
    for _ in range(DEPLOYED_ATTEMPTS):
        flow_run = cast(FlowRun, run_deployment(f"{stage}/{stage}", parameters=given, poll_interval=DEPLOYED_POLL_S))
        assert flow_run.state is not None
        if flow_run.state.is_completed():
            return _summarise(data_root, stage, str(flow_run.id))
        problem = f"{stage}: flow run {flow_run.name} ended as {flow_run.state.name}: {flow_run.state.message}"
        if not flow_run.state.is_crashed():
            break
        get_run_logger().warning("%s", problem)
    raise StageFailedError(problem)


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
