"""`ctclip`: every stage, the whole rebuild, and the warehouse, from a shell.

Commands that run no stage (`status`, `sql`, `predict`, `--help` and so on) never import Prefect: it takes seconds.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.exceptions import TyperException

from ctclip_model.config import PRESETS
from ctclip_model.device import Precision
from ctclip_model.errors import ConfigurationError, CTCLIPError
from flows.display import RichReporter, console, print_json, print_rows, print_summaries
from tasks.progress import REPORTER
from tasks.settings import (
    DATA_ROOT,
    DATA_ROOT_VARIABLE,
    FINETUNE,
    LABELLER,
    LABELLER_KINDS,
    PRESET,
    PUBLISHED_LABELS,
    STAGES,
)

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


class StorageChoice(StrEnum):
    v2 = "v2"
    v1 = "v1"


class KindChoice(StrEnum):
    lipro = "lipro"
    vocabfine = "vocabfine"


class FormatChoice(StrEnum):
    parquet = "parquet"
    csv = "csv"


DataRoot = Annotated[
    Path, typer.Option("--data-root", envvar=DATA_ROOT_VARIABLE, help="Where everything is kept.", file_okay=False)
]
Source = Annotated[str | None, typer.Option(help="CT-RATE as a folder, or rad-chestct:FOLDER; default: ingested last.")]
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
Model = Annotated[str | None, typer.Option(help="A model's id; default: the preset's latest.")]
Seed = Annotated[int, typer.Option(help="Seeds the training.")]
Retrain = Annotated[bool, typer.Option("--retrain", help="Train again although there is a model.")]
FinetuneKinds = Annotated[str, typer.Option("--finetune", help="Kinds of fine-tuning, with commas; or none.")]
Device = Annotated[str, typer.Option(help="auto, cpu, or cuda.")]
Dtype = Annotated[Precision, typer.Option(help="What models compute in; bfloat16 is faster on a GPU.")]
Recompute = Annotated[bool | None, typer.Option(help="Less memory for more time; default: as the preset has it.")]
OwnVolumes = Annotated[list[Path], typer.Argument(metavar="VOLUME...", help="CT volumes as NIfTI, or folders of them.")]
OwnModel = Annotated[
    str | None, typer.Option("--model", help="A model's id, folder, or weights file; default: the only one there is.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
StageName = Annotated[str, typer.Argument(help=f"One of: {', '.join(STAGES)}.")]


@app.callback()
def common(debug: Annotated[bool, typer.Option("--debug", help="Show logs and tracebacks.")] = False) -> None:
    """Rebuilds CT-CLIP from CT-RATE, end to end, and keeps it rebuilt."""
    if debug:
        os.environ["CTCLIP_DEBUG"] = "1"


def run_flow(name: str, as_json: bool, **parameters: Any) -> Any:
    """Runs the flow of that name in this process, showing its progress, and prints what it did."""
    _quieten_prefect()
    from importlib import import_module

    function = getattr(import_module(f"flows.{name}"), name)
    if not os.environ.get("CTCLIP_DEBUG"):
        _show_warnings()
    with RichReporter() as reporter:
        token = REPORTER.set(reporter)
        try:
            result = function(**{key: value for key, value in parameters.items() if value is not None})
        finally:
            REPORTER.reset(token)
    summaries = result if isinstance(result, list) else [result]
    print_json(result) if as_json else print_summaries(summaries)
    return result


def _show_warnings() -> None:
    """What the stages warn of (a lease to wait for, rejects) goes to stderr, whatever Prefect does with its own."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("ctclip: %(message)s"))
    for name in ("tasks", "warehouse", "ctclip_model"):
        logging.getLogger(name).addHandler(handler)
        logging.getLogger(name).setLevel(logging.WARNING)
        logging.getLogger(name).propagate = False


def _quieten_prefect() -> None:
    """Prefect's own console log would stand between a person and the progress; `--debug` shows it."""
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
    if not os.environ.get("CTCLIP_DEBUG"):
        os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")
        os.environ.setdefault("PREFECT_LOGGING_ROOT_LEVEL", "ERROR")
        os.environ.setdefault("PREFECT_LOGGING_INTERNAL_LEVEL", "CRITICAL")


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where phantoms and results go.")] = Path("demo"),
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Make phantoms, rebuild CT-CLIP on them, and show what came out; minutes on two cores."""
    from flows.results import show_results

    run_flow("demo", as_json, folder=folder, seed=seed)
    if not as_json:
        show_results(folder)


@app.command()
def ingest(
    source: Source = None,
    data_root: DataRoot = DATA_ROOT,
    storage: Storage = None,
    orientation: Annotated[
        str | None, typer.Option(help="Of RAD-ChestCT: the array axes that become the three of a volume; xyz.")
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Record what is new, changed or withdrawn at the source."""
    run_flow(
        "ingest", as_json, source=source, data_root=data_root, storage=storage and storage.value, force=force,
        orientation=orientation,
    )  # fmt: skip


@app.command()
def convert(
    data_root: DataRoot = DATA_ROOT,
    preset: Preset = PRESET,
    source: Source = None,
    split: Split = None,
    volumes: Volumes = None,
    limit: Limit = None,
    force: Force = False,
    retry_rejects: RetryRejects = False,
    dask_address: DaskAddress = None,
    recipe: Annotated[str | None, typer.Option(help="JSON, or a file of it, that changes the preset's recipe.")] = None,
    uncompressed: Annotated[bool, typer.Option("--uncompressed", help="Thrice the disk, read thrice as fast.")] = False,
    as_json: Json = False,
) -> None:
    """Convert volumes to shards."""
    run_flow(
        "convert", as_json, data_root=data_root, preset=preset, source=source, split=split, volumes=volumes,
        limit=limit, force=force, retry_rejects=retry_rejects, dask_address=dask_address, recipe=recipe,
        uncompressed=uncompressed,
    )  # fmt: skip


@app.command()
def label(
    data_root: DataRoot = DATA_ROOT,
    labeller: Labeller = LABELLER,
    split: Split = None,
    limit: Limit = None,
    force: Force = False,
    retry_rejects: RetryRejects = False,
    device: Device = "auto",
    dtype: Dtype = Precision.float32,
    as_json: Json = False,
) -> None:
    """Label reports, once a scan."""
    run_flow(
        "label", as_json, data_root=data_root, labeller=labeller, split=split, limit=limit, force=force,
        retry_rejects=retry_rejects, device=device, dtype=dtype,
    )  # fmt: skip


@app.command()
def train_labeller(
    data_root: DataRoot = DATA_ROOT,
    preset: Preset = PRESET,
    kind: Annotated[str, typer.Option(help=f"One of: {', '.join(LABELLER_KINDS)}.")] = LABELLER_KINDS[0],
    hand_labels: Annotated[
        Path | None, typer.Option(help="Train on this CSV instead: AccessionNo, report_text and the 18 labels.")
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Train a report labeller on the ingested reports and labels of the train split."""
    run_flow(
        "train_labeller", as_json, data_root=data_root, preset=preset, kind=kind, hand_labels=hand_labels, force=force
    )


@app.command()
def train(
    data_root: DataRoot = DATA_ROOT,
    preset: Preset = PRESET,
    labeller: Labeller = LABELLER,
    seed: Seed = 0,
    retrain: Retrain = False,
    device: Device = "auto",
    dtype: Dtype = Precision.float32,
    recompute: Recompute = None,
    compile_layers: Annotated[bool, typer.Option("--compile", help="Use PyTorch's compiler.")] = False,
    as_json: Json = False,
) -> None:
    """Train CT-CLIP."""
    run_flow(
        "train", as_json, data_root=data_root, preset=preset, labeller=labeller, seed=seed, retrain=retrain,
        device=device, dtype=dtype, recompute=recompute, compile=compile_layers,
    )  # fmt: skip


@app.command()
def finetune(
    data_root: DataRoot = DATA_ROOT,
    preset: Preset = PRESET,
    kind: Annotated[KindChoice, typer.Option(help="What to train.")] = KindChoice.lipro,
    model: Annotated[str | None, typer.Option(help="The parent's id; default: the preset's latest CT-CLIP.")] = None,
    labels_of: Annotated[str, typer.Option("--labels", help="`published`, or a labeller's id.")] = PUBLISHED_LABELS,
    seed: Seed = 0,
    retrain: Retrain = False,
    device: Device = "auto",
    dtype: Dtype = Precision.float32,
    recompute: Recompute = None,
    as_json: Json = False,
) -> None:
    """Fine-tune CT-CLIP on labels."""
    run_flow(
        "finetune", as_json, data_root=data_root, preset=preset, kind=kind.value, model=model, labels_of=labels_of,
        seed=seed, retrain=retrain, device=device, dtype=dtype, recompute=recompute,
    )  # fmt: skip


@app.command()
def embed(
    data_root: DataRoot = DATA_ROOT,
    preset: Preset = PRESET,
    model: Model = None,
    force: Force = False,
    device: Device = "auto",
    dtype: Dtype = Precision.float32,
    as_json: Json = False,
) -> None:
    """Embed volumes, reports and prompts."""
    run_flow("embed", as_json, data_root=data_root, preset=preset, model=model, force=force, device=device, dtype=dtype)


@app.command()
def evaluate(
    data_root: DataRoot = DATA_ROOT,
    preset: Preset = PRESET,
    model: Model = None,
    split: Annotated[str, typer.Option(help="The split to score.")] = "valid",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Score a model from its latents."""
    run_flow("evaluate", as_json, data_root=data_root, preset=preset, model=model, split=split, force=force)


@app.command()
def report(
    data_root: DataRoot = DATA_ROOT,
    preset: Preset = PRESET,
    model: Model = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write the HTML page of an evaluation."""
    run_flow("report", as_json, data_root=data_root, preset=preset, model=model, force=force)


@app.command()
def rebuild(
    source: Source = None,
    data_root: DataRoot = DATA_ROOT,
    preset: Preset = PRESET,
    labeller: Labeller = LABELLER,
    storage: Storage = None,
    from_stage: Annotated[str, typer.Option("--from", help="The first stage.")] = STAGES[0],
    to_stage: Annotated[str, typer.Option("--to", help="The last stage.")] = STAGES[-1],
    finetune_kinds: FinetuneKinds = ",".join(FINETUNE),
    seed: Seed = 0,
    retrain: Retrain = False,
    force: Force = False,
    retry_rejects: RetryRejects = False,
    dask_address: DaskAddress = None,
    device: Device = "auto",
    dtype: Dtype = Precision.float32,
    as_json: Json = False,
) -> None:
    """Every stage in turn, each doing only what is pending."""
    run_flow(
        "rebuild", as_json, source=source, data_root=data_root, preset=preset, labeller=labeller,
        storage=storage and storage.value, from_stage=from_stage, to_stage=to_stage,
        finetune_kinds=() if finetune_kinds == "none" else tuple(finetune_kinds.split(",")), seed=seed,
        retrain=retrain, force=force, retry_rejects=retry_rejects, dask_address=dask_address, device=device,
        dtype=dtype,
    )  # fmt: skip


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


@app.command()
def status(data_root: DataRoot = DATA_ROOT, as_json: Json = False) -> None:
    """What each stage has done, what is pending, rejected or stale."""
    from tasks.reading import STALE, STATUS, run_query

    if as_json:
        _print_query(data_root, "select * from stage_status", as_json)
        return
    _print_query(data_root, STATUS, as_json)
    for (line,) in run_query(data_root, STALE, [])[1]:
        console.print(line)


@app.command()
def plan(
    stage: StageName,
    data_root: DataRoot = DATA_ROOT,
    limit: Annotated[int, typer.Option(help="At most so many items.")] = 20,
    as_json: Json = False,
) -> None:
    """What a rerun of a stage would do, and why, item by item."""
    from flows.display import print_plan
    from tasks.reading import explain_plan

    explained = explain_plan(data_root, stage, limit)
    print_json(explained) if as_json else print_plan(explained)


@app.command()
def sql(
    query: Annotated[str, typer.Argument(help="SQL, or @name of a saved query.")] = "",
    data_root: DataRoot = DATA_ROOT,
    parameters: Annotated[list[str] | None, typer.Option("--param", help="key=value of a saved query.")] = None,
    list_queries: Annotated[bool, typer.Option("--list", help="List the saved queries.")] = False,
    as_json: Json = False,
) -> None:
    """Query the warehouse, which cannot be changed this way."""
    from tasks.reading import saved_queries

    if list_queries or not query:
        print_rows(("query", "what it answers"), saved_queries(), as_json)
        return
    _print_query(data_root, query, as_json, parameters or [])


@app.command()
def export(
    table: Annotated[str, typer.Argument(help="A table or a view.")],
    data_root: DataRoot = DATA_ROOT,
    file_format: Annotated[FormatChoice, typer.Option("--format")] = FormatChoice.parquet,
    output: Annotated[Path | None, typer.Option("--output", help="Default: ./<table>.<format>.")] = None,
) -> None:
    """Write a table or view of the warehouse to a file."""
    from tasks.reading import export_table

    path = output or Path(f"{table}.{file_format.value}")
    rows = export_table(data_root, table, path, file_format.value)
    console.print(f"{rows} rows in {path}")


@app.command()
def publish(
    data_root: DataRoot = DATA_ROOT,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Remake the warehouse from all records.")
    ] = False,
) -> None:
    """Fold what is recorded but not yet published into the warehouse."""
    from tasks.publish import publish as publish_records

    result = publish_records(data_root.resolve(), from_scratch=from_scratch)
    console.print(
        f"{sum(result.rows.values())} rows from {result.count_files} record files in {result.duration_s:.2f} s"
    )


def _print_query(data_root: Path, query: str, as_json: bool, parameters: list[str] | None = None) -> None:
    from tasks.reading import run_query

    columns, rows = run_query(data_root, query, parameters or [])
    print_rows(columns, rows, as_json)


def main() -> None:
    """Runs the command line: exit code 0, or 1 with one clear line on stderr."""
    run: Callable[..., Any] = app
    try:
        sys.exit(run(standalone_mode=False))
    except CTCLIPError as error:
        _fail(error)
    except TyperException as error:
        _fail(ConfigurationError(getattr(error, "message", "") or "see ctclip --help"))
    except BrokenPipeError:
        sys.exit(1)
    except (KeyboardInterrupt, typer.Abort):
        print("ctclip: interrupted; a rerun goes on from here", file=sys.stderr)
        sys.exit(130)
    except Exception as error:  # noqa: BLE001  one line for a person; the traceback is one option away
        _fail(error, f"{type(error).__name__}: ")


def _fail(error: Exception, prefix: str = "") -> None:
    if os.environ.get("CTCLIP_DEBUG"):
        raise error
    text = " ".join(str(error).split())
    hint = " (--debug shows the traceback)" if prefix else ""
    print(f"ctclip: {prefix}{text}{hint}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    main()
