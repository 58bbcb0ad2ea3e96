"""Imports models: a weights file or a model folder becomes a folder below `models/` and a row of `models`."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ctclip_model.config import DECISIONS_FILE, RADBERT_BASE, Recipe
from ctclip_model.errors import ConfigurationError
from ctclip_model.evaluation.decisions import Decisions, read_decisions, write_decisions
from ctclip_model.files import sha256_of
from ctclip_model.models.import_weights import (
    Candidate,
    open_candidate,
    open_encoder,
    read_tokenizer_for,
    write_candidate,
)
from ctclip_model.models.kinds import OLD_SPELLINGS, PUBLISHED, ModelKind
from ctclip_model.models.report_labeller import VOCABULARY_FILES
from ctclip_model.models.text import PUBLISHED_TEXT_ENCODER, TOKENIZER_FILES
from ctclip_model.models.weights_files import hash_weights
from tasks.hub.models import (
    ModelAddress,
    Origin,
    fetch_model,
    fetch_tokenizer,
    hub_folder,
    parse_model_address,
)
from tasks.labels.labellers import TRAINED_PREFIX
from tasks.models.presets import find_preset
from tasks.models.recipes import check_recipe
from tasks.models.record import ModelRow, record_model
from tasks.run.lost import is_there
from tasks.run.stage_run import StageRun, open_run
from tasks.settings import CT_RATE
from warehouse import store

STAGE = "import-model"
ENCODER_SCHEME = "encoder:"  # source of an encoder of another package, before its name


@dataclass(frozen=True)
class ImportOptions:
    """Options of an import. None: read from the file, or searched for."""

    kind: ModelKind | None = None
    tokenizer: Path | None = None  # file or folder of the tokenizer
    preset: str | None = None  # describes weights of other widths than the published ones
    force: bool = False  # write the model folder again although it is there
    keep_raw: bool = False  # keep the downloaded file beside the model folder


@dataclass(frozen=True)
class ImportedModel:
    """An imported model of the warehouse."""

    model_id: str
    kind: ModelKind
    source: str
    revision: str
    source_sha256: str
    is_new: bool  # False: the model was there before the call
    recipe: Recipe | None = None  # known of an encoder of another package


def import_model(data_root: Path, address: str, options: ImportOptions = ImportOptions()) -> ImportedModel:
    """Imports a path or an address on the Hub, `hf://[datasets/]OWNER/NAME[@REVISION]/PATH`.

    A model that is there already stays as it is. The Hub is asked for nothing then, unless the address names a
    revision. Raises `CTCLIPError`.
    """
    data_root = data_root.resolve()
    with open_run(data_root, STAGE, parameters={"address": address}) as run:
        on_hub = parse_model_address(address)
        if on_hub is None:
            path = Path(address).resolve()
            return _find_folder(data_root, path) or _import(run, Origin(path, f"file://{path}"), options)
        found = None if options.force else _find_fetched(data_root, on_hub, options)
        return found or _fetch_and_import(run, on_hub, options)


def import_encoder(
    data_root: Path,
    name: str,
    settings: Mapping[str, Any] = MappingProxyType({}),
    options: ImportOptions = ImportOptions(),
) -> ImportedModel:
    """Makes a model folder of an installed encoder of another package, by the name of its entry point.

    `settings` are the keyword arguments of the entry point, as JSON has them. The same encoder is imported once. One
    with another digest, other settings or another recipe is another model. Raises as `open_encoder`, and
    `ConfigurationError` for a recipe that cannot be converted.
    """
    data_root = data_root.resolve()
    with open_run(data_root, STAGE, parameters={"encoder": name, "options": dict(settings)}) as run:
        candidate = open_encoder(name, settings)
        assert candidate.recipe is not None, "an encoder of volumes has a recipe"
        try:
            check_recipe(candidate.recipe)
        except ValueError as error:
            raise ConfigurationError(f"the encoder {name!r} has a recipe that cannot be converted: {error}") from error
        sha256 = hashlib.sha256(candidate.fingerprint("").encode()).hexdigest()
        found = _write(run, candidate, Origin(Path(), f"{ENCODER_SCHEME}{name}"), sha256, options)
        return replace(found, recipe=candidate.recipe)


def fetch_models(
    data_root: Path, names: Sequence[str], revision: str | None = None, options: ImportOptions = ImportOptions()
) -> list[ImportedModel]:
    """Downloads and imports published models by their names in `PUBLISHED`, one after the other.

    Raises `ConfigurationError` for another name, before any download.
    """
    names = [OLD_SPELLINGS.get(name, name) for name in names]
    if unknown := [name for name in names if name not in PUBLISHED]:
        raise ConfigurationError(f"no model {unknown[0]!r} is published: choose from {', '.join(PUBLISHED)}")
    repository = f"hf://datasets/{CT_RATE}" + (f"@{revision}" if revision else "")
    return [
        import_model(data_root, f"{repository}/{kind.facts.published_path}", replace(options, kind=kind))
        for kind in (PUBLISHED[name] for name in names)
    ]


def _fetch_and_import(run: StageRun, address: ModelAddress, options: ImportOptions) -> ImportedModel:
    origin = fetch_model(run.data_root, address, run.limits)
    imported = _import(run, origin, options)
    if not options.keep_raw:
        origin.drop_fetched()
    return imported


def _import(run: StageRun, origin: Origin, options: ImportOptions) -> ImportedModel:
    """Imports a model on this machine, unless it is there."""
    candidate = open_candidate(
        origin.path, kind=options.kind, preset=find_preset(options.preset) if options.preset else None
    )
    candidate = _with_tokenizer(run, candidate, options.tokenizer)
    return _write(run, candidate, origin, hash_weights(candidate.weights), options)


def _write(run: StageRun, candidate: Candidate, origin: Origin, sha256: str, options: ImportOptions) -> ImportedModel:
    """Writes the folder and the row of a model, unless both are there."""
    started = time.monotonic()
    fingerprint = candidate.fingerprint(sha256)
    prefix = f"{TRAINED_PREFIX}{candidate.preset}" if candidate.kind is ModelKind.labeller else candidate.kind
    if candidate.kind.facts.is_frozen:
        prefix = candidate.preset
    folder = run.data_root / "models" / f"{prefix}-{fingerprint[:10]}"
    imported = ImportedModel(folder.name, candidate.kind, origin.address, origin.revision, sha256, is_new=False)
    if not options.force and _is_complete(run.data_root, folder, fingerprint):
        return imported
    for leftover in folder.parent.glob(f".{folder.name}.*"):  # half a folder of an import that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    decisions = _read_decisions(candidate.weights)
    provenance = {"source": origin.address, "revision": origin.revision, "SHA-256 of the source": sha256}
    write_candidate(candidate, folder, provenance)
    if decisions is not None:
        write_decisions(folder, decisions.of_weights(sha256_of(folder / "model.safetensors")))
    run.variant = folder.name
    record_model(run, _describe(candidate, imported, fingerprint, time.monotonic() - started))
    return replace(imported, is_new=True)


def _read_decisions(weights: Path) -> Decisions | None:
    """The decisions beside the weights of a model folder, which go with them. Raises `CheckpointError`."""
    is_there = (weights.parent / DECISIONS_FILE).is_file() and weights.name == "model.safetensors"
    return read_decisions(weights.parent, sha256_of(weights)) if is_there else None


def _describe(candidate: Candidate, imported: ImportedModel, fingerprint: str, duration_s: float) -> ModelRow:
    model = candidate.model
    return ModelRow(
        model_id=imported.model_id, kind=candidate.kind, fingerprint=fingerprint, preset=candidate.preset,
        config=asdict(model.config), recipe_id=candidate.recipe.recipe_id if candidate.recipe else None,
        count_parameters=sum(parameter.numel() for parameter in model.parameters()),
        logit_scale=candidate.logit_scale,
        source=imported.source, revision=imported.revision, source_sha256=imported.source_sha256,
        duration_s=duration_s,
    )  # fmt: skip


def _with_tokenizer(run: StageRun, candidate: Candidate, given: Path | None) -> Candidate:
    """Adds the tokenizer that a model needs: the given one, the one beside its weights, or the published one.

    The published tokenizer is downloaded unless it is in `raw/hub`.
    """
    if given is not None and candidate.tokenizer is not None:
        raise ConfigurationError(f"{candidate.weights.parent} has its own tokenizer: leave --tokenizer out")
    if given is None and not candidate.needs_tokenizer:
        return candidate
    names: Sequence[str]
    repo_id, names = PUBLISHED_TEXT_ENCODER, TOKENIZER_FILES
    if candidate.kind is ModelKind.labeller:
        repo_id, names = RADBERT_BASE, ("tokenizer.json", *VOCABULARY_FILES)
    folders = (candidate.weights.parent, hub_folder(run.data_root, repo_id)) if given is None else (given,)
    found = next((folder for folder in folders if folder is given or _has_tokenizer(folder, names)), None)
    if found is None:
        found = fetch_tokenizer(run.data_root, repo_id, names, run.limits)
    return replace(candidate, tokenizer=read_tokenizer_for(candidate.kind, found))


def _has_tokenizer(folder: Path, names: Sequence[str]) -> bool:
    """True if the folder holds the first of the named files, or all of the others."""
    first, *others = ((folder / name).is_file() for name in names)
    return first or all(others)


def _is_complete(data_root: Path, folder: Path, fingerprint: str) -> bool:
    """True if the model has a row and its folder holds the weights of that row."""
    rows = store.query(
        data_root,
        "select weights_sha256 from current_models where model_id = ? and fingerprint = ?",
        [folder.name, fingerprint],
    )
    return bool(rows) and is_there(folder) and sha256_of(folder / "model.safetensors") == rows[0][0]


def _find_folder(data_root: Path, path: Path) -> ImportedModel | None:
    """Finds the model of this data root whose folder is `path`."""
    if path.parent != data_root / "models":
        return None
    return next((model for model, folder in _list_models(data_root, model_id=path.name) if is_there(folder)), None)


def _find_fetched(data_root: Path, address: ModelAddress, options: ImportOptions) -> ImportedModel | None:
    """Finds the model that was imported last from an address, at the revision that the address names, if any."""
    models = _list_models(
        data_root, source=str(address), kind=options.kind,
        revision=address.repository.revision if address.is_pinned else None,
    )  # fmt: skip
    return next((model for model, folder in models if is_there(folder)), None)


def _list_models(
    data_root: Path, *, model_id: str | None = None, source: str | None = None, kind: ModelKind | None = None,
    revision: str | None = None,
) -> list[tuple[ImportedModel, Path]]:  # fmt: skip
    """Models with these columns, each with its folder, the newest first."""
    parameters = {"model_id": model_id, "source": source, "kind": kind, "revision": revision}
    rows = store.query(data_root, store.load_sql(__package__, "find_imported"), parameters)
    return [
        (ImportedModel(found, ModelKind(made), address, commit, sha256, is_new=False), data_root / path)
        for found, made, address, commit, sha256, path in rows
    ]
