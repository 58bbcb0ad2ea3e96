"""Embed volumes, reports and prompts with a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow

from ctclip_model.device import Precision
from tasks.models.find import find_encoder
from tasks.run.publish import publish_leftovers
from tasks.settings import DATA_ROOT, PRESET
from tasks.stages.embed import embed_items, plan_embedding
from tasks.stages.stage import as_opaque, stage_run


@flow(name="embed")
def embed(
    data_root: Path = DATA_ROOT,
    preset: str = PRESET,
    model: str | None = None,
    force: bool = False,
    device: str = "auto",
    dtype: Precision = Precision.float32,
    deployed: bool = False,
) -> dict[str, Any]:
    """Embed what is new or changed; `model` is an identifier, by default the preset's latest.

    A LiPro's latents are its parent's, which is what is embedded then. `deployed` has the deployment `compute`
    do it, on a worker of its pool.
    """
    publish_leftovers(data_root)
    chosen = find_encoder(data_root, preset, model)
    with stage_run(data_root, "embed", chosen.model_id) as run:
        items = plan_embedding(run, chosen, dtype, force)
        embed_items(run, chosen, as_opaque(items), device, deployed)
    return run.summary()
