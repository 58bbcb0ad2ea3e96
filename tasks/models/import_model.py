"""Models from elsewhere: a weights file or a model folder becomes a folder below `models/` and a row of `models`."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ctclip_model.config import RADBERT_BASE
from ctclip_model.errors import ConfigurationError
from ctclip_model.models.heads import LiPro
from ctclip_model.models.import_weights import Candidate, open_candidate, read_tokenizer_for, write_candidate
from ctclip_model.models.report_labeller import VOCABULARY_FILES, ReportLabeller
from ctclip_model.models.text import PUBLISHED_TEXT_ENCODER, TOKENIZER_FILES
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
from tasks.run.records import sha256_of
from tasks.run.stage_run import StageRun, code_version, open_run
from tasks.settings import CT_RATE, PUBLISHED_MODELS
from warehouse import store

STAGE = "import-model"


@dataclass(frozen=True)
class ImportOptions:
    """How to read a model; what is None is told by the file, or looked for."""

    kind: str | None = None
    tokenizer: Path | None = None  # a file, or the folder of one
    preset: str | None = None  # describes weights that have not the published widths
    force: bool = False  # make the folder again although it is there
    keep_raw: bool = False  # what was fetched, although it is in the folder now


@dataclass(frozen=True)
class ImportedModel:
    """A model of the warehouse that came from elsewhere."""

    model_id: str
    kind: str
    source: str
    revision: str
    source_sha256: str
    is_new: bool  # whether this call made it


def import_model(data_root: Path, address: str, options: ImportOptions = ImportOptions()) -> ImportedModel:
    """Imports a path, or an address on the Hub: `hf://[datasets/]OWNER/NAME[@REVISION]/PATH`.

    What is there already is left as it is; the Hub is then asked for nothing, unless the address names a revision.
    Raises `CTCLIPError`.
    """
    data_root = data_root.resolve()
    with open_run(data_root, STAGE, parameters={"address": address}) as run:
        on_hub = parse_model_address(address)
        if on_hub is None:
            path = Path(address).resolve()
            return _find_folder(data_root, path) or _import(run, Origin(path, f"file://{path}"), options)
        return (None if options.force else _find_fetched(data_root, on_hub, options)) or _fetch_and_import(
            run, on_hub, options
        )


def fetch_models(
    data_root: Path, names: Sequence[str], revision: str | None = None, options: ImportOptions = ImportOptions()
) -> list[ImportedModel]:
    """Fetches and imports published models, of `PUBLISHED_MODELS`, one after the other."""
    if unknown := [name for name in names if name not in PUBLISHED_MODELS]:
        raise ConfigurationError(f"no model {unknown[0]!r} is published; there are {', '.join(PUBLISHED_MODELS)}")
    place = f"hf://datasets/{CT_RATE}" + (f"@{revision}" if revision else "")
    return [
        import_model(data_root, f"{place}/{PUBLISHED_MODELS[name]}", replace(options, kind=_kind_of(name)))
        for name in names
    ]


def _kind_of(name: str) -> str:
    return "labeller" if name == "radbert" else name


def _fetch_and_import(run: StageRun, address: ModelAddress, options: ImportOptions) -> ImportedModel:
    origin = fetch_model(run.data_root, address, run.limits)
    imported = _import(run, origin, options)
    if not options.keep_raw:
        origin.drop_fetched()
    return imported


def _import(run: StageRun, origin: Origin, options: ImportOptions) -> ImportedModel:
    """Makes a model folder of what lies on this machine, and its row, unless both are there."""
    started = time.monotonic()
    candidate = open_candidate(
        origin.path, kind=options.kind, preset=find_preset(options.preset) if options.preset else None
    )
    candidate = _with_tokenizer(run, candidate, options.tokenizer)
    sha256 = sha256_of(candidate.weights)
    fingerprint = candidate.fingerprint(sha256)
    prefix = f"{TRAINED_PREFIX}{candidate.preset}" if candidate.kind == "labeller" else candidate.kind
    folder = run.data_root / "models" / f"{prefix}-{fingerprint[:10]}"
    imported = ImportedModel(folder.name, candidate.kind, origin.address, origin.revision, sha256, is_new=False)
    if not options.force and _is_whole(run.data_root, folder, fingerprint):
        return imported
    for left in folder.parent.glob(f".{folder.name}.*"):  # by an import that was killed
        shutil.rmtree(left, ignore_errors=True)
    provenance = {"source": origin.address, "revision": origin.revision, "SHA-256 of the source": sha256}
    write_candidate(candidate, folder, provenance)
    row = _describe(candidate) | {
        "model_id": folder.name, "fingerprint": fingerprint, "path": str(folder.relative_to(run.data_root)),
        "source": origin.address, "revision": origin.revision, "source_sha256": sha256,
        "code_version": code_version(), "weights_sha256": sha256_of(folder / "model.safetensors"),
        "duration_s": time.monotonic() - started, "created_at": datetime.now(UTC),
    }  # fmt: skip
    run.variant = folder.name
    run.record("models", [row])
    run.count_done += 1
    return replace(imported, is_new=True)


def _describe(candidate: Candidate) -> dict[str, Any]:
    """What a row says of the model itself."""
    model = candidate.model
    encoders = model.trained_model if isinstance(model, LiPro) else model
    return {
        "kind": candidate.kind, "preset": candidate.preset,
        "config": json.dumps(asdict(model.config), sort_keys=True),
        "recipe_id": candidate.recipe.recipe_id if candidate.recipe else None,
        "count_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "logit_scale": None if isinstance(encoders, ReportLabeller) else encoders.temperature.exp().item(),
    }  # fmt: skip


def _with_tokenizer(run: StageRun, candidate: Candidate, given: Path | None) -> Candidate:
    """The model with the tokenizer that it needs: the given one, one beside it, or the published one, fetched."""
    if given is not None and candidate.tokenizer is not None:
        raise ConfigurationError(f"{candidate.weights.parent} has a tokenizer of its own: leave --tokenizer out")
    if given is None and not candidate.needs_tokenizer:
        return candidate
    names: Sequence[str]
    repo_id, names = PUBLISHED_TEXT_ENCODER, TOKENIZER_FILES
    if candidate.kind == "labeller":
        repo_id, names = RADBERT_BASE, ("tokenizer.json", *VOCABULARY_FILES)
    folders = (candidate.weights.parent, hub_folder(run.data_root, repo_id)) if given is None else (given,)
    place = next((folder for folder in folders if folder is given or _holds(folder, names)), None)
    if place is None:
        place = fetch_tokenizer(run.data_root, repo_id, names, run.limits)
    return replace(candidate, tokenizer=read_tokenizer_for(candidate.kind, place))


def _holds(folder: Path, names: Sequence[str]) -> bool:
    """Whether a tokenizer is there: the first of the names alone, or all of the others."""
    first, *others = ((folder / name).is_file() for name in names)
    return first or all(others)


def _is_whole(data_root: Path, folder: Path, fingerprint: str) -> bool:
    """Whether the model has a row, and its folder is what the row says."""
    rows = _query(data_root, "model_id = ? and fingerprint = ?", [folder.name, fingerprint])
    weights = folder / "model.safetensors"
    has_files = weights.is_file() and (folder / "config.json").is_file()
    return bool(rows) and has_files and sha256_of(weights) == rows[0]["weights_sha256"]


def _find_folder(data_root: Path, path: Path) -> ImportedModel | None:
    """The model whose folder in this data root the path is."""
    if path.parent != data_root / "models":
        return None
    return _found(_query(data_root, "model_id = ?", [path.name]))


def _find_fetched(data_root: Path, address: ModelAddress, options: ImportOptions) -> ImportedModel | None:
    """The model that was imported last from an address, at the revision if it names one."""
    rows = _query(
        data_root, "source = $1 and ($2 is null or kind = $2) and ($3 is null or revision = $3)",
        [str(address), options.kind, address.repository.revision if address.is_pinned else None],
    )  # fmt: skip
    return _found([row for row in rows if (data_root / row["path"] / "config.json").is_file()])


def _found(rows: list[dict[str, Any]]) -> ImportedModel | None:
    if not rows:
        return None
    names = ("model_id", "kind", "source", "revision", "source_sha256")
    return ImportedModel(**{name: rows[0][name] or "" for name in names}, is_new=False)


def _query(data_root: Path, where: str, parameters: list[Any]) -> list[dict[str, Any]]:
    with store.read(data_root) as connection:
        answer = connection.execute(f"select * from current_models where {where} order by run_id desc", parameters)
        columns = [column[0] for column in answer.description or ()]
        return [dict(zip(columns, row, strict=True)) for row in answer.fetchall()]
