"""The options that commands share, each once."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ctclip_model.config import PRESETS
from ctclip_model.device import Precision
from tasks.settings import DATA_ROOT_VARIABLE, STAGES


class StorageChoice(StrEnum):
    v2 = "v2"
    v1 = "v1"


class KindChoice(StrEnum):
    lipro = "lipro"
    vocabfine = "vocabfine"


class UnitChoice(StrEnum):
    scan = "scan"
    volume = "volume"


class FormatChoice(StrEnum):
    parquet = "parquet"
    csv = "csv"


DataRoot = Annotated[
    Path, typer.Option("--data-root", envvar=DATA_ROOT_VARIABLE, help="Where everything is kept.", file_okay=False)
]
Source = Annotated[
    str | None,
    typer.Option(help="A folder, hf://datasets/OWNER/NAME, or rad-chestct:FOLDER; default: ingested last."),
]
Revision = Annotated[str | None, typer.Option(help="Of a hf:// source: a branch, tag or commit; default: main.")]
Preset = Annotated[str, typer.Option(help=f"One of: {', '.join(PRESETS)}.")]
Labeller = Annotated[
    str, typer.Option(help="`radbert`, `tfidf` (needs no weights), a trained labeller's id, or a path.")
]
Storage = Annotated[
    StorageChoice | None, typer.Option(help="Which of CT-RATE's two storages; default: as ingested last, or v2.")
]
Split = Annotated[str | None, typer.Option(help="Only this split: train, valid, or external.")]
Volumes = Annotated[str | None, typer.Option(help="Only these: a file of names, or a glob.")]
Limit = Annotated[int | None, typer.Option(min=1, help="At most so many items.")]
Force = Annotated[bool, typer.Option("--force", help="Make again what is there already.")]
RetryRejects = Annotated[bool, typer.Option("--retry-rejects", help="Try what was rejected for good again.")]
DaskAddress = Annotated[str | None, typer.Option(help="A running Dask scheduler; default: a local cluster.")]
RawCache = Annotated[float, typer.Option("--raw-cache-gb", help="Most that downloads may take of the disk.")]
KeepRaw = Annotated[bool, typer.Option("--keep-raw", help="Keep what was downloaded; the bound is none then.")]
DownloadThreads = Annotated[int, typer.Option("--download-threads", min=1, help="Files downloaded at once.")]
MaxRate = Annotated[float | None, typer.Option("--max-mb-per-s", help="Of the network, all threads together.")]
Model = Annotated[str | None, typer.Option(help="A model's id; default: the preset's latest.")]
Seed = Annotated[int, typer.Option(help="Seeds the training.")]
Retrain = Annotated[bool, typer.Option("--retrain", help="Train again although there is a model.")]
FinetuneKinds = Annotated[str, typer.Option("--finetune", help="Kinds of fine-tuning, with commas; or none.")]
Device = Annotated[str, typer.Option(help="auto, cpu, or cuda.")]
Dtype = Annotated[Precision, typer.Option(help="What models compute in; bfloat16 is faster on a GPU.")]
Recompute = Annotated[bool | None, typer.Option(help="Less memory for more time; default: as the preset has it.")]
Processes = Annotated[
    int | None,
    typer.Option(min=1, help="On this machine; default: one a GPU, of VocabFine and labellers one, or this one alone."),
]
AtOnce = Annotated[
    int | None,
    typer.Option("--at-once", min=1, help="Volumes encoded at once by a process; default: its share of the batch."),
]
Deployed = Annotated[bool, typer.Option("--deployed", help="The deployment `compute` does it, on a GPU worker.")]
OwnVolumes = Annotated[list[Path], typer.Argument(metavar="VOLUME...", help="CT volumes as NIfTI, or folders of them.")]
OwnModel = Annotated[
    str | None, typer.Option("--model", help="A model's id, folder, or weights file; default: the only one there is.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
StageName = Annotated[str, typer.Argument(help=f"One of: {', '.join(STAGES)}.")]
