"""Fine-tuning of a trained CT-CLIP: its identity and its samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from ctclip_model.config import VERSIONS, LiProConfig, Preset, VocabFineConfig, compute_fingerprint
from ctclip_model.device import Compute, Precision
from ctclip_model.errors import ConfigurationError, MissingInputError
from ctclip_model.models.kinds import FINE_TUNED, ModelKind, find_kind
from ctclip_model.training.job import Manifest, Parent, TrainingJob
from tasks.evaluation.embed import plan_works
from tasks.labels.label_sources import DEFAULT_SOURCE, LabelSource, mark_labels, split_mark
from tasks.models.find import ModelReference, require_folder
from tasks.run.splits import require_split
from tasks.run.stage_run import StageRun
from tasks.training.manifest import write_manifest
from tasks.training.records import find_trained
from warehouse import store


@dataclass(frozen=True)
class Finetuning:
    """A kind of fine-tuning of one model, on the labels of one source."""

    kind: ModelKind
    parent: ModelReference
    preset: Preset
    source: LabelSource = DEFAULT_SOURCE

    def __post_init__(self) -> None:
        find_kind(self.kind, FINE_TUNED)
        if self.parent.kind.facts.has_head:
            raise ConfigurationError(f"{self.parent.model_id} is a LiPro: fine-tune the model that it was made of")
        if self.parent.kind.facts.is_frozen and not self.kind.facts.has_head:
            raise ConfigurationError(
                f"--kind {self.kind}: trains both encoders, and {self.parent.model_id} is an encoder of another "
                "package, which stays as it is: train a probe on its latents with --kind lipro"
            )

    @property
    def config(self) -> LiProConfig | VocabFineConfig:
        return self.preset.lipro if self.kind is ModelKind.lipro else self.preset.vocabfine

    @property
    def variant(self) -> str:
        return name_variant(self.parent.model_id, self.kind, self.source.name)

    @property
    def fingerprint(self) -> str:
        """The fingerprint of parent and configuration. The samples are no part of it: a model may be stale."""
        labels_of, *findings = self.source.parts
        return compute_fingerprint(
            self.kind, self.parent.weights_sha256, self.config, labels_of, VERSIONS["finetune"], *findings
        )

    def make_job(self, manifest: Manifest, compute: Compute) -> TrainingJob:
        parent = self.parent
        origin = Parent(parent.model_id, parent.folder, parent.weights_sha256, parent.recipe_id)
        return TrainingJob(self.kind, manifest, self.preset, compute, origin, self.source.name, self.source.label_set)


def name_variant(model_id: str, kind: str, labels_of: str) -> str:
    """Variant of the fine-tunings of a model: their kind and, except for the published labels, their source."""
    return f"{model_id}/{kind}{mark_labels(labels_of)}"


def parse_variant(variant: str) -> tuple[str, str, str]:
    """Model, kind and source of labels of a variant that `name_variant` has made."""
    model_id, _, rest = variant.rpartition("/")
    return model_id, *split_mark(rest)


def find_finetuned(
    data_root: Path,
    parent: ModelReference,
    preset: Preset,
    kinds: Sequence[ModelKind],
    source: LabelSource = DEFAULT_SOURCE,
) -> list[str]:
    """The newest model of each kind, of this parent and configuration, on the labels of a source."""
    fingerprints = [Finetuning(kind, parent, preset, source).fingerprint for kind in kinds]
    found = [find_trained(data_root, fingerprint) for fingerprint in fingerprints]
    return [model_id for model_id in found if model_id is not None]


def make_manifest(run: StageRun, finetuning: Finetuning) -> Manifest:
    """Writes the manifest, a row a labelled sample of the train split, with its latent for LiPro.

    With the parent's folder, and with the shards for VocabFine, it is all that a worker needs. Raises
    `MissingInputError` without a sample, and for latents of other weights or volumes than the present ones.
    """
    parent, has_head = finetuning.parent, finetuning.kind.facts.has_head
    require_folder(parent)
    query = store.load_sql(__package__, "labelled_latents" if has_head else "labelled_volumes")
    source = finetuning.source
    parameters = {
        "names": list(source.label_set.names), "labels_of": source.name, "recipe_id": parent.recipe_id,
    }  # fmt: skip
    if has_head:
        parameters["encoder_id"] = parent.encoder_id
    with store.read(run.data_root) as connection:
        table = connection.sql(query, params=parameters).to_arrow_table()
    if has_head:
        _require_current(run.data_root, parent, table)
    if not table.num_rows:
        for items in ("volumes", "reports"):
            require_split(run.data_root, "train", items=items)
        missing, stage = f"a shard (recipe {parent.recipe_id})", "convert"
        if has_head:
            missing, stage = f"a latent of {parent.model_id}", "embed"
        raise MissingInputError(
            f"no volume of the train split has {missing}, a report and labels of {source.name!r}: "
            f"run `ctclip {stage}` and `ctclip label`"
        )
    return write_manifest(run.data_root, table, f"{finetuning.preset.name}-{finetuning.kind}", finetuning.fingerprint)


def _require_current(data_root: Path, parent: ModelReference, table: pa.Table) -> None:
    """Raises `MissingInputError` for latents of former weights: a model trained again keeps its identifier."""
    works = [work.fingerprints for work in plan_works(data_root, parent, Precision)]
    rows = zip(table["volume_name"].to_pylist(), table["latent_fingerprint"].to_pylist(), strict=True)
    count = sum(fingerprint not in {work.get(f"volume:{name}") for work in works} for name, fingerprint in rows)
    if count:
        raise MissingInputError(
            f"{count} latents of {parent.model_id} are not of its present weights and volumes: run `ctclip embed`"
        )
