"""Which model, and where its folder is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ctclip_model.config import PRESETS, Recipe
from ctclip_model.errors import ConfigurationError, MissingInputError
from tasks.run.publish import publish
from warehouse import store


@dataclass(frozen=True)
class ModelReference:
    """A row of `models`, as far as a stage needs it."""

    model_id: str
    kind: str  # ct-clip, vocabfine or lipro
    preset: str
    folder: Path
    recipe_id: str
    logit_scale: float
    fingerprint: str  # of the configuration it was trained with
    weights_sha256: str
    latents_of: str  # the model whose latents it reads: its own, but for a LiPro, which has its parent's trunk

    @property
    def recipe(self) -> Recipe:
        """What its volumes must go through, as its folder keeps it."""
        from ctclip_model.models.open_model import open_recipe

        return open_recipe(self.folder)

    @property
    def cpu_threads(self) -> int | None:
        """Of PyTorch, as the model's preset has it."""
        return PRESETS[self.preset]().cpu_threads if self.preset in PRESETS else None


def find_model(data_root: Path, preset: str, model_id: str | None) -> ModelReference:
    """The model of that identifier, CT-CLIP or fine-tuned of it, or the preset's newest CT-CLIP.

    That is one that was trained here, if there is any, and else an imported one.
    Raises `MissingInputError` if there is none yet, `ConfigurationError` if the identifier is unknown.
    """
    publish(data_root.resolve())  # a GPU worker, or a run that was killed, may have left a model's record
    with store.read(data_root) as connection:
        row = connection.execute(_MODEL, {"id": model_id, "preset": preset}).fetchone()
    if row is None and model_id is not None:
        raise ConfigurationError(f'there is no model {model_id!r}; see: ctclip sql "select * from current_models"')
    if row is None:
        raise MissingInputError(
            f"there is no model of preset {preset!r} yet: run `ctclip train --preset {preset}`, or choose another by "
            "--model"
        )
    found, kind, found_preset, path, *rest = row
    return ModelReference(found, kind, found_preset, data_root.resolve() / path, *rest)


def find_encoder(data_root: Path, preset: str, model_id: str | None) -> ModelReference:
    """The model whose latents are those of the model that `find_model` finds: another one for a LiPro."""
    model = find_model(data_root, preset, model_id)
    return model if model.latents_of == model.model_id else find_model(data_root, preset, model.latents_of)


# A LiPro without a parent in the warehouse (imported), or whose parent was trained again, is read by its own trunk.
_MODEL = """
select
    models.model_id, models.kind, models.preset, models.path, models.recipe_id, models.logit_scale, models.fingerprint,
    models.weights_sha256, if(models.kind = 'lipro', coalesce(parents.model_id, models.model_id), models.model_id)
from current_models as models
left join current_models as parents
    on parents.model_id = models.parent_model_id
    and parents.weights_sha256 = models.config ->> '$.parent_weights_sha256'
where
    case
        when $id is null then models.kind = 'ct-clip' and models.preset = $preset
        else models.kind in ('ct-clip', 'vocabfine', 'lipro') and models.model_id = $id
    end
order by models.source_sha256 is not null, models.run_id desc
limit 1
"""
