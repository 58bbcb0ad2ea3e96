"""A training of any kind, and the records of its steps, samples and model."""

from __future__ import annotations

import time
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ctclip_model.models.kinds import ModelKind
from ctclip_model.training.job import TrainingJob
from tasks.labels.reports import LabelledReports
from tasks.models.record import ModelRow, record_model
from tasks.run.progress import show_progress
from tasks.run.records import Rows
from tasks.run.stage_run import StageRun
from tasks.training.processes import Launch, train
from tasks.training.steps import StepRecorder

if TYPE_CHECKING:
    from ctclip_model.training.engine.loop import StepRecord
    from ctclip_model.training.worker import Result


def run_training(run: StageRun, job: TrainingJob, launch: Launch) -> None:
    """Trains a job and records its steps, its samples and its model.

    A second attempt of the same run continues: it repeats neither recorded steps nor a recorded model. Raises the
    training's own errors.
    """
    from ctclip_model.training.engine.state import discard_state

    manifest = job.manifest
    if run.has_recorded("models", manifest.model_id):  # an earlier attempt died after this record
        run.count_done += 1
    else:
        started = time.monotonic()
        result = _train_and_record_steps(run, job, launch)
        # Samples before the model: a recorded model is a sign that all is recorded.
        if not run.has_recorded("model_samples", manifest.model_id):
            run.record("model_samples", _sample_rows(job))
        record_model(run, _describe_model(job, result, time.monotonic() - started))
    discard_state(run.data_root / manifest.folder)


def _train_and_record_steps(run: StageRun, job: TrainingJob, launch: Launch) -> Result:
    steps = StepRecorder(run, job.manifest)
    seen: dict[str, int] = {}  # samples by phase
    with show_progress(run.stage, _count_samples_seen(job), "samples") as progress:

        def on_step(record: StepRecord) -> None:
            run.check_lease()  # another run may train in the same folder by now
            steps.add(record)
            seen[record.phase] = record.samples
            progress.advance(sum(seen.values()) - progress.done, f"{record.phase}, loss {record.loss:.3f}")

        try:
            result = train(job, run.data_root, launch, on_step)
        finally:
            steps.flush()  # a rerun does not repeat the steps before the last checkpoint
    steps.complete(result.folder / "metrics.parquet")
    return result


def _count_samples_seen(job: TrainingJob) -> int:
    """The samples that a training sees, phases added up: an estimate where whole groups of reports are held out."""
    preset, manifest = job.preset, job.manifest
    if job.kind is ModelKind.ct_clip:
        training = preset.training
        return training.text_pretraining_samples + training.image_pretraining_samples + training.samples
    if job.kind is ModelKind.labeller:
        return round(preset.labeller.epochs * manifest.count_samples * (1 - preset.labeller.validation_share))
    epochs = preset.lipro.epochs if job.kind is ModelKind.lipro else preset.vocabfine.epochs
    return epochs * int(pc.count_distinct(pq.read_table(manifest.path, columns=["scan_id"])["scan_id"]).as_py())


def _sample_rows(job: TrainingJob) -> Rows:
    """Rows of `model_samples`."""
    manifest = job.manifest
    if job.kind is ModelKind.labeller:
        from ctclip_model.training.labeller import read_manifest

        return LabelledReports(*read_manifest(manifest.path)).sample_rows(manifest.model_id)
    table = pq.read_table(manifest.path, columns=["volume_name", "fingerprint", "split"])
    table = table.rename_columns(["sample_id", "fingerprint", "split"])
    return table.append_column("model_id", pa.array([manifest.model_id] * table.num_rows))


def _describe_model(job: TrainingJob, result: Result, duration_s: float) -> ModelRow:
    from ctclip_model.training.engine.curve import TrainingResult

    manifest, parent = job.manifest, job.parent
    config: dict[str, Any] = asdict(job.config) | {"compute": asdict(job.compute)}
    if job.labels_of is not None:
        config["labels_of"] = job.labels_of
        config |= {} if job.label_set.is_built_in else {"label_set": job.label_set.name}
    if parent is not None:
        config["parent_weights_sha256"] = parent.weights_sha256
    row = partial(
        ModelRow, model_id=manifest.model_id, kind=job.kind, fingerprint=manifest.config_fingerprint,
        preset=job.preset.name, config=config, count_parameters=result.count_parameters, duration_s=duration_s,
        count_samples=manifest.count_samples, source=manifest.source, revision=manifest.revision,
    )  # fmt: skip
    if job.kind is ModelKind.labeller:
        return row()
    assert isinstance(result, TrainingResult)
    return row(
        recipe_id=parent.recipe_id if parent is not None else job.preset.recipe.recipe_id,
        logit_scale=result.logit_scale,
        parent_model_id=parent.model_id if parent is not None else None,
        manifest_fingerprint=manifest.fingerprint,
    )
