"""Which model, and where its folder is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ctclip_model.config import PRESETS
from ctclip_model.errors import ConfigurationError, MissingInputError
from tasks.publish import publish
from warehouse import store


@dataclass(frozen=True)
class ModelReference:
    """A row of `models`, as far as a stage needs it."""

    model_id: str
    preset: str
    folder: Path
    recipe_id: str
    logit_scale: float
    fingerprint: str  # of the configuration it was trained with
    weights_sha256: str

    @property
    def cpu_threads(self) -> int | None:
        """Of PyTorch, as the model's preset has it."""
        return PRESETS[self.preset]().cpu_threads if self.preset in PRESETS else None


def find_model(data_root: Path, preset: str, model_id: str | None) -> ModelReference:
    """The CT-CLIP model of that identifier, or the preset's newest.

    Raises `MissingInputError` if there is none yet, `ConfigurationError` if the identifier is unknown.
    """
    publish(data_root.resolve())  # a GPU worker, or a run that was killed, may have left a model's record
    with store.read(data_root) as connection:
        row = connection.execute(
            "select model_id, preset, path, recipe_id, logit_scale, fingerprint, weights_sha256 from current_models "
            "where kind = 'ct-clip' and case when $id is null then preset = $preset else model_id = $id end "
            "order by run_id desc limit 1",
            {"id": model_id, "preset": preset},
        ).fetchone()
    if row is None and model_id is not None:
        raise ConfigurationError(f'there is no model {model_id!r}; see: ctclip sql "select * from current_models"')
    if row is None:
        raise MissingInputError(f"there is no model of preset {preset!r} yet: run `ctclip train --preset {preset}`")
    return ModelReference(row[0], row[1], data_root.resolve() / row[2], *row[3:])
