"""Commands for your own CT volumes: a model reads them without a warehouse."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ctclip_model.data.names import HEADER
from ctclip_model.device import Precision
from ctclip_model.errors import ConfigurationError
from flows.options import DataRoot, Device, Dtype, Json
from tasks.settings import DATA_ROOT

OwnVolumes = Annotated[
    list[Path], typer.Argument(metavar="VOLUME", help="CT volumes: NIfTI files, DICOM series, or folders of them.")
]
OwnModel = Annotated[
    str | None,
    typer.Option(
        help="Id, folder, weights file or hf://OWNER/NAME of a model. Default: the only one of the data root."
    ),
]

Orientation = Annotated[
    str, typer.Option(help="Orientation of the arrays: header, stored (taken as LPS), or a code such as RAS.")
]
ShowIds = Annotated[bool, typer.Option("--show-ids", help="Show the patient's name and identifiers of DICOM files.")]


def predict(
    volumes: OwnVolumes,
    data_root: DataRoot = DATA_ROOT,
    model: OwnModel = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Tokenizer of a weights file: tokenizer.json, vocab.txt, or their folder.")
    ] = None,
    orientation: Orientation = HEADER,
    show_ids: ShowIds = False,
    device: Device = "auto",
    dtype: Dtype = Precision.float32,
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV, a row per volume as it comes.")] = False,
    evidence: Annotated[
        Path | None, typer.Option(help="Folder for evidence: an overlay per abnormality, and a picture per volume.")
    ] = None,
    page: Annotated[Path | None, typer.Option(help="HTML page to write, with slices, evidence and decisions.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="File of rows, .csv or .jsonl. A rerun adds what is missing or has changed.")
    ] = None,
    findings: Annotated[
        Path | None, typer.Option(help="Label set of your own findings and prompts, as TOML. See `ctclip findings`.")
    ] = None,
) -> None:
    """Predict 18 abnormalities, or your findings, in your own CTs.

    A model that learned other findings predicts these.

    An evaluated model gives calibrated probabilities and decisions, with the sensitivity and specificity that they had.
    Without an evaluation, the probabilities are uncalibrated softmax scores. Research use only: this is not a medical
    device.
    """
    from ctclip_model.data.label_sets import read_label_set
    from flows import volumes as own

    if as_csv and (as_json or output):
        raise ConfigurationError("--csv prints rows: leave out --json and --output")
    label_set = None if findings is None else read_label_set(findings)
    request = own.Request(
        volumes, data_root / "models", model, device, dtype, as_json, as_csv, orientation, show_ids, label_set
    )
    raise typer.Exit(code=1 if own.predict(request, tokenizer, evidence, output, page) else 0)


def embed_volume(
    volumes: OwnVolumes,
    data_root: DataRoot = DATA_ROOT,
    model: OwnModel = None,
    output: Annotated[Path | None, typer.Option(help="File of the latents, .parquet or .npz.")] = None,
    orientation: Orientation = HEADER,
    show_ids: ShowIds = False,
    device: Device = "auto",
    dtype: Dtype = Precision.float32,
    as_json: Json = False,
) -> None:
    """Compute the image latents of your own CT volumes."""
    from flows import volumes as own

    request = own.Request(
        volumes, data_root / "models", model, device, dtype, as_json, orientation=orientation, show_ids=show_ids
    )
    raise typer.Exit(code=1 if own.embed_volume(request, output) else 0)
