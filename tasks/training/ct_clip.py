"""The samples of a CT-CLIP training: volumes of the train split, their reports and labels."""

from __future__ import annotations

from pathlib import Path

from ctclip_model.config import Preset
from ctclip_model.data.abnormalities import ABNORMALITIES
from ctclip_model.errors import ConfigurationError, MissingInputError
from ctclip_model.training.job import Manifest
from tasks.labels.label_sources import BY, LabelSource, find_label_source
from tasks.labels.labellers import find_labeller
from tasks.run.splits import require_split
from tasks.run.stage_run import StageRun
from tasks.settings import PUBLISHED_LABELS
from tasks.training.manifest import config_fingerprint, write_manifest
from warehouse import store


def name_variant(preset: str, labels_of: str | None) -> str:
    """Variant of a training: its preset and, if it names labels, their source."""
    return preset if labels_of is None else f"{preset}{BY}{labels_of}"


def parse_variant(variant: str) -> tuple[str, str | None]:
    """Preset and source of labels of a variant that `name_variant` has made."""
    preset, _, labels_of = variant.partition(BY)
    return preset, labels_of or None


def find_named_labels(data_root: Path, preset: Preset, name: str | None) -> LabelSource | None:
    """The source of labels that a training names. None: it names none, and learns the labels of its labeller.

    Raises `MissingInputError` for an unknown name, and `ConfigurationError` if the training reads no labels at all.
    """
    if name is None:
        return None
    if not preset.training.reads_labels:
        raise ConfigurationError(
            f"--labels {name}: a training by preset {preset.name} learns from reports alone. Fine-tune on labels, or "
            "validate by them with --validate-every"
        )
    return find_label_source(data_root, name)


def choose_labels(data_root: Path, preset: Preset, labeller: str) -> str | None:
    """The labeller whose labels a training reads that names none: the given one, the published labels, or none.

    Pretraining and the prompt loss learn the given labeller's labels. Validation alone reads the published ones.
    """
    if preset.training.learns_labels:
        return find_labeller(data_root, labeller).labeller_id
    return PUBLISHED_LABELS if preset.training.reads_labels else None


def make_manifest(run: StageRun, preset: Preset, labels_of: str | None, source: LabelSource | None = None) -> Manifest:
    """Writes the manifest, a row a training sample. With the shards it is all that a GPU worker needs.

    Each row has the labels `labels_of`, if any. `source` is theirs where the training names them. Raises
    `MissingInputError` if no volume is converted for the preset's recipe, or if no sample has such labels.
    """
    recipe_id = preset.recipe.recipe_id
    parameters = {
        "names": list(ABNORMALITIES if source is None else source.label_set.names), "labeller_id": labels_of,
        "names_labels": source is not None, "recipe_id": recipe_id,
    }  # fmt: skip
    with store.read(run.data_root) as connection:
        table = connection.sql(store.load_sql(__package__, "samples"), params=parameters).to_arrow_table()
    if not table.num_rows:
        require_split(run.data_root, "train", items="reports")
        raise MissingInputError(
            f"no converted volume of the train split has a report (recipe {recipe_id}): run `ctclip convert`"
        )
    if labels_of is not None and table["labels"].null_count == table.num_rows:
        remedy = "run `ctclip label`" if source is None else "choose others with --labels"
        raise MissingInputError(f"{labels_of} has labelled no report of the train split: {remedy}")
    return write_manifest(run.data_root, table, preset.name, config_fingerprint(preset, source))
