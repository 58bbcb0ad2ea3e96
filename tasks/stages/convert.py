"""Convert: volumes become shards, job by job, on a Dask cluster."""

from __future__ import annotations

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from ctclip_model.config import Recipe
from ctclip_model.data.slabs import Encoding
from tasks.conversion import ConversionJob, make_jobs, read_volumes, run_jobs
from tasks.planning import Selection, plan_items
from tasks.runs import StageRun


@task(cache_policy=NO_CACHE)
def plan_conversion(
    run: StageRun,
    recipe: Recipe,
    selection: Selection,
    force: bool,
    retry_rejects: bool,
    source: str | None,
    encoding: Encoding,
) -> list[ConversionJob]:
    """The volumes whose file, spacing, rescaling or recipe is new, in jobs of a shard each."""
    volumes = read_volumes(run.data_root, recipe, source)
    wanted = {name: volume.fingerprint for name, volume in volumes.items()}
    pending = plan_items(run, recipe.recipe_id, wanted, selection=selection, force=force, retry_rejects=retry_rejects)
    return make_jobs(run, recipe, [volumes[name] for name in pending], encoding)


@task(cache_policy=NO_CACHE)
def convert_volumes(run: StageRun, jobs: list[ConversionJob], dask_address: str | None) -> None:
    """Converts them; a job that a worker's death undid is done again elsewhere."""
    run_jobs(run, jobs, dask_address)
    get_run_logger().info("%d volumes converted, %d rejected", run.count_done, run.count_rejected)
