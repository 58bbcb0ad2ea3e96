"""Do what a stage has ordered: train, fine-tune or embed, on a worker that sees the data root alone."""

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
    """Carry out an order, which another flow, such as `train`, has placed under its run's identifier.

    It opens no warehouse: what it makes lies in the data root as files and records, and whoever placed the order
    publishes them.
    """
    try:
        with showing_progress():
            return asdict(carry_out(data_root, order))
    except PreemptedError as error:
        return await_retry(error)
