"""Items that a stage should have made by now, computed as the stage itself does. Imports no Prefect."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ctclip_model.config import PRESETS
from ctclip_model.data.reports import SECTIONS
from ctclip_model.device import Precision
from ctclip_model.models.kinds import ENCODERS, FINE_TUNED, find_kind
from tasks.run.fingerprints import Fingerprint, flatten
from tasks.settings import FINETUNE, LABELLER, PRESET, PUBLISHED_LABELS
from warehouse import store

if TYPE_CHECKING:
    from tasks.labels.label_sources import LabelSource

Wanted = Mapping[str, str]  # {item: fingerprint}


@dataclass(frozen=True)
class StageOptions:
    """Options of a stage's call that decide its items."""

    preset: str = PRESET
    labeller: str = LABELLER
    findings: str | None = None
    model: str | None = None
    recipe: str | None = None
    kind: str = FINETUNE[0]
    labels_of: str | None = None
    seed: int = 0
    validate_every: int = 0
    report_sections: Sequence[str] = SECTIONS

    @property
    def findings_file(self) -> Path | None:
        return None if self.findings is None else Path(self.findings)


def name_variant(data_root: Path, stage: str, options: StageOptions) -> str:
    """Variant (recipe, labeller, preset or model) of a stage's call.

    Raises `MissingInputError` if the variant needs a model or a labeller that does not exist yet.
    """
    from tasks.labels.labellers import find_labeller
    from tasks.models.find import find_encoder, find_model
    from tasks.models.recipes import find_recipe
    from tasks.training.ct_clip import name_variant as name_training
    from tasks.training.fine_tune import name_variant as name_finetuning

    if stage == "convert":
        return find_recipe(options.preset, options.recipe).recipe_id
    if stage == "label":
        return find_labeller(data_root, options.labeller, options.findings_file).labeller_id
    if stage == "train":
        return name_training(options.preset, options.labels_of)
    if stage == "embed":
        return find_encoder(data_root, options.preset, options.model).model_id
    model = find_model(data_root, options.preset, options.model).model_id
    return name_finetuning(model, options.kind, options.labels_of or PUBLISHED_LABELS) if stage == "finetune" else model


def find_wanted(data_root: Path, stage: str, variant: str, options: StageOptions) -> Wanted:
    """Items that a rerun of the stage would declare for a variant.

    A recipe or a model that no longer exists keeps the items that its last run declared.
    Raises `MissingInputError` if an earlier stage must run first.
    """
    if stage == "convert":
        return find_wanted_volumes(data_root, variant, options)
    if stage == "label":
        return find_wanted_labels(data_root, variant)
    if stage == "train":
        return _find_training(data_root, variant, options)
    if not _is_model(data_root, variant.rpartition("/")[0] if stage == "finetune" else variant):
        return _read_declared(data_root, stage, variant)
    finders = {
        "embed": _find_latents, "evaluate": _find_scores, "report": _find_pages, "finetune": _find_finetuning,
    }  # fmt: skip
    return finders[stage](data_root, variant, options)


def find_wanted_volumes(data_root: Path, recipe_id: str, options: StageOptions = StageOptions()) -> Wanted:
    """Volumes that a recipe should have in its shards."""
    from tasks.models.recipes import find_recipe
    from tasks.volumes.jobs import fingerprint_volumes, read_rows

    recipes = [find_recipe(options.preset, options.recipe), *(make().recipe for make in PRESETS.values())]
    for recipe in recipes:
        if recipe.recipe_id == recipe_id:
            return fingerprint_volumes(read_rows(data_root), recipe)
    return _read_declared(data_root, "convert", recipe_id)


def find_wanted_labels(data_root: Path, labeller_id: str) -> Wanted:
    """Reports that a labeller should have read, in the precision of its last run."""
    from tasks.labels.label import read_reports, wanted_labels
    from tasks.labels.labellers import read_trained_on, reading_version

    texts, trained_on = read_reports(data_root), read_trained_on(data_root, labeller_id)
    version = reading_version(data_root, labeller_id)
    by_precision = (wanted_labels(texts, labeller_id, dtype, trained_on, version) for dtype in Precision)
    return _choose_declared(data_root, "label", labeller_id, by_precision)


def _find_latents(data_root: Path, model_id: str, options: StageOptions) -> Wanted:
    from tasks.evaluation.embed import plan_works
    from tasks.models.find import find_encoder, require_folder

    model = find_encoder(data_root, options.preset, model_id)
    require_folder(model)
    by_precision = (work.fingerprints for work in plan_works(data_root, model, Precision))
    return _choose_declared(data_root, "embed", model_id, by_precision)


def _find_scores(data_root: Path, model_id: str, options: StageOptions) -> Wanted:
    """Default evaluations, those that an earlier run asked for by its options, and comparisons."""
    from ctclip_model.evaluation.protocols import NAMED_PROTOCOLS
    from tasks.evaluation.comparisons import list_comparisons
    from tasks.evaluation.evaluations import choose_source, list_evaluations
    from tasks.labels.label_sources import find_label_source, split_mark
    from tasks.models.find import find_model

    model = find_model(data_root, options.preset, model_id)
    scores = list_evaluations(data_root, model, source=choose_source(data_root, model, PUBLISHED_LABELS))
    for key in _read_declared(data_root, "evaluate", model_id):
        is_comparison = " against " in key
        if not is_comparison and key not in scores:
            scored, labels_of = split_mark(key)
            _, split, protocol, unit = scored.split("/")
            source = find_label_source(data_root, labels_of)
            named = [protocol] if protocol in NAMED_PROTOCOLS else []
            found = list_evaluations(data_root, model, split, unit, source, named)
            scores |= {other: one for other, one in found.items() if other == key}
    wanted = {key: evaluation.fingerprint for key, evaluation in scores.items()}
    comparisons = list_comparisons(data_root, model)
    return wanted | {key: comparison.fingerprint for key, comparison in comparisons.items()}


def _find_pages(data_root: Path, model_id: str, options: StageOptions) -> Wanted:
    """Default pages, and those by other labels that an earlier run asked for."""
    from tasks.evaluation.evaluations import choose_source
    from tasks.labels.label_sources import find_label_source, split_mark
    from tasks.models.find import find_model
    from tasks.report.pages import list_pages

    model = find_model(data_root, options.preset, model_id)
    asked = {split_mark(key)[1] for key in _read_declared(data_root, "report", model_id)}
    sources = [choose_source(data_root, model, PUBLISHED_LABELS)]
    sources += [find_label_source(data_root, name) for name in sorted(asked - {sources[0].name})]
    pages = {key: page for source in sources for key, page in list_pages(data_root, model, None, source).items()}
    return {key: page.fingerprint for key, page in pages.items()}


def _find_training(data_root: Path, variant: str, options: StageOptions) -> Wanted:
    from tasks.models.presets import find_preset
    from tasks.training.ct_clip import find_named_labels, parse_variant
    from tasks.training.manifest import config_fingerprint

    preset, labels_of = parse_variant(variant)
    chosen = find_preset(
        preset, seed=options.seed, validate_every=options.validate_every, report_sections=options.report_sections
    )
    source = find_named_labels(data_root, chosen, labels_of)
    fingerprint = config_fingerprint(chosen, source)
    config = {name: part for name, part in asdict(chosen).items() if name in ("recipe", "model", "training")}
    inputs = {} if source is None else _describe_labels(source)
    return {fingerprint: Fingerprint(fingerprint, flatten(config) | inputs)}


def _find_finetuning(data_root: Path, variant: str, options: StageOptions) -> Wanted:
    from tasks.labels.label_sources import find_label_source
    from tasks.models.find import find_model
    from tasks.models.presets import find_preset_of
    from tasks.training.fine_tune import Finetuning, parse_variant

    model_id, kind, labels_of = parse_variant(variant)
    parent = find_model(data_root, options.preset, model_id)
    preset = find_preset_of(parent, seed=options.seed)
    source = find_label_source(data_root, labels_of)
    finetuning = Finetuning(find_kind(kind, FINE_TUNED), parent, preset, source)
    fingerprint, config = finetuning.fingerprint, flatten(asdict(finetuning.config))
    inputs = _describe_labels(source) | {"parent_weights_sha256": parent.weights_sha256}
    return {fingerprint: Fingerprint(fingerprint, config | inputs)}


def _describe_labels(source: LabelSource) -> dict[str, str]:
    """The labels among the parts of a training's fingerprint."""
    return dict(zip(("labels_of", "label_set"), source.parts, strict=False))


def _choose_declared(data_root: Path, stage: str, variant: str, choices: Iterable[Wanted]) -> Wanted:
    """Choice that shares most fingerprints with the last run's items. No more are made after one that shares all."""
    sql = "select fingerprint from current_wanted where stage = ? and variant = ?"
    declared = {fingerprint for (fingerprint,) in store.query(data_root, sql, [stage, variant])}
    counts: list[tuple[int, Wanted]] = []
    for wanted in choices:
        counts.append((len(declared.intersection(wanted.values())), wanted))
        if counts[-1][0] == len(declared):
            break
    return max(counts, key=lambda one: one[0])[1]


def _read_declared(data_root: Path, stage: str, variant: str) -> Wanted:
    """Items that the last run of a variant declared."""
    sql = "select item, fingerprint from current_wanted where stage = ? and variant = ?"
    return dict(store.query(data_root, sql, [stage, variant]))


def _is_model(data_root: Path, model_id: str) -> bool:
    sql = "select 1 from current_models where model_id = ? and kind in (select unnest(?))"
    return bool(store.query(data_root, sql, [model_id, list(ENCODERS)]))
