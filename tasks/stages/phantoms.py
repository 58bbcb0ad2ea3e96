"""Phantoms: the data set of the demonstration."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from tasks.run.progress import show_stage
from tasks.sources.phantoms import make_demo_phantoms


@task(cache_policy=NO_CACHE)
def prepare_phantoms(folder: Path, seed: int) -> dict[str, Any]:
    """Makes the phantoms of a seed in `folder`, unless they exist."""
    started = time.monotonic()
    with show_stage("phantoms"):
        count = make_demo_phantoms(folder, seed)
    get_run_logger().info("%d phantoms made in %s", count, folder)
    return {
        "stage": "phantoms", "variant": "", "run_id": "", "done": count, "rejected": 0, "detail": "",
        "duration_s": round(time.monotonic() - started, 2),
    }  # fmt: skip
