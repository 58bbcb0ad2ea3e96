"""Models of a data root, found by identifier or by preset."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ctclip_model.config import PRESETS, Recipe
from ctclip_model.errors import ConfigurationError, MissingInputError
from ctclip_model.models.kinds import ENCODERS, WITH_HEAD, ModelKind
from tasks.run.lost import is_there
from warehouse import store


@dataclass(frozen=True)
class ModelReference:
    """The columns of a row of `models` that a stage needs."""

    model_id: str
    kind: ModelKind
    preset: str
    folder: Path
    recipe_id: str
    logit_scale: float | None  # None: an encoder of another package without a text side
    fingerprint: str  # fingerprint of the training configuration
    weights_sha256: str
    encoder_id: str  # model whose latents this one reads: a LiPro's parent, any other model itself

    @property
    def recipe(self) -> Recipe:
        """The recipe that its volumes need, as its folder keeps it."""
        from ctclip_model.models.find_model import read_recipe

        return read_recipe(self.folder)

    @property
    def reads_texts(self) -> bool:
        """Has the model a text side, for zero-shot scores and the retrieval of reports?"""
        facts = self.kind.facts
        return not facts.has_head and (not facts.is_frozen or self.logit_scale is not None)

    @property
    def cpu_threads(self) -> int | None:
        """PyTorch's threads on a CPU by the model's preset. None: PyTorch's own default."""
        return PRESETS[self.preset]().cpu_threads if self.preset in PRESETS else None


def find_model(data_root: Path, preset: str, model_id: str | None) -> ModelReference:
    """Finds a CT-CLIP, VocabFine or LiPro by its identifier, or else the newest CT-CLIP of a preset.

    A CT-CLIP that was trained in this data root goes before an imported one. Reads the published warehouse alone: a
    stage publishes what others left before it asks. Raises `MissingInputError` if the preset has no model yet and
    `ConfigurationError` if the identifier is unknown.
    """
    parameters = {"id": model_id, "preset": preset, "encoders": list(ENCODERS), "with_head": list(WITH_HEAD)}
    rows = store.query(data_root, store.load_sql(__package__, "find"), parameters)
    if not rows and model_id is not None:
        raise ConfigurationError(f'there is no model {model_id!r}; see: ctclip sql "select * from current_models"')
    if not rows:
        raise MissingInputError(
            f"there is no model of preset {preset!r} yet: run `ctclip train --preset {preset}`, or choose a model with "
            "--model"
        )
    found, kind, found_preset, path, *rest = rows[0]
    return ModelReference(found, ModelKind(kind), found_preset, data_root.resolve() / path, *rest)


def require_folder(model: ModelReference) -> None:
    """Raises `MissingInputError` if the model's folder is lost."""
    if not is_there(model.folder):
        raise MissingInputError(
            f"{model.model_id} is lost: {model.folder} lacks files. `ctclip verify` names the remedy"
        )


def find_encoder(data_root: Path, preset: str, model_id: str | None) -> ModelReference:
    """Finds the model whose latents a model reads: a LiPro's parent, any other model itself. Raises as `find_model`."""
    model = find_model(data_root, preset, model_id)
    return model if model.encoder_id == model.model_id else find_model(data_root, preset, model.encoder_id)
