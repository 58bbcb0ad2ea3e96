"""Retries of a task that trains."""

from __future__ import annotations

from typing import Any

from prefect import State, Task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import TaskRun

from ctclip_model.errors import WorkerDiedError
from tasks.settings import LIMITS


def has_lost_its_processes(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """True if another attempt may help. A wrong configuration or a diverging loss would fail again."""
    return isinstance(state.result(raise_on_failure=False), WorkerDiedError)


# Settings of a task that trains: its processes may die, and each attempt goes on from the last checkpoint.
RETRIED: dict[str, Any] = {
    "cache_policy": NO_CACHE, "retries": LIMITS.training_retries,
    "retry_delay_seconds": LIMITS.training_retry_delay_s, "retry_condition_fn": has_lost_its_processes,
}  # fmt: skip
