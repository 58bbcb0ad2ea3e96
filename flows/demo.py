"""The demonstration: phantoms, then the same rebuild as CT-RATE's, in the preset tiny_modern."""

from __future__ import annotations

from typing import Any, cast

from flows.flow_taking import flow_taking
from flows.ingest import ingest
from flows.options import DemoOptions
from flows.rebuild import rebuild
from flows.train_labeller import train_labeller
from tasks.stages.phantoms import prepare_phantoms

PRESET = "tiny_modern"


@flow_taking(DemoOptions)
def demo(options: DemoOptions) -> list[dict[str, Any]]:
    source, data_root = options.folder / "phantoms", options.folder / "data"
    phantoms = prepare_phantoms(source, options.seed)
    ingested = ingest(str(source), data_root)
    labeller = cast(dict[str, Any], train_labeller(data_root, PRESET))
    rebuilt = rebuild(None, data_root, PRESET, labeller["labeller_id"], from_stage="convert", seed=options.seed)
    return [phantoms, ingested, labeller, *rebuilt]
