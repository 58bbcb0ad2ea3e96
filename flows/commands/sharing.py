"""`ctclip push` and `ctclip sync-shards`: models and latents on the Hugging Face Hub, shards in a bucket."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ctclip_model.errors import ConfigurationError
from flows.commands.running import showing_progress
from flows.display import console, print_json
from flows.options import DataRoot, Json
from tasks.settings import DATA_ROOT

if TYPE_CHECKING:
    from tasks.hub.push import Pushed

LATENTS = "latents"


def push(
    model_or_latents: Annotated[
        str, typer.Argument(metavar="MODEL|latents", help="Id or folder of a model, or `latents` of --model.")
    ],
    to: Annotated[str, typer.Option("--to", metavar="OWNER/NAME", help="Repository on the Hub, made if missing.")],
    data_root: DataRoot = DATA_ROOT,
    model: Annotated[str | None, typer.Option(help="Id of the model of the latents.")] = None,
    with_reports: Annotated[
        bool, typer.Option("--with-reports", help="Add the reports' texts to the latents.")
    ] = False,
    public: Annotated[
        bool, typer.Option("--public", help="Open the repository to everybody. Default: private if it is new.")
    ] = False,
    licence: Annotated[
        str, typer.Option("--licence", help="Licence by the Hub's name of it. The default is CT-RATE's.")
    ] = "cc-by-nc-sa-4.0",
    as_json: Json = False,
) -> None:
    """Push a model or its latents to the Hugging Face Hub.

    A model goes as weights, configuration, tokenizer, thresholds and a card. Latents go as Parquet with a card and
    Croissant metadata. Only changed files are uploaded, so that a rerun after a kill goes on, and a second one does
    nothing. The token is `HF_TOKEN` or that of `hf auth login`.
    """
    from tasks.hub.push import parse_target

    is_latents = model_or_latents == LATENTS
    if not is_latents and (model or with_reports):
        raise ConfigurationError("--model and --with-reports are for `ctclip push latents`")
    repository = parse_target(to, "dataset" if is_latents else "model")
    with showing_progress():
        if is_latents:
            from tasks.evaluation.push_latents import push_latents

            if model is None:
                raise ConfigurationError("the latents are of one model: name it with --model")
            pushed = push_latents(
                data_root, model, repository, with_reports=with_reports, licence=licence, is_public=public
            )
        else:
            from tasks.models.push_model import push_model

            pushed = push_model(data_root, model_or_latents, repository, licence=licence, is_public=public)
    _print_pushed(pushed, as_json)


def _print_pushed(pushed: Pushed, as_json: bool) -> None:
    page, state = pushed.repository.page, "private" if pushed.is_private else "public"
    if as_json:
        print_json(
            {"page": page, "commit": pushed.commit, "changed": list(pushed.changed), "is_private": pushed.is_private}
        )
        return
    files, commit = ", ".join(pushed.changed), pushed.commit[:12]
    done = f": {files} in commit {commit}" if pushed.is_new else f" is up to date: no new commit after {commit}"
    console.print(f"{page} ({state}){done}", soft_wrap=True, markup=False)


def sync_shards(
    to: Annotated[str, typer.Option("--to", metavar="ADDRESS", help="Bucket and prefix, such as s3://BUCKET/PREFIX.")],
    data_root: DataRoot = DATA_ROOT,
    as_json: Json = False,
) -> None:
    """Copy the shards to a bucket, from which workers read them.

    A worker reads them with `CTCLIP_SHARDS=ADDRESS`. Only missing shards are copied, so that a rerun goes on. Endpoint
    and credentials are those that the protocol's own library finds.
    """
    from tasks.volumes import sync_shards as syncing

    with showing_progress():
        synced = syncing.sync_shards(data_root, to)
    if as_json:
        print_json(synced.as_json())
    else:
        console.print(syncing.describe(synced), soft_wrap=True, markup=False)
