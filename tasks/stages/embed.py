"""Embed: the latents of new and changed volumes, reports and prompts."""

from __future__ import annotations

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from ctclip_model.device import Precision
from ctclip_model.errors import MissingInputError
from tasks.evaluation.embed import EmbeddingWork, plan_work
from tasks.models.find import ModelReference, require_folder
from tasks.models.recipes import convert_command, describe_recipe
from tasks.run.collector import pausing_collector
from tasks.run.lost import require_shards
from tasks.run.pending import plan_items
from tasks.run.stage_run import StageRun
from tasks.stages.deployed import execute
from tasks.training.orders import LatentsWork


@pausing_collector()
def plan_embedding(run: StageRun, model: ModelReference, dtype: Precision, force: bool) -> EmbeddingWork:
    """Items without a latent of their present content."""
    require_folder(model)
    work = plan_work(run.data_root, model, dtype)
    if model.kind.facts.is_frozen and not work.rows:
        raise MissingInputError(
            f"no volume is converted as {model.model_id} takes it ({describe_recipe(model.recipe)}): run "
            f"`{convert_command(model.recipe)}`"
        )
    pending = work.only(plan_items(run, model.model_id, work.fingerprints, force=force))
    require_shards(run.data_root, (path for path, _ in pending.rows.values()))
    return pending


@task(cache_policy=NO_CACHE)
def embed_items(
    run: StageRun,
    model: ModelReference,
    work: EmbeddingWork,
    device: str,
    deployed: bool,
    processes: int | None = None,
) -> None:
    """Computes the latents and records them."""
    execute(run, LatentsWork(model, work, device, processes), deployed)
    get_run_logger().info("%d latents of %s", run.count_done, model.model_id)
