"""Commands that read the warehouse, publish it, or collect garbage."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ctclip_model.device import Precision
from ctclip_model.errors import ConfigurationError
from ctclip_model.files import is_stream
from flows.display import console, print_json, print_plan, print_rows
from flows.options import DataRoot, Device, Dtype, Json, Limit, Split, Volumes
from tasks.settings import DATA_ROOT, STAGES

if TYPE_CHECKING:
    from tasks.run.selection import Selection

Format = Literal["parquet", "csv", "safetensors", "ct-chat"]
IMAGE_ENCODER = "image-encoder"  # export of a model's weights
LINEAGE = "lineage"  # export of a run's events


def status(data_root: DataRoot = DATA_ROOT, as_json: Json = False) -> None:
    """Show done, pending, rejected and stale items by stage."""
    from tasks.run.lost import list_lost
    from tasks.upkeep.queries import list_absent_encoders, list_notes, list_stale_models, list_warnings, read_status

    if as_json:
        print_rows(*read_status(data_root, "from stage_status"), as_json)
        return
    print_rows(*read_status(data_root), is_last_folded=True)
    notes = (list_notes, list_lost, list_absent_encoders, list_stale_models, list_warnings)
    for line in (line for list_lines in notes for line in list_lines(data_root)):
        console.print(line, markup=False)
    _print_next_runs()


def _print_next_runs() -> None:
    from tasks.upkeep.prefect_server import list_next_runs

    try:
        runs = list_next_runs()
    except OSError as error:
        console.print(f"next runs: the Prefect server does not answer ({error})")
        return
    if runs:
        console.print("next: " + ", ".join(f"{name} at {at:%m-%d %H:%M} UTC" for name, at in runs))


def gc(
    data_root: DataRoot = DATA_ROOT,
    delete: Annotated[bool, typer.Option("--delete", help="Delete the listed files.")] = False,
    compact: Annotated[
        bool,
        typer.Option("--compact", help="Rewrite shards that are mostly superseded. A later run deletes the old files."),
    ] = False,
    keep_raw: Annotated[bool, typer.Option("--keep-raw", help="Keep raw files of converted volumes.")] = False,
    as_json: Json = False,
) -> None:
    """List files that nothing needs, and delete them on request.

    Shards of which a part is superseded are listed too.
    """
    from tasks.upkeep.garbage import collect_garbage

    found = collect_garbage(data_root, delete=delete, compact_shards=compact, keep_raw=keep_raw)
    root = data_root.resolve()
    garbage = [(str(one.path.relative_to(root)), one.size_bytes, one.reason) for one in found.garbage]
    thin = [(shard.shard_path, shard.size_bytes, f"{shard.dead_share:.0%} superseded") for shard in found.thin]
    if as_json or garbage or thin:
        print_rows(("path", "bytes", "why"), garbage + thin, as_json)
    if as_json:
        return
    total_gb = sum(size for _, size, _ in garbage) / 1e9
    state = "deleted" if delete else "can be deleted: use --delete"
    console.print(f"{total_gb:.3g} GB in {len(garbage)} files and folders {state}" if garbage else "nothing to collect")
    if thin:
        done = f"{found.count_compacted} shards were rewritten" if compact else "--compact rewrites the half dead ones"
        console.print(f"{len(thin)} shards are superseded in part: {done}")


def plan(
    stage: Annotated[str, typer.Argument(help=f"Name of a stage: {', '.join(STAGES)}.")],
    data_root: DataRoot = DATA_ROOT,
    preset: Annotated[str | None, typer.Option(help="Name of a preset. Default: as in the stage's last run.")] = None,
    labeller: Annotated[str | None, typer.Option(help="Id of a labeller. Default: as in the stage's last run.")] = None,
    findings: Annotated[
        Path | None, typer.Option(help="TOML file of the label set that openai:MODEL is asked about.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Id of a model. Default: each model of the stage's runs.")] = None,
    limit: Annotated[int, typer.Option(help="Largest number of items to show.")] = 20,
    input_price: Annotated[
        float | None, typer.Option(min=0, help="Price of a million input tokens of openai:MODEL.")
    ] = None,
    output_price: Annotated[
        float | None, typer.Option(min=0, help="Price of a million output tokens of openai:MODEL.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show the work of a stage's next run, and the reasons.

    A reason names the part of an item's fingerprint that changed. A labelling by a language model has an estimate of
    its requests, tokens and time, and of its cost at the given prices.
    """
    from tasks.labels.estimate import Prices
    from tasks.plan.explain import explain_plan

    given = {"preset": preset, "labeller": labeller, "model": model}
    given |= {"findings": None if findings is None else str(findings)}
    has_price = input_price is not None or output_price is not None
    prices = Prices(input_price or 0, output_price or 0) if has_price else None
    explained = explain_plan(data_root, stage, limit, given, prices)
    print_json(explained) if as_json else print_plan(explained)


def sql(
    query: Annotated[str, typer.Argument(help="SQL, or @name of a saved query.")] = "",
    data_root: DataRoot = DATA_ROOT,
    parameters: Annotated[
        list[str] | None, typer.Option("--param", help="Parameter of a saved query, as key=value.")
    ] = None,
    list_queries: Annotated[bool, typer.Option("--list", help="List saved queries.")] = False,
    as_json: Json = False,
) -> None:
    """Query the warehouse, read-only."""
    from tasks.upkeep.queries import list_saved_queries

    if list_queries or not query:
        print_rows(("query", "answer"), list_saved_queries(), as_json)
        return
    _print_query(data_root, query, as_json, parameters or [])


def export(
    table: Annotated[
        str, typer.Argument(help="Table, view, `latents`, `tokens`, `image-encoder`, or `lineage` of a run.")
    ],
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="With lineage: id of a run, or a stage for its latest.")
    ] = None,
    data_root: DataRoot = DATA_ROOT,
    file_format: Annotated[
        Format | None, typer.Option("--format", help="Format. Default: parquet, or safetensors for tokens.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="File to write, or - for standard output. Default: ./TABLE.FORMAT.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Id of the model. Latents: default all models.")] = None,
    encoded_tokens: Annotated[
        bool, typer.Option("--encoded-tokens", help="With latents: the same as `ctclip export tokens`.")
    ] = False,
    split: Split = None,
    volumes: Volumes = None,
    limit: Limit = None,
    device: Device = "auto",
    dtype: Dtype = Precision.float32,
) -> None:
    """Write a table, a view or a model's output to a file.

    `latents` are the current ones of volumes, with the columns name, model and vector. `tokens` computes the image
    encoder's tokens before pooling, into one file for each volume in the folder --output. A rerun goes on from there.
    `image-encoder` writes the encoder's state dict. With --format ct-chat, CT-CHAT's training reads the tokens.
    `lineage` writes the OpenLineage events of a run.
    """
    from tasks.run.selection import Selection
    from tasks.upkeep.queries import export_table

    selection = Selection(split, volumes, limit)
    if (run is None) == (table == LINEAGE):
        raise ConfigurationError("`ctclip export lineage RUN` takes a run or a stage, and no other export does")
    if run is not None:
        _export_lineage(data_root, run, output, file_format)
        return
    if table == "tokens" or (table == "latents" and encoded_tokens):
        _export_tokens(data_root, model, selection, output, file_format, device, dtype)
        return
    if table == "latents":
        _export_latents(data_root, model, selection, output, file_format)
        return
    if encoded_tokens or selection != Selection() or (model and table != IMAGE_ENCODER):
        raise ConfigurationError(
            "--model, --encoded-tokens, --split, --volumes and --limit are for `ctclip export latents` and `tokens`"
        )
    if table == IMAGE_ENCODER:
        _export_image_encoder(data_root, model, output, file_format)
        return
    if file_format not in (None, "parquet", "csv"):
        raise ConfigurationError(f"a table is written as parquet or csv, not as {file_format}")
    path = output or Path(f"{table}.{file_format or 'parquet'}")
    count = export_table(data_root, table, path, file_format or "parquet")
    _say_written(count, path)


def _export_latents(
    data_root: Path, model: str | None, selection: Selection, output: Path | None, file_format: Format | None
) -> None:
    from tasks.evaluation.export import export_latents

    if file_format not in (None, "parquet"):
        raise ConfigurationError("latents are written as Parquet, and tokens as safetensors or for CT-CHAT")
    path = output or Path("latents.parquet")
    _say_written(export_latents(data_root, model, selection, path), path)


def _export_tokens(
    data_root: Path,
    model: str | None,
    selection: Selection,
    output: Path | None,
    file_format: Format | None,
    device: str,
    dtype: Precision,
) -> None:
    from flows.commands.running import showing_progress
    from tasks.evaluation.export import export_tokens
    from tasks.evaluation.token_files import TOKEN_FILES

    file_type = TOKEN_FILES.get(file_format or "safetensors")
    if file_type is None:
        raise ConfigurationError(f"tokens are written as {' or '.join(TOKEN_FILES)}, not as {file_format}")
    if model is None:
        raise ConfigurationError("tokens need a model: name it with --model")
    folder = output or Path("encoded-tokens")
    with showing_progress():
        made, kept = export_tokens(data_root, model, selection, folder, device, dtype, file_type)
    console.print(f"{made} files written in {folder}, {kept} were there")


def _export_lineage(data_root: Path, run: str, output: Path | None, file_format: Format | None) -> None:
    from tasks.upkeep.lineage import export_lineage

    if file_format is not None:
        raise ConfigurationError("lineage is written as lines of JSON: leave --format out")
    path = output or Path("lineage.jsonl")
    count = export_lineage(data_root, run, path)
    typer.echo(f"{count} events in {path}", err=is_stream(path))


def _export_image_encoder(data_root: Path, model: str | None, output: Path | None, file_format: Format | None) -> None:
    from tasks.evaluation.export import export_image_encoder

    if file_format not in (None, "ct-chat"):
        raise ConfigurationError("an image encoder is written as CT-CHAT loads it: leave --format out")
    path = output or Path("clip_visual_encoder.pth")
    name = export_image_encoder(data_root / "models", model, path)
    typer.echo(f"image encoder of {name} in {path}", err=is_stream(path))


def _say_written(count_rows: int, path: Path) -> None:
    """Says how many rows a file has: on stderr if the file is a stream, which holds them alone."""
    typer.echo(f"{count_rows} rows in {path}", err=is_stream(path))


def publish(
    data_root: DataRoot = DATA_ROOT,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Build the warehouse again from all records.")
    ] = False,
) -> None:
    """Fold new records into the warehouse."""
    from tasks.run.publish import publish as publish_records

    result = publish_records(data_root.resolve(), from_scratch=from_scratch)
    console.print(
        f"{sum(result.rows.values())} rows from {result.count_files} record files in {result.duration_s:.2f} s"
    )


def _print_query(data_root: Path, query: str, as_json: bool, parameters: list[str] | None = None) -> None:
    from tasks.upkeep.queries import run_query

    columns, rows = run_query(data_root, query, parameters or [])
    print_rows(columns, rows, as_json)


def backup(
    target: Annotated[Path, typer.Argument(help="Folder of the backup. A later backup copies only what is new.")],
    data_root: DataRoot = DATA_ROOT,
) -> None:
    """Copy records and models, also while stages run."""
    from tasks.upkeep.backup import back_up

    console.print(f"{back_up(data_root, target)} files copied to {target}")


def restore(
    source: Annotated[Path, typer.Argument(help="Folder of a backup.")], data_root: DataRoot = DATA_ROOT
) -> None:
    """Copy a backup into an empty data root."""
    from tasks.upkeep.backup import restore as restore_from

    console.print(f"{restore_from(source, data_root)} files copied to {data_root}")


def verify(data_root: DataRoot = DATA_ROOT, as_json: Json = False) -> None:
    """Compare the checksums of records, shards and models.

    Every file is read. A damaged or lost one has a line with the command that makes it again, and the exit code is 1.
    """
    from dataclasses import asdict

    from flows.commands.running import showing_progress
    from tasks.upkeep.verify import verify as verify_files

    with showing_progress():
        found = verify_files(data_root)
    if as_json:
        print_json(asdict(found))
    else:
        for damage in found.damages:
            console.print(f"{damage.path} {damage.fault}. Remedy: {damage.remedy}", markup=False, soft_wrap=True)
        counts = f"{found.count_records} record files, {found.count_shards} shards and {found.count_models} models"
        console.print(f"{counts} read, {len(found.damages) or 'none'} damaged")
    if found.damages:
        raise typer.Exit(1)
