"""The demonstration: phantoms, then the same rebuild that CT-RATE gets, on the tiny preset."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from prefect import flow

from flows.ingest import ingest
from flows.rebuild import rebuild
from flows.train_labeller import train_labeller
from tasks.stages.phantoms import prepare_phantoms

PRESET = "tiny"


@flow(name="demo")
def demo(folder: Path = Path("demo"), seed: int = 0) -> list[dict[str, Any]]:
    """Make phantoms in `folder`/phantoms and rebuild CT-CLIP on them in `folder`/data, with a labeller of its own."""
    source, data_root = folder / "phantoms", folder / "data"
    phantoms = prepare_phantoms(source, seed)
    ingested = ingest(str(source), data_root)
    labeller = cast(dict[str, Any], train_labeller(data_root, PRESET))
    rebuilt = rebuild(None, data_root, PRESET, labeller["labeller_id"], from_stage="convert", seed=seed)
    return [phantoms, ingested, labeller, *rebuilt]
