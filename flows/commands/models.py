"""Commands that bring in models from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ctclip_model.models.kinds import PUBLISHED, ModelKind, find_kind
from flows.commands.running import showing_progress
from flows.display import console, print_json
from flows.options import DataRoot, Json, Revision
from tasks.settings import DATA_ROOT

if TYPE_CHECKING:
    from tasks.models.import_model import ImportedModel

KeepRaw = Annotated[bool, typer.Option("--keep-raw", help="Keep the downloaded file beside the model's own copy.")]


def fetch_models(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help=f"Names of models: {', '.join(PUBLISHED)}. Default: all.")
    ] = None,
    data_root: DataRoot = DATA_ROOT,
    revision: Revision = None,
    keep_raw: KeepRaw = False,
    as_json: Json = False,
) -> None:
    """Fetch the published models from the Hub and import them.

    The report labeller and all tokenizers are included.
    """
    from tasks.models import import_model as importing

    with showing_progress():
        options = importing.ImportOptions(keep_raw=keep_raw)
        found = importing.fetch_models(data_root, names or list(PUBLISHED), revision, options)
    _print_models(found, as_json)


def import_model(
    address: Annotated[str, typer.Argument(metavar="PATH|hf://...", help="Weights file or model folder.")],
    data_root: DataRoot = DATA_ROOT,
    kind: Annotated[
        str | None, typer.Option(help=f"Kind of model: {', '.join(ModelKind)}. Default: read from the file.")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Tokenizer, file or folder. Default: beside the weights, or the published one.")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="Preset that describes weights of other widths.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Make an existing model folder again.")] = False,
    keep_raw: KeepRaw = False,
    as_json: Json = False,
) -> None:
    """Import weights or a model folder from elsewhere.

    Takes .pt, .pth, .bin, .ckpt and .safetensors, an index of shards, and a folder of Hugging Face. Wrappers and
    prefixes of trainers are taken off. Code in a file is never run.
    """
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
        origin = model.source + (f" at {model.revision[:12]}" if model.revision else "")
        console.print(f"{model.model_id} {state}: {model.kind} of {origin}", soft_wrap=True)
