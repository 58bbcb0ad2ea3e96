"""CT volumes of one's own through a model, without a warehouse."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ctclip_model.device import Precision
from flows.commands import app
from flows.commands.options import (
    DataRoot,
    Device,
    Dtype,
    Json,
    OwnModel,
    OwnVolumes,
)
from tasks.settings import DATA_ROOT


@app.command()
def predict(
    volumes: OwnVolumes,
    data_root: DataRoot = DATA_ROOT,
    model: OwnModel = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Of a weights file: tokenizer.json, vocab.txt, or the folder of one.")
    ] = None,
    device: Device = "auto",
    dtype: Dtype = Precision.float32,
    as_json: Json = False,
) -> None:
    """The probability of 18 abnormalities in CT volumes of your own; for research, not for diagnosis."""
    from flows import volumes as own

    request = own.Request(volumes, data_root / "models", model, device, dtype, as_json)
    raise typer.Exit(code=1 if own.predict(request, tokenizer) else 0)


@app.command()
def embed_volume(
    volumes: OwnVolumes,
    data_root: DataRoot = DATA_ROOT,
    model: OwnModel = None,
    output: Annotated[Path | None, typer.Option(help="Write the latents to FILE.parquet or FILE.npz.")] = None,
    device: Device = "auto",
    dtype: Dtype = Precision.float32,
    as_json: Json = False,
) -> None:
    """The image latents of CT volumes of your own."""
    from flows import volumes as own

    request = own.Request(volumes, data_root / "models", model, device, dtype, as_json)
    raise typer.Exit(code=1 if own.embed_volume(request, output) else 0)
