"""From the catalogue to a self-contained manifest, and from a training run to records."""

from __future__ import annotations

import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ctclip_model.config import Preset
from ctclip_model.data.abnormalities import ABNORMALITIES
from ctclip_model.device import Compute
from ctclip_model.errors import MissingInputError
from ctclip_model.models.kinds import ModelKind
from tasks.labels.labellers import find_labeller
from tasks.run.stage_run import StageRun
from tasks.settings import PUBLISHED_LABELS
from tasks.training.processes import Launch, train
from warehouse import store

if TYPE_CHECKING:
    from ctclip_model.training.worker import Job
from tasks.training.manifest import Manifest, config_fingerprint, write_manifest
from tasks.training.records import is_recorded, record_model, train_and_record


def make_manifest(run: StageRun, preset: Preset, labeller_id: str | None) -> Manifest:
    """Writes `manifest.parquet`, one row a training sample, which with the shards is all that a GPU worker needs.

    With a labeller, each row has its labels. Raises `MissingInputError` where nothing has been converted for the
    preset's recipe, or the labeller has labelled nothing.
    """
    recipe_id = preset.recipe.recipe_id
    with store.read(run.data_root) as connection:
        table = connection.sql(_MANIFEST, params=[list(ABNORMALITIES), labeller_id, recipe_id]).to_arrow_table()
    if not table.num_rows:
        raise MissingInputError(
            f"no converted volume of the train split has a report (recipe {recipe_id}): run convert"
        )
    if labeller_id is not None and table["labels"].null_count == table.num_rows:
        raise MissingInputError(f"{labeller_id} has labelled no report of the train split: run `ctclip label`")
    return write_manifest(run.data_root, table, preset.name, config_fingerprint(preset))


def choose_labels(data_root: Path, preset: Preset, labeller: str) -> str | None:
    """Whose labels a training reads: the labeller's to teach the text encoder, the published ones to validate alone."""
    if preset.training.text_pretraining_samples > 0:
        return find_labeller(data_root, labeller).labeller_id
    return PUBLISHED_LABELS if preset.training.steps_per_validation else None


def run_training(run: StageRun, preset: Preset, manifest: Manifest, compute: Compute, launch: Launch) -> None:
    """Trains, and records the model, its samples and its steps."""
    from ctclip_model.training.engine.curve import TrainingResult
    from ctclip_model.training.engine.state import discard_state

    if is_recorded(run, manifest.model_id):
        return
    started = time.monotonic()
    job = make_job(ModelKind.ct_clip, run.data_root, manifest, preset, compute)
    total = preset.training.text_pretraining_samples + preset.training.samples
    result = train_and_record(run, manifest, total, partial(train, job, run.data_root, launch))
    assert isinstance(result, TrainingResult)
    record_model(
        run, manifest, result, kind=ModelKind.ct_clip, preset=preset.name,
        config=asdict(preset) | {"compute": asdict(compute)},
        recipe_id=preset.recipe.recipe_id, duration_s=time.monotonic() - started,
    )  # fmt: skip
    discard_state(result.folder)


def make_job(
    kind: ModelKind, data_root: Path, manifest: Manifest, preset: Preset, compute: Compute, parent: Path | None = None
) -> Job:
    """The training of a manifest's model, in terms of the data root."""
    from ctclip_model.training.worker import Job

    return Job(
        kind, str(manifest.path.relative_to(data_root)), str(manifest.folder), preset, compute,
        manifest.origin, parent=str(parent.relative_to(data_root)) if parent is not None else None,
    )  # fmt: skip


# One row a sample; labels in the order of the abnormalities, null where the labeller has not read the report.
_MANIFEST = """
with labelled as (
    select scan_id, list(value order by list_position($1, abnormality)) as labels
    from all_labels
    where labeller_id = $2
    group by scan_id
)
select volume_name, scan_id, patient_id, split, shard_path, row_index, findings, impression, labels, fingerprint
from training_samples
left join labelled using (scan_id)
where recipe_id = $3
order by volume_name
"""
