"""Evaluations that a model can have: data set, split, protocol and unit, each with a fingerprint of its inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctclip_model.config import VERSIONS, EvaluationConfig, compute_fingerprint
from ctclip_model.data.abnormalities import ScoredNames, scored_names
from ctclip_model.data.label_sets import BUILT_IN, LabelSet
from ctclip_model.data.names import EXTERNAL
from ctclip_model.errors import MissingInputError
from ctclip_model.evaluation.protocols import NAMED_PROTOCOLS, NAMED_SPLIT, ON_REQUEST, PUBLISHED, check_protocols
from tasks.evaluation.embed import prompt_keys
from tasks.labels.label_sources import DEFAULT_SOURCE, LabelSource, find_label_source
from tasks.models.find import ModelReference
from tasks.run.fingerprints import VERSION, Fingerprint
from tasks.run.splits import require_split
from warehouse import store

LABEL_SOURCE = "published"
THRESHOLD_SPLIT = "train"
HELD_OUT = ("valid", EXTERNAL)
CONFIG = EvaluationConfig()


@dataclass(frozen=True)
class Evaluation:
    """One split of a data set, scored by one protocol against the labels of one source."""

    dataset: str
    split: str
    fingerprint: str
    protocol: str
    unit: str  # scan (mean over its reconstructions) or volume
    source: LabelSource = DEFAULT_SOURCE

    @property
    def key(self) -> str:
        return f"{self.dataset}/{self.split}/{self.protocol}/{self.unit}{self.source.mark}"

    @property
    def is_own(self) -> bool:
        """Is it scored by the model's own protocol?"""
        return self.protocol not in NAMED_PROTOCOLS

    @property
    def is_retrieval(self) -> bool:
        """Is only retrieval scored?"""
        return not self.is_own and NAMED_PROTOCOLS[self.protocol].is_retrieval

    @property
    def columns(self) -> dict[str, str]:
        """Columns that every row of the evaluation has."""
        return {
            "dataset": self.dataset, "split": self.split, "protocol": self.protocol, "unit": self.unit,
            "fingerprint": self.fingerprint, "label_set": self.source.label_set.name,
        }  # fmt: skip


@dataclass(frozen=True)
class SplitInputs:
    """Hashes of the latents and labels of one split: without the excluded volumes (kept), and with them (all)."""

    dataset: str
    split: str
    kept: str
    all: str
    kept_parts: dict[str, str]
    all_parts: dict[str, str]


def list_evaluations(
    data_root: Path,
    model: ModelReference,
    split: str | None = None,
    unit: str = "scan",
    source: LabelSource = DEFAULT_SOURCE,
    protocols: Sequence[str] = (),
) -> dict[str, Evaluation]:
    """Lists the evaluations that a model can have now, by key.

    Each data set with latents of the split has two: by the model's own protocol in the given unit, and by the published
    protocol. Other named `protocols` are added on the split that they choose from. `source` has the labels. The default
    is every held-out split. An encoder of another package without a text side has none: a LiPro of it is scored. Raises
    `MissingInputError` if the model has no such latents, and as `choose_protocols`.
    """
    key = {"model_id": model.encoder_id}
    labelled = key | {"label_source": source.name}
    inputs = [SplitInputs(*row) for row in store.query(data_root, store.load_sql(__package__, "inputs"), labelled)]
    splits = HELD_OUT if split is None else (split,)
    scored = [row for row in inputs if row.split in splits]
    if not scored:
        require_split(data_root, *splits)
        wanted = " or ".join(map(repr, splits))
        raise MissingInputError(f"{model.encoder_id} has no latents of split {wanted} yet: run `ctclip embed`")
    if not (model.reads_texts or model.kind.facts.has_head):
        return {}
    prompts = [prompt for pair in prompt_keys(source.label_set) for prompt in pair]
    texts = store.query(data_root, store.load_sql(__package__, "texts"), key | {"prompts": prompts})
    train = [(row.dataset, row.kept) for row in inputs if row.split == THRESHOLD_SPLIT]
    protocol = model.kind.facts.protocol
    assert protocol is not None, "a model that embeds volumes has a protocol"
    evaluations = []
    for row in scored:
        own_parts = row.kept_parts | {"train split": train}
        own = _fingerprint(model, source, texts, protocol, unit, [row.kept, train], own_parts)
        published = _fingerprint(model, source, texts, PUBLISHED, "volume", row.all, row.all_parts)
        evaluations.append(Evaluation(row.dataset, row.split, own, protocol, unit, source))
        evaluations.append(Evaluation(row.dataset, row.split, published, PUBLISHED, "volume", source))
    named = [name for name in choose_protocols(model, source, protocols) if name != PUBLISHED]
    if named:
        sql = store.load_sql(__package__, "protocol_inputs")
        for dataset, name, content, parts in store.query(data_root, sql, labelled | {"protocols": named}):
            unit_of_item = NAMED_PROTOCOLS[name].unit
            fingerprint = _fingerprint(
                model, source, texts, name, unit_of_item, [content, train], parts | {"train split": train}
            )
            evaluations.append(Evaluation(dataset, NAMED_SPLIT, fingerprint, name, unit_of_item, source))
    return {evaluation.key: evaluation for evaluation in evaluations}


def choose_names(dataset: str, label_set: LabelSet) -> ScoredNames:
    """Names that are scored: those of the data set for the built-in findings, or the set's own."""
    if label_set.is_built_in:
        return scored_names(dataset)
    return ScoredNames(label_set.names, tuple((index,) for index in range(len(label_set))))


def list_asked_protocols(data_root: Path, model: ModelReference) -> list[str]:
    """Named protocols that an earlier run asked for, by the published labels."""
    sql = store.load_sql(__package__, "asked_protocols")
    return [name for (name,) in store.query(data_root, sql, {"model_id": model.model_id, "known": ON_REQUEST})]


def choose_protocols(model: ModelReference, source: LabelSource, protocols: Sequence[str]) -> list[str]:
    """The given protocols that a model can be scored by: without reports or by other labels, no retrieval of reports.

    Raises as `check_protocols`.
    """
    check_protocols(protocols)
    reads_reports = source.is_default and model.reads_texts
    return sorted(name for name in {*protocols} if reads_reports or not NAMED_PROTOCOLS[name].is_retrieval)


def choose_source(data_root: Path, model: ModelReference, name: str) -> LabelSource:
    """Source of labels by its name. A LiPro of other findings than the 18 has the labels that it learned by default.

    Raises `MissingInputError` for an unknown name.
    """
    if name == LABEL_SOURCE and model.kind.facts.has_head:
        sql = "select config ->> '$.labels_of' from current_models where model_id = ? and config ->> '$.label_set' <> ?"
        for (learned,) in store.query(data_root, sql, [model.model_id, BUILT_IN]):
            name = learned
    return find_label_source(data_root, name)


def _fingerprint(
    model: ModelReference,
    source: LabelSource,
    texts: Sequence[Any],
    protocol: str,
    unit: str,
    content: Any,
    parts: Mapping[str, Any],
) -> Fingerprint:
    """Hashes everything that an evaluation depends on. `content` stands for its latents and labels."""
    head = [model.weights_sha256] if model.kind.facts.has_head else []  # the latents may be another model's
    label_set = source.label_set
    settings = (CONFIG, source.name, label_set.names, *(() if label_set.is_built_in else (label_set.fingerprint,)))
    common_parts = {
        "reports and prompts": texts, "head": head, "settings": compute_fingerprint(*settings),
        VERSION: VERSIONS["evaluate"],
    }  # fmt: skip
    return Fingerprint(
        compute_fingerprint(VERSIONS["evaluate"], *settings, texts, *head, protocol, unit, content),
        {**parts, **common_parts},
    )
