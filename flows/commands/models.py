"""Commands that bring in models from elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ctclip_model.errors import ConfigurationError
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
    address: Annotated[
        str | None, typer.Argument(metavar="PATH|hf://...", help="Weights file or model folder.")
    ] = None,
    data_root: DataRoot = DATA_ROOT,
    encoder: Annotated[
        str | None, typer.Option(help="Frozen encoder of an installed package. See `ctclip doctor` for the names.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Option of the encoder, its value as JSON or a text.")
    ] = None,
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

    An encoder of another package keeps its weights there. Its model embeds volumes, and a LiPro of it is scored.
    """
    from tasks.models import import_model as importing

    if (address is None) == (encoder is None):
        raise ConfigurationError("import-model takes either a weights file or model folder, or --encoder NAME")
    if encoder is None and option:
        raise ConfigurationError("--option is one of an encoder: add --encoder NAME")
    if encoder is not None and (kind or tokenizer or preset or keep_raw):
        raise ConfigurationError("--encoder goes with --option and --force alone")
    with showing_progress():
        options = importing.ImportOptions(find_kind(kind) if kind else None, tokenizer, preset, force, keep_raw)
        if encoder is not None:
            found = importing.import_encoder(data_root, encoder, parse_options(option or []), options)
        else:
            found = importing.import_model(data_root, address or "", options)
    _print_models([found], as_json)
    if encoder is not None and not as_json:
        _print_next(found)


def parse_options(given: list[str]) -> dict[str, Any]:
    """Options of an encoder from KEY=VALUE. A value that is no JSON is a text. Raises `ConfigurationError`."""
    options: dict[str, Any] = {}
    for text in given:
        key, separator, value = text.partition("=")
        if not separator or not key.isidentifier() or key in options:
            raise ConfigurationError(f"--option {text}: is not KEY=VALUE, or repeats a key")
        try:
            options[key] = json.loads(value, parse_constant=lambda constant: constant)
        except ValueError:
            options[key] = value
    return options


def _print_next(model: ImportedModel) -> None:
    """Prints the volumes that an encoder takes, and the commands that follow."""
    from tasks.models.recipes import convert_command, describe_recipe

    recipe = model.recipe
    assert recipe is not None, "an encoder of volumes has a recipe"
    for line in (
        f"volumes  {describe_recipe(recipe)}",
        f"next     {convert_command(recipe)}",
        f"         ctclip embed --model {model.model_id}",
        f"         ctclip finetune --kind lipro --model {model.model_id}",
    ):
        console.print(line, soft_wrap=True, markup=False)


def _print_models(models: list[ImportedModel], as_json: bool) -> None:
    from dataclasses import asdict

    if as_json:
        print_json([asdict(model) for model in models])
        return
    for model in models:
        state = "imported" if model.is_new else "is there already"
        origin = model.source + (f" at {model.revision[:12]}" if model.revision else "")
        console.print(f"{model.model_id} {state}: {model.kind} of {origin}", soft_wrap=True)
