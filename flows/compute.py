"""Carry out the order of a stage, on a worker that sees the data root alone: train, fine-tune or embed."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from prefect import State, flow

from ctclip_model.errors import PreemptedError
from tasks.settings import DATA_ROOT
from tasks.stages.stage import await_retry, showing_progress
from tasks.training.orders import carry_out


@flow(name="compute")
def compute(order: str, data_root: Path = DATA_ROOT) -> dict[str, Any] | State[Any]:
    """Carry out the GPU work that another flow ordered.

    The warehouse stays closed: the results are files and records of the data root, which the other flow publishes.

    Args:
        order: Name of the order, the id of the run that placed it.
        data_root: Folder of all data.
    """
    try:
        with showing_progress():
            return asdict(carry_out(data_root, order))
    except PreemptedError as error:
        return await_retry(error)
