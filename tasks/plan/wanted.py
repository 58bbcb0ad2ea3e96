"""What a stage would want if it were run now, worked out as the stage itself does. Imports no Prefect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ctclip_model.config import PRESETS
from ctclip_model.device import Precision
from tasks.run.fingerprints import Fingerprint, flatten
from tasks.settings import FINETUNE, LABELLER, PRESET, PUBLISHED_LABELS
from warehouse import store

Wanted = Mapping[str, str]  # {item: fingerprint}


@dataclass(frozen=True)
class Call:
    """How a stage is called, as far as that decides what it wants."""

    preset: str = PRESET
    labeller: str = LABELLER
    model: str | None = None
    recipe: str | None = None
    kind: str = FINETUNE[0]
    labels_of: str = PUBLISHED_LABELS
    seed: int = 0
    validate_every: int = 0


def name_variant(data_root: Path, stage: str, call: Call) -> str:
    """The variant that a call of the stage is of. Raises `MissingInputError` where it lacks a model or a labeller."""
    from tasks.labels.labellers import find_labeller
    from tasks.models.find import find_encoder, find_model
    from tasks.models.recipes import find_recipe

    if stage == "convert":
        return find_recipe(call.preset, call.recipe).recipe_id
    if stage == "label":
        return find_labeller(data_root, call.labeller).labeller_id
    if stage == "train":
        return call.preset
    if stage == "embed":
        return find_encoder(data_root, call.preset, call.model).model_id
    model = find_model(data_root, call.preset, call.model).model_id
    return f"{model}/{call.kind}" if stage == "finetune" else model


def want(data_root: Path, stage: str, variant: str, call: Call) -> Wanted:
    """What the stage would want of a variant now; what it wanted last, where the variant is of a recipe or a model that
    is known no more.

    Raises `MissingInputError` where an earlier stage must run before that can be said.
    """
    if stage == "convert":
        return want_volumes(data_root, variant, call)
    if stage == "label":
        return want_labels(data_root, variant)
    if stage == "train":
        return _want_training(variant, call)
    if not _is_model(data_root, variant.rpartition("/")[0] if stage == "finetune" else variant):
        return _recorded(data_root, stage, variant)
    wanted = {"embed": _want_latents, "evaluate": _want_scores, "report": _want_pages, "finetune": _want_finetuning}
    return wanted[stage](data_root, variant, call)


def want_volumes(data_root: Path, recipe_id: str, call: Call = Call()) -> Wanted:
    """The volumes of a recipe."""
    from tasks.models.recipes import find_recipe
    from tasks.volumes.jobs import read_volumes

    recipes = [find_recipe(call.preset, call.recipe), *(make().recipe for make in PRESETS.values())]
    for recipe in recipes:
        if recipe.recipe_id == recipe_id:
            return {name: one.fingerprint for name, one in read_volumes(data_root, recipe, None).items()}
    return _recorded(data_root, "convert", recipe_id)


def want_labels(data_root: Path, labeller_id: str) -> Wanted:
    """The reports of a labeller, as they were asked for last: in the precision in which most are known already."""
    from tasks.labels.label import read_reports, wanted_labels
    from tasks.labels.labellers import read_trained_on

    texts, trained_on = read_reports(data_root), read_trained_on(data_root, labeller_id)
    return _as_before(
        data_root, "label", labeller_id,
        [wanted_labels(texts, labeller_id, dtype, trained_on) for dtype in Precision],
    )  # fmt: skip


def _want_latents(data_root: Path, model_id: str, call: Call) -> Wanted:
    from tasks.evaluation.embed import plan_work
    from tasks.models.find import find_encoder

    model = find_encoder(data_root, call.preset, model_id)
    works = [plan_work(data_root, model, dtype).fingerprints for dtype in Precision]
    return _as_before(data_root, "embed", model_id, works)


def _want_scores(data_root: Path, model_id: str, call: Call) -> Wanted:
    """The evaluations that a call without options makes, those that were made on request, and the comparisons."""
    from tasks.evaluation.compare import list_comparisons
    from tasks.evaluation.score import list_evaluations
    from tasks.models.find import find_model

    model = find_model(data_root, call.preset, model_id)
    wanted = {key: one.fingerprint for key, one in list_evaluations(data_root, model).items()}
    for key in _recorded(data_root, "evaluate", model_id):
        _, split, _, unit = key.split(" ")[0].split("/")
        if key not in wanted and " " not in key:
            wanted |= {key: one.fingerprint for key, one in list_evaluations(data_root, model, split, unit).items()}
    return wanted | {key: one.fingerprint for key, one in list_comparisons(data_root, model).items()}


def _want_pages(data_root: Path, model_id: str, call: Call) -> Wanted:
    from tasks.models.find import find_model
    from tasks.report.pages import list_pages

    pages = list_pages(data_root, find_model(data_root, call.preset, model_id))
    return {key: page.fingerprint for key, page in pages.items()}


def _want_training(preset: str, call: Call) -> Wanted:
    from tasks.models.presets import find_preset
    from tasks.training.manifest import config_fingerprint

    chosen = find_preset(preset, seed=call.seed, validate_every=call.validate_every)
    fingerprint = config_fingerprint(chosen)
    config = {name: part for name, part in asdict(chosen).items() if name in ("recipe", "model", "training")}
    return {fingerprint: Fingerprint(fingerprint, flatten(config))}


def _want_finetuning(data_root: Path, variant: str, call: Call) -> Wanted:
    from tasks.models.find import find_model
    from tasks.models.presets import find_preset
    from tasks.training.fine_tune import Finetuning

    model_id, _, kind = variant.rpartition("/")
    parent = find_model(data_root, call.preset, model_id)
    finetuning = Finetuning(kind, parent, find_preset(parent.preset, seed=call.seed), call.labels_of)
    fingerprint, config = finetuning.fingerprint, flatten(asdict(finetuning.config))
    others = {"labels_of": call.labels_of, "parent_weights_sha256": parent.weights_sha256}
    return {fingerprint: Fingerprint(fingerprint, config | others)}


def _as_before(data_root: Path, stage: str, variant: str, choices: Sequence[Wanted]) -> Wanted:
    known = set(_recorded(data_root, stage, variant).values())
    return max(choices, key=lambda wanted: len(known & set(wanted.values())))


def _recorded(data_root: Path, stage: str, variant: str) -> Wanted:
    with store.read(data_root) as connection:
        rows = connection.execute(
            "select item, fingerprint from current_wanted where stage = ? and variant = ?", [stage, variant]
        ).fetchall()
    return dict(rows)


def _is_model(data_root: Path, model_id: str) -> bool:
    with store.read(data_root) as connection:
        query = "select 1 from current_models where model_id = ? and kind <> 'labeller'"
        return connection.execute(query, [model_id]).fetchone() is not None
