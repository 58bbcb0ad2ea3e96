"""What comes from elsewhere: models, published or one's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ctclip_model.models.kinds import PUBLISHED, ModelKind, find_kind
from flows.commands import app
from flows.commands.options import DataRoot, Json, Revision
from flows.commands.running import showing_progress
from flows.display import console, print_json
from tasks.settings import DATA_ROOT

if TYPE_CHECKING:
    from tasks.models.import_model import ImportedModel

KeepRaw = Annotated[bool, typer.Option("--keep-raw", help="Keep the downloaded file, which the model's folder copies.")]


@app.command()
def fetch_models(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help=f"Of {', '.join(PUBLISHED)}; default: all.")
    ] = None,
    data_root: DataRoot = DATA_ROOT,
    revision: Revision = None,
    keep_raw: KeepRaw = False,
    as_json: Json = False,
) -> None:
    """Fetch the published models and report labeller from the Hub, with their tokenizers, and import them."""
    from tasks.models import import_model as importing

    with showing_progress():
        options = importing.ImportOptions(keep_raw=keep_raw)
        found = importing.fetch_models(data_root, names or list(PUBLISHED), revision, options)
    _print_models(found, as_json)


@app.command()
def import_model(
    address: Annotated[str, typer.Argument(metavar="PATH|hf://...", help="A weights file, or a model folder.")],
    data_root: DataRoot = DATA_ROOT,
    kind: Annotated[str | None, typer.Option(help=f"{', '.join(ModelKind)}; default: what the file is.")] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Its file or folder; default: beside the weights, or the published one.")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="Describes weights that have not the published widths.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Make the folder again although it is there.")] = False,
    keep_raw: KeepRaw = False,
    as_json: Json = False,
) -> None:
    """Make a model of weights or a model folder from elsewhere."""
    from tasks.models import import_model as importing

    with showing_progress():
        options = importing.ImportOptions(find_kind(kind) if kind else None, tokenizer, preset, force, keep_raw)
        found = importing.import_model(data_root, address, options)
    _print_models([found], as_json)


def _print_models(models: list[ImportedModel], as_json: bool) -> None:
    from dataclasses import asdict

    if as_json:
        print_json([asdict(model) for model in models])
        return
    for model in models:
        state = "imported" if model.is_new else "is there already"
        place = model.source + (f" at {model.revision[:12]}" if model.revision else "")
        console.print(f"{model.model_id} {state}: {model.kind} of {place}", soft_wrap=True)
