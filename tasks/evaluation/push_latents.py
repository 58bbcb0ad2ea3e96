"""Latents of a model on the Hugging Face Hub: a data set of Parquet files with a card and Croissant metadata."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pyarrow.parquet as pq
from huggingface_hub import DatasetCardData

from ctclip_model.config import CARD_FILE
from ctclip_model.data.names import EXTERNAL
from ctclip_model.errors import MissingInputError
from tasks.evaluation.export import export_latents
from tasks.hub.croissant import describe_parquet
from tasks.hub.origins import LICENCES, hide_folders
from tasks.hub.push import Content, Pushed, push_files
from tasks.hub.requests import Repository
from tasks.models.find import ModelReference, find_encoder
from tasks.run.selection import Selection
from tasks.settings import LIMITS, PRESET, Limits
from warehouse import store

SPLITS = ("train", "valid", EXTERNAL)
REPORTS = "reports.parquet"
CROISSANT = "croissant.json"
LATENT_FILES = {split: f"latents/{split}.parquet" for split in SPLITS}
COLUMNS = {
    "volume_name": "name of the CT volume, as CT-RATE has it without its suffix",
    "model_id": "id of the model",
    "latent": "unit latent of the volume",
    "scan_id": "name of the scan: the volume's name without its reconstruction",
    "findings": "findings of the report",
    "impression": "impression of the report",
    "clinical_information": "clinical information of the report",
    "technique": "technique of the report",
}
LIMITS_OF_USE = """\
Research: classifiers and retrieval on top of the latents, and comparisons of models. Not for diagnosis. Latents hold
information on the patient's scan: treat them as data of a patient, and do not try to identify anybody.
"""


def push_latents(
    data_root: Path,
    model_id: str,
    repository: Repository,
    *,
    licence: str,
    with_reports: bool = False,
    is_public: bool = False,
    limits: Limits = LIMITS,
) -> Pushed:
    """Pushes the current latents of a model's volumes, one Parquet file for each split.

    Reports go along in a file of their own if `with_reports` is set. Raises `MissingInputError` for a model without
    latents, `ConfigurationError` for an unknown one, and `HubError`.
    """
    model = find_encoder(data_root, PRESET, model_id)
    with tempfile.TemporaryDirectory(prefix="ctclip-push-") as folder:
        tables = _write_tables(data_root, model, Path(folder), with_reports)
        description = _describe(model)
        croissant = describe_parquet(
            repository, tables, description=description, licence=licence, columns=COLUMNS, keywords=("chest CT",)
        )
        card = _make_card(data_root, model, repository, tables, description, licence)
        files: dict[str, Content] = {
            **tables,
            CARD_FILE: card.encode(),
            CROISSANT: (json.dumps(croissant, indent=1) + "\n").encode(),
        }
        message = f"latents of {model.model_id}, weights {model.weights_sha256[:12]}"
        replaced = (*LATENT_FILES.values(), REPORTS)
        return push_files(repository, files, message, replaced=replaced, is_public=is_public, limits=limits)


def _write_tables(data_root: Path, model: ModelReference, folder: Path, with_reports: bool) -> dict[str, Path]:
    """The Parquet files, by their path in the repository."""
    found: dict[str, Path] = {}
    (folder / "latents").mkdir()
    for split, path in LATENT_FILES.items():
        try:
            export_latents(data_root, model.model_id, Selection(split), folder / path)
        except MissingInputError:
            continue
        found[path] = folder / path
    if not found:
        raise MissingInputError(f"{model.model_id} has no latents: run `ctclip embed --model {model.model_id}`")
    if with_reports:
        with store.read(data_root) as connection:
            key = {"model_id": model.model_id}
            reports = connection.sql(store.load_sql(__package__, "pushed_reports"), params=key).to_arrow_table()
        pq.write_table(reports, folder / REPORTS, compression="zstd")
        found[REPORTS] = folder / REPORTS
    return found


def _describe(model: ModelReference) -> str:
    maker = "CT-CLIP, arXiv:2403.17834"
    if model.kind.facts.is_frozen:
        maker = f"{model.preset.removeprefix(f'{model.kind}-')}, an encoder of another package"
    return (
        f"Unit latents of chest CT volumes by the image encoder of {model.model_id} ({maker}), computed with "
        "ctclip-rebuild."
    )


def _make_card(
    data_root: Path,
    model: ModelReference,
    repository: Repository,
    tables: Mapping[str, Path],
    description: str,
    licence: str,
) -> str:
    rows = {path: pq.read_metadata(file).num_rows for path, file in tables.items()}
    latents = {split: path for split, path in LATENT_FILES.items() if path in tables}
    has_reports = REPORTS in tables
    configs = [
        {
            "config_name": "latents",
            "default": True,
            "data_files": [{"split": split, "path": path} for split, path in latents.items()],
        }
    ]
    if has_reports:
        configs.append({"config_name": "reports", "data_files": REPORTS})
    head = DatasetCardData(
        license=licence,
        language="en",
        tags=["medical", "chest-ct", *([] if model.kind.facts.is_frozen else ["ct-clip"]), "embeddings", "croissant"],
        pretty_name=f"Latents of {model.model_id}",
        configs=configs,
    )
    width = pq.read_table(tables[next(iter(latents.values()))], columns=["latent"]).slice(0, 1)["latent"][0]
    first = next(iter(latents))
    lines = [
        f"# Latents of {model.model_id}",
        "",
        description,
        "",
        *(f"- Data: {source}." for source in _list_sources(data_root, model)),
        f"- Model: {model.model_id}, kind {model.kind}, SHA-256 of the weights {model.weights_sha256}.",
        f"- Preprocessing: recipe `{model.recipe_id}` of the preset {model.preset}.",
        f"- Latents: {len(width)} numbers of float32, of length 1. A scan has one row for each reconstruction.",
        f"- Reports: {'`reports.parquet`, a row for each scan.' if has_reports else 'not part of this data set.'}",
        "",
        "| file | rows |",
        "|---|---|",
        *(f"| `{path}` | {count:,} |" for path, count in rows.items()),
        "",
        "## Use",
        "",
        "```python",
        "import pandas",
        "",
        f'latents = pandas.read_parquet("hf://datasets/{repository.repo_id}/{latents[first]}")',
        "```",
        "",
        "`croissant.json` describes files and columns for programs.",
        "",
        "## Intended use",
        "",
        LIMITS_OF_USE,
        "## Licence",
        "",
        LICENCES.get(licence, licence),
        "",
    ]
    return f"---\n{head.to_yaml()}\n---\n" + "\n".join(lines)


def _list_sources(data_root: Path, model: ModelReference) -> list[str]:
    """The sources of the volumes with their revisions, without folders of this machine."""
    rows = store.query(data_root, store.load_sql(__package__, "latent_sources"), {"model_id": model.model_id})
    return [hide_folders(f"{source}, revision {revision}" if revision else source) for source, revision in rows]
