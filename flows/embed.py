"""Embed volumes, reports and prompts with a trained model. A LiPro has the latents of its parent."""

from __future__ import annotations

from typing import Any

from flows.flow_taking import flow_taking
from flows.options import EmbedOptions
from tasks.models.find import find_encoder
from tasks.run.publish import publish_leftovers
from tasks.stages.embed import embed_items, plan_embedding
from tasks.stages.stage import as_opaque, stage_run


@flow_taking(EmbedOptions)
def embed(options: EmbedOptions) -> dict[str, Any]:
    publish_leftovers(options.data_root)
    model = find_encoder(options.data_root, options.preset, options.model)
    with stage_run(options.data_root, "embed", model.model_id) as run:
        items = plan_embedding(run, model, options.dtype, options.force)
        if items.fingerprints:
            embed_items(run, model, as_opaque(items), options.device, options.deployed, options.processes)
    return run.summary()
