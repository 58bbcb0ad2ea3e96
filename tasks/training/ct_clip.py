"""The samples of a CT-CLIP training: volumes of the train split, their reports and labels."""

from __future__ import annotations

from pathlib import Path

from ctclip_model.config import Preset
from ctclip_model.data.abnormalities import ABNORMALITIES
from ctclip_model.errors import MissingInputError
from ctclip_model.training.job import Manifest
from tasks.labels.labellers import find_labeller
from tasks.run.splits import require_split
from tasks.run.stage_run import StageRun
from tasks.settings import PUBLISHED_LABELS
from tasks.training.manifest import config_fingerprint, write_manifest
from warehouse import store


def choose_labels(data_root: Path, preset: Preset, labeller: str) -> str | None:
    """The labeller whose labels a training reads: the given one, the published labels, or none.

    Text pretraining learns the given labeller's labels. Validation alone reads the published ones.
    """
    if preset.training.text_pretraining_samples > 0:
        return find_labeller(data_root, labeller).labeller_id
    return PUBLISHED_LABELS if preset.training.steps_per_validation else None


def make_manifest(run: StageRun, preset: Preset, labeller_id: str | None) -> Manifest:
    """Writes the manifest, a row a training sample. With the shards it is all that a GPU worker needs.

    With a labeller, each row has that labeller's labels. Raises `MissingInputError` if no volume is converted for the
    preset's recipe, or if the labeller has labelled no report.
    """
    recipe_id = preset.recipe.recipe_id
    parameters = {"names": list(ABNORMALITIES), "labeller_id": labeller_id, "recipe_id": recipe_id}
    with store.read(run.data_root) as connection:
        table = connection.sql(store.load_sql(__package__, "samples"), params=parameters).to_arrow_table()
    if not table.num_rows:
        require_split(run.data_root, "train", items="reports")
        raise MissingInputError(
            f"no converted volume of the train split has a report (recipe {recipe_id}): run `ctclip convert`"
        )
    if labeller_id is not None and table["labels"].null_count == table.num_rows:
        raise MissingInputError(f"{labeller_id} has labelled no report of the train split: run `ctclip label`")
    return write_manifest(run.data_root, table, preset.name, config_fingerprint(preset))
