"""Kinds of models, each declared once: `ModelKind` names it, `KINDS` says how it is loaded, scored and published.

Records, model folders, commands and orders spell a kind as `ModelKind` does. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from ctclip_model.errors import ConfigurationError

# Older model folders spell kinds like this in their config.json.
OLD_SPELLINGS = {"ctclip": "ct-clip"}


class ModelKind(StrEnum):
    """Kind of a model: the column `kind` of `models`, and `kind` of a model folder's config.json."""

    ct_clip = "ct-clip"
    lipro = "lipro"
    vocabfine = "vocabfine"
    external = "external"
    labeller = "labeller"

    @classmethod
    def _missing_(cls, value: object) -> ModelKind | None:
        return cls(OLD_SPELLINGS[value]) if isinstance(value, str) and value in OLD_SPELLINGS else None

    @property
    def facts(self) -> KindFacts:
        return KINDS[self]


@dataclass(frozen=True)
class KindFacts:
    """Loading, scoring and origin of a kind of model."""

    title: str  # heading of the model card
    model_type: str  # name of the class that holds the weights
    published_path: str | None = None  # path of the published weights in CT-RATE's repository
    published_name: str | None = None  # argument of `ctclip fetch-models`
    protocol: str | None = None  # protocol of its evaluation; None: the model embeds no volumes
    is_fine_tuned: bool = False  # made of a trained CT-CLIP, its parent
    has_head: bool = False  # a linear head on its parent's latents: no text side, no latents of its own
    is_frozen: bool = False  # an encoder of another package, which is never trained here and may have no text side

    @property
    def embeds_volumes(self) -> bool:
        return self.protocol is not None


# A rebuild fine-tunes in this order.
KINDS = {
    ModelKind.ct_clip: KindFacts(
        title="CT-CLIP",
        model_type="CTCLIP",
        published_path="models/CT-CLIP-Related/CT-CLIP_v2.pt",
        published_name="ct-clip",
        protocol="zero-shot",
    ),
    ModelKind.lipro: KindFacts(
        title="CT-CLIP with a LiPro head",
        model_type="LiPro",
        published_path="models/CT-CLIP-Related/CT_LiPro_v2.pt",
        published_name="lipro",
        protocol="lipro",
        is_fine_tuned=True,
        has_head=True,
    ),
    ModelKind.vocabfine: KindFacts(
        title="CT-CLIP, fine-tuned as VocabFine",
        model_type="CTCLIP",
        published_path="models/CT-CLIP-Related/CT_VocabFine_v2.pt",
        published_name="vocabfine",
        protocol="vocabfine",
        is_fine_tuned=True,
    ),
    ModelKind.external: KindFacts(
        title="An encoder of another package", model_type="ExternalModel", protocol="zero-shot", is_frozen=True
    ),
    ModelKind.labeller: KindFacts(
        title="A report labeller",
        model_type="ReportLabeller",
        published_path="models/RadBertClassifier.pth",
        published_name="radbert",
    ),
}
ENCODERS = tuple(kind for kind, facts in KINDS.items() if facts.embeds_volumes)
FINE_TUNED = tuple(kind for kind, facts in KINDS.items() if facts.is_fine_tuned)
WITH_HEAD = tuple(kind for kind, facts in KINDS.items() if facts.has_head)
PUBLISHED = {facts.published_name: kind for kind, facts in KINDS.items() if facts.published_name is not None}


def find_kind(name: str, choices: Collection[ModelKind] = tuple(ModelKind)) -> ModelKind:
    """The kind of a name, old spellings included. Raises `ConfigurationError` for a name that is no choice."""
    spelled = OLD_SPELLINGS.get(name, name)
    if spelled not in choices:
        raise ConfigurationError(f"there is no kind {name!r}: choose one of {', '.join(choices)}")
    return ModelKind(spelled)


def kinds_of_type(model_type: type) -> tuple[ModelKind, ...]:
    """The kinds whose weights a class holds."""
    return tuple(kind for kind, facts in KINDS.items() if facts.model_type == model_type.__name__)


def read_kind(description: Mapping[str, Any]) -> ModelKind:
    """The kind that a model folder's config.json names. Raises `ValueError` or `KeyError` for an unknown one.

    Older folders name the class of the weights, and a fine-tuned kind below `info`.
    """
    return ModelKind(description.get("info", {}).get("kind", description["kind"]))
