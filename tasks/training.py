"""From the catalogue to a self-contained manifest, and from a training run to records."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from ctclip_model.config import VERSIONS, Preset, fingerprint
from ctclip_model.data.abnormalities import ABNORMALITIES
from ctclip_model.device import Compute, limit_cpu_threads
from ctclip_model.errors import MissingInputError
from tasks.labelling import find_labeller
from tasks.launching import Launch, train_apart
from tasks.progress import show_progress
from tasks.records import sha256_of, write_parquet
from tasks.runs import StageRun, code_version
from tasks.settings import PUBLISHED_LABELS
from warehouse import store

if TYPE_CHECKING:
    from ctclip_model.training.log import TrainingResult
    from ctclip_model.training.loop import StepRecord

STEPS_PER_RECORD = 50


@dataclass(frozen=True)
class Manifest:
    """What one training run reads, and the model that it makes."""

    path: Path
    model_id: str
    fingerprint: str  # of the samples
    config_fingerprint: str
    count_samples: int
    source: str
    revision: str


def config_fingerprint(preset: Preset) -> str:
    """What decides whether a configuration has a model already; the data does not: see *stale*."""
    return fingerprint(preset.recipe, preset.model, preset.training, VERSIONS["train"])


def find_trained(data_root: Path, mark: str) -> str | None:
    """The newest model of the configuration of that fingerprint, its seed included; None if there is none yet."""
    with store.read(data_root) as connection:
        row = connection.execute(
            "select model_id from current_models where fingerprint = ? order by run_id desc limit 1", [mark]
        ).fetchone()
    return row[0] if row else None


def describe_stale(data_root: Path, mark: str) -> str:
    """Says, where the configuration has a model, how far its samples have moved since; empty if they have not."""
    with store.read(data_root) as connection:
        row = connection.execute(
            "select model_id, count_moved_samples, stale_models.count_samples from stale_models join current_models "
            "using (model_id) where fingerprint = ? and is_stale order by run_id desc limit 1",
            [mark],
        ).fetchone()
    if row is None:
        return ""
    return f"{row[0]} is stale: {row[1]} samples moved of {row[2]}; --retrain trains anew"


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


def write_manifest(data_root: Path, table: pa.Table, name: str, config: str) -> Manifest:
    """Writes the samples of a training of that configuration; its model is called after `name` and what it learns."""
    content = fingerprint(*(table[column].to_pylist() for column in ("volume_name", "fingerprint", "labels")))
    model_id = f"{name}-{fingerprint(config, content)[:10]}"
    path = data_root / "models" / f"{model_id}.work" / "manifest.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_parquet(table, path)
    with store.read(data_root) as connection:
        origin = connection.execute("select source, revision from current_sources order by run_id desc").fetchone()
    source, revision = origin or ("", "")
    return Manifest(path, model_id, content, config, table.num_rows, source, revision)


def run_training(run: StageRun, preset: Preset, manifest: Manifest, compute: Compute, launch: Launch) -> None:
    """Trains, and records the model, its samples and its steps."""
    started = time.monotonic()
    steps = StepRecorder(run, manifest)
    total = preset.training.text_pretraining_samples + preset.training.samples
    seen: dict[str, int] = {}
    with show_progress("train", total, "samples") as progress, limit_cpu_threads(preset.cpu_threads):

        def on_step(record: StepRecord) -> None:
            steps.add(record)
            seen[record.phase] = record.samples
            progress.advance(sum(seen.values()) - progress.done, f"{record.phase}, loss {record.loss:.3f}")

        try:
            result = _train(run.data_root, preset, manifest, compute, launch, on_step)
        finally:
            steps.flush()  # what a rerun does not do again
    record_model(
        run, manifest, result, kind="ct-clip", preset=preset.name, config=asdict(preset) | {"compute": asdict(compute)},
        recipe_id=preset.recipe.recipe_id, duration_s=time.monotonic() - started,
    )  # fmt: skip


def _train(
    data_root: Path,
    preset: Preset,
    manifest: Manifest,
    compute: Compute,
    launch: Launch,
    on_step: Callable[[StepRecord], None],
) -> TrainingResult:
    from ctclip_model.training.contrastive import train_contrastive
    from ctclip_model.training.worker import Job

    origin = {"source": manifest.source, "revision": manifest.revision, "count_samples": f"{manifest.count_samples:,}"}
    folder = Path("models") / manifest.model_id
    if launch.is_apart(compute):
        job = Job(str(manifest.path.relative_to(data_root)), str(folder), preset, compute, origin)
        return train_apart(job, data_root, launch, on_step)
    return train_contrastive(
        manifest.path, data_root, preset, data_root / folder, compute=compute, origin=origin, on_step=on_step
    )


def record_model(
    run: StageRun,
    manifest: Manifest,
    result: TrainingResult,
    *,
    kind: str,
    preset: str,
    config: Mapping[str, Any],
    recipe_id: str,
    duration_s: float,
    parent_model_id: str | None = None,
) -> None:
    """Records a trained model and its samples."""
    run.record("model_samples", _sample_rows(manifest))
    run.record(
        "models",
        [
            {
                "model_id": manifest.model_id, "kind": kind, "parent_model_id": parent_model_id,
                "fingerprint": manifest.config_fingerprint, "preset": preset,
                "config": json.dumps(config, sort_keys=True), "path": str(result.folder.relative_to(run.data_root)),
                "recipe_id": recipe_id, "manifest_fingerprint": manifest.fingerprint,
                "count_samples": manifest.count_samples, "source": manifest.source, "revision": manifest.revision,
                "code_version": code_version(), "weights_sha256": sha256_of(result.folder / "model.safetensors"),
                "count_parameters": result.count_parameters, "logit_scale": result.logit_scale,
                "duration_s": duration_s, "created_at": datetime.now(UTC),
            }
        ],
    )  # fmt: skip
    run.count_done += 1


class StepRecorder:
    """Records training steps in pieces, so that a killed run's are not lost.

    A step that another attempt of the same run has recorded already, and that is done again, is passed over.
    """

    def __init__(self, run: StageRun, manifest: Manifest) -> None:
        self.run, self.manifest, self.rows = run, manifest, list[Mapping[str, Any]]()
        paths = (run.data_root / "records" / "training_steps").glob(f"{run.run_id}-*.parquet")
        tables = [pq.read_table(path, columns=["phase", "step"]) for path in paths]
        self.known = {(row["phase"], row["step"]) for table in tables for row in table.to_pylist()}

    def add(self, record: StepRecord) -> None:
        if (record.phase, record.step) in self.known:
            return
        stamp = {"model_id": self.manifest.model_id, "fingerprint": self.manifest.config_fingerprint}
        self.rows.append(stamp | asdict(record))
        if len(self.rows) >= STEPS_PER_RECORD:
            self.flush()

    def flush(self) -> None:
        rows, self.rows = self.rows, []
        if rows:
            self.run.record("training_steps", rows)
            self.run.publish_if_due()


def _sample_rows(manifest: Manifest) -> pa.Table:
    table = pq.read_table(manifest.path, columns=["volume_name", "fingerprint", "split"])
    table = table.rename_columns(["sample_id", "fingerprint", "split"])
    return table.append_column("model_id", pa.array([manifest.model_id] * table.num_rows))


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
