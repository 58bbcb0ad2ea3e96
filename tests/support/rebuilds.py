"""Whole rebuilds with the preset `smoke`, and what they made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.data_roots import start_cluster
from warehouse.store import query


def rebuild_all(data_root: Path, source: Path, **options: Any) -> dict[str, dict[str, Any]]:
    """Summary of each stage. Several runs of a stage count as one: their work is added, all else is the first's."""
    from flows.ingest import ingest
    from flows.rebuild import rebuild
    from flows.train_labeller import train_labeller

    done = {"ingest": ingest(str(source), data_root)}
    options.setdefault("labeller", train_labeller(data_root, "smoke")["labeller_id"])
    options.setdefault("dask_address", start_cluster())
    summaries = rebuild(None, data_root, "smoke", from_stage="convert", **options)
    for summary in summaries:
        first = done.setdefault(summary["stage"], summary)
        if first is not summary:
            first["done"] += summary["done"]
            first["rejected"] += summary["rejected"]
    return done


def count_done(done: dict[str, dict[str, Any]]) -> dict[str, int]:
    """Number of items of each stage that did something."""
    return {stage: summary["done"] for stage, summary in done.items() if summary["done"]}


def find_labeller(data_root: Path) -> str:
    """Name of the only labeller."""
    ((labeller,),) = query(data_root, "select model_id from current_models where kind = 'labeller'")
    return str(labeller)


def find_train_volume(data_root: Path) -> str:
    """Name of the first volume of the training."""
    return str(query(data_root, "select min(volume_name) from training_samples")[0][0])
