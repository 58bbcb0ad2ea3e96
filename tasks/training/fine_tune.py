"""Fine-tuning of a trained CT-CLIP: which of its kinds is due, what it learns from, and its records."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ctclip_model.config import VERSIONS, LiProConfig, Preset, VocabFineConfig, compute_fingerprint
from ctclip_model.data.abnormalities import ABNORMALITIES
from ctclip_model.device import Compute, Precision, limit_cpu_threads
from ctclip_model.errors import ConfigurationError, MissingInputError
from ctclip_model.models.kinds import FINE_TUNED, ModelKind, find_kind
from tasks.evaluation.embed import plan_work
from tasks.models.find import ModelReference
from tasks.run.stage_run import StageRun
from tasks.settings import PUBLISHED_LABELS
from tasks.training.ct_clip import make_job
from tasks.training.manifest import Manifest, write_manifest
from tasks.training.processes import Launch, train
from tasks.training.records import find_trained, is_recorded, record_model, train_and_record
from warehouse import store

if TYPE_CHECKING:
    from ctclip_model.training.engine.loop import StepRecord
    from ctclip_model.training.worker import Result


@dataclass(frozen=True)
class Finetuning:
    """A kind of fine-tuning of one model, on the labels of one labeller."""

    kind: ModelKind
    parent: ModelReference
    preset: Preset
    labels_of: str  # a labeller's identifier, or 'published'

    def __post_init__(self) -> None:
        find_kind(self.kind, FINE_TUNED)
        if self.parent.kind.facts.has_head:
            raise ConfigurationError(f"{self.parent.model_id} is a LiPro: fine-tune the model that it was made of")

    @property
    def config(self) -> LiProConfig | VocabFineConfig:
        return self.preset.lipro if self.kind is ModelKind.lipro else self.preset.vocabfine

    @property
    def variant(self) -> str:
        return f"{self.parent.model_id}/{self.kind}"

    @property
    def fingerprint(self) -> str:
        """What decides whether there is such a model already; as in training, the data does not."""
        return compute_fingerprint(
            self.kind, self.parent.weights_sha256, self.config, self.labels_of, VERSIONS["finetune"]
        )


def find_finetuned(data_root: Path, parent: ModelReference, preset: Preset, kinds: Sequence[ModelKind]) -> list[str]:
    """The newest model of each kind, of exactly this parent and configuration, on the published labels."""
    fingerprints = [Finetuning(kind, parent, preset, PUBLISHED_LABELS).fingerprint for kind in kinds]
    found = [find_trained(data_root, fingerprint) for fingerprint in fingerprints]
    return [model_id for model_id in found if model_id is not None]


def make_manifest(run: StageRun, finetuning: Finetuning) -> Manifest:
    """Writes `manifest.parquet`, one row a labelled sample of the train split: with its latent for LiPro, else with
    its place in the shards. With the parent's folder, and for VocabFine the shards, it is all that a worker needs.

    Raises `MissingInputError` where there is none.
    """
    parent, query = finetuning.parent, _LATENTS if finetuning.kind.facts.has_head else _SHARDS
    parameters = {
        "names": list(ABNORMALITIES), "labels_of": finetuning.labels_of, "recipe_id": parent.recipe_id,
        "model_id": parent.encoder_id,
    }  # fmt: skip
    with store.read(run.data_root) as connection:
        used = {name: value for name, value in parameters.items() if f"${name}" in query}
        table = connection.sql(query, params=used).to_arrow_table()
    if finetuning.kind.facts.has_head:
        _require_current(run.data_root, parent, table)
    if not table.num_rows:
        has, stage = f"a shard (recipe {parent.recipe_id})", "convert"
        if finetuning.kind.facts.has_head:
            has, stage = f"a latent of {parent.model_id}", "embed"
        raise MissingInputError(
            f"no volume of the train split has {has}, a report and labels of {finetuning.labels_of!r}: "
            f"run `ctclip {stage}` and `ctclip label`"
        )
    return write_manifest(run.data_root, table, f"{finetuning.preset.name}-{finetuning.kind}", finetuning.fingerprint)


def _require_current(data_root: Path, parent: ModelReference, table: pa.Table) -> None:
    """A model trained again keeps its identifier, so that latents of its former weights may still be there."""
    works = [plan_work(data_root, parent, dtype).fingerprints for dtype in Precision]
    rows = zip(table["volume_name"].to_pylist(), table["latent_fingerprint"].to_pylist(), strict=True)
    count = sum(fingerprint not in {work.get(f"volume:{name}") for work in works} for name, fingerprint in rows)
    if count:
        raise MissingInputError(
            f"{count} latents of {parent.model_id} are not of its present weights and volumes: run `ctclip embed`"
        )


def run_finetuning(run: StageRun, finetuning: Finetuning, manifest: Manifest, compute: Compute, launch: Launch) -> None:
    """Trains, and records the model, its samples and its steps."""
    from ctclip_model.training.engine.curve import TrainingResult
    from ctclip_model.training.engine.state import discard_state

    if is_recorded(run, manifest.model_id):
        return
    started = time.monotonic()
    preset, parent = finetuning.preset, finetuning.parent
    train_it = partial(_train, run.data_root, finetuning, manifest, compute, launch)
    result = train_and_record(run, manifest, finetuning.config.epochs * _count_scans(manifest.path), train_it)
    assert isinstance(result, TrainingResult)
    record_model(
        run, manifest, result, kind=finetuning.kind, preset=preset.name,
        config=asdict(finetuning.config)
        | {"labels_of": finetuning.labels_of, "parent_weights_sha256": parent.weights_sha256}
        | {"compute": asdict(compute)},
        recipe_id=parent.recipe_id,
        duration_s=time.monotonic() - started, parent_model_id=parent.model_id,
    )  # fmt: skip
    discard_state(result.folder)


def _train(
    data_root: Path,
    finetuning: Finetuning,
    manifest: Manifest,
    compute: Compute,
    launch: Launch,
    on_step: Callable[[StepRecord], None],
) -> Result:
    from ctclip_model.training.lipro import train_lipro

    parent, preset = finetuning.parent.folder, finetuning.preset
    if finetuning.kind.facts.has_head:
        with limit_cpu_threads(preset.cpu_threads):
            return train_lipro(
                manifest.path,
                parent,
                preset.lipro,
                data_root / manifest.folder,
                origin=manifest.origin,
                on_step=on_step,
            )
    job = make_job(finetuning.kind, data_root, manifest, preset, compute, parent)
    return train(job, data_root, launch, on_step)


def _count_scans(path: Path) -> int:
    return int(pc.count_distinct(pq.read_table(path, columns=["scan_id"])["scan_id"]).as_py())


# One row a sample; labels in the order of the abnormalities, null where unknown.
_LATENTS = """
select
    volume_name, scan_id, split, latent, latents.fingerprint as latent_fingerprint,
    [labels[name] for name in $names] as labels, samples.fingerprint
from labelled_samples as samples
join wanted_latents as latents on latents.kind = 'volume' and latents.item = samples.volume_name
where recipe_id = $recipe_id and labeller_id = $labels_of and model_id = $model_id
order by volume_name
"""
_SHARDS = """
select
    volume_name, scan_id, patient_id, split, shard_path, row_index, findings, impression,
    [labels[name] for name in $names] as labels, fingerprint
from labelled_samples
where recipe_id = $recipe_id and labeller_id = $labels_of
order by volume_name
"""
