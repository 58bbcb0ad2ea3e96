"""What the warehouse knows: status, plans, SQL and exports; and its publishing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ctclip_model.device import Precision
from ctclip_model.errors import ConfigurationError
from flows.commands import app
from flows.commands.options import (
    DataRoot,
    Device,
    Dtype,
    FormatChoice,
    Json,
    Limit,
    Split,
    StageName,
    Volumes,
)
from flows.display import console, print_json, print_rows
from tasks.settings import DATA_ROOT

if TYPE_CHECKING:
    from tasks.run.pending import Selection


@app.command()
def status(data_root: DataRoot = DATA_ROOT, as_json: Json = False) -> None:
    """What each stage has done, what is pending, rejected or stale."""
    from tasks.upkeep.queries import list_stale_models, read_status

    if as_json:
        _print_query(data_root, "select * from stage_status", as_json)
        return
    print_rows(*read_status(data_root))
    for line in list_stale_models(data_root):
        console.print(line)
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


@app.command()
def gc(
    data_root: DataRoot = DATA_ROOT,
    delete: Annotated[bool, typer.Option("--delete", help="Delete it, too.")] = False,
    compact: Annotated[
        bool, typer.Option("--compact", help="Rewrite shards that are mostly superseded; their old files go later.")
    ] = False,
    keep_raw: Annotated[bool, typer.Option("--keep-raw", help="Leave the raw files of converted volumes.")] = False,
    as_json: Json = False,
) -> None:
    """List the files that nothing needs any more, and shards that are dead in part; the former go with --delete."""
    from tasks.upkeep.garbage import collect_garbage

    found = collect_garbage(data_root, delete=delete, compact_shards=compact, keep_raw=keep_raw)
    root = data_root.resolve()
    rows = [(str(one.path.relative_to(root)), one.size_bytes, one.reason) for one in found.garbage]
    thin = [(one.shard_path, one.size_bytes, f"{one.dead_share:.0%} superseded") for one in found.thin]
    if as_json or rows or thin:
        print_rows(("path", "bytes", "why"), rows + thin, as_json)
    if not as_json:
        total = sum(size for _, size, _ in rows) / 1e9
        state = "deleted" if delete else "could go: --delete deletes it"
        console.print(f"{total:.3g} GB in {len(rows)} files and folders {state}" if rows else "nothing to collect")
        if thin:
            done = f"{found.count_compacted} shards made anew" if compact else "--compact rewrites those half dead"
            console.print(f"{len(thin)} shards are superseded in part: {done}")


@app.command()
def plan(
    stage: StageName,
    data_root: DataRoot = DATA_ROOT,
    preset: Annotated[str | None, typer.Option(help="Default: as the stage was called last.")] = None,
    labeller: Annotated[str | None, typer.Option(help="Default: as the stage was called last.")] = None,
    model: Annotated[str | None, typer.Option(help="Default: every one that the stage has worked on.")] = None,
    limit: Annotated[int, typer.Option(help="At most so many items.")] = 20,
    as_json: Json = False,
) -> None:
    """What a rerun of a stage would do, and why: which part of what each item is made from has moved."""
    from flows.display import print_plan
    from tasks.plan.explain import explain_plan

    explained = explain_plan(data_root, stage, limit, {"preset": preset, "labeller": labeller, "model": model})
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
    from tasks.upkeep.queries import list_saved_queries

    if list_queries or not query:
        print_rows(("query", "what it answers"), list_saved_queries(), as_json)
        return
    _print_query(data_root, query, as_json, parameters or [])


@app.command()
def export(
    table: Annotated[str, typer.Argument(help="A table or a view.")],
    data_root: DataRoot = DATA_ROOT,
    file_format: Annotated[FormatChoice, typer.Option("--format")] = FormatChoice.parquet,
    output: Annotated[Path | None, typer.Option("--output", help="Default: ./<table>.<format>.")] = None,
    model: Annotated[str | None, typer.Option(help="Whose latents; default: every model's.")] = None,
    encoded_tokens: Annotated[
        bool, typer.Option("--encoded-tokens", help="The image encoder's tokens in place of latents.")
    ] = False,
    split: Split = None,
    volumes: Volumes = None,
    limit: Limit = None,
    device: Device = "auto",
    dtype: Dtype = Precision.float32,
) -> None:
    """Write a table or view of the warehouse to a file.

    Of `latents` the volumes' present ones: name, model, vector. With --encoded-tokens the tokens before pooling, which
    are computed: a safetensors file a volume in the folder --output; a rerun goes on where the last one ended.
    """
    from tasks.run.pending import Selection
    from tasks.upkeep.queries import export_table

    selection = Selection(split, volumes, limit)
    if table == "latents":
        _export_latents(data_root, model, selection, output, encoded_tokens, file_format, device, dtype)
        return
    if model or encoded_tokens or selection != Selection():
        raise ConfigurationError(
            "--model, --encoded-tokens, --split, --volumes and --limit are for `ctclip export latents`"
        )
    path = output or Path(f"{table}.{file_format.value}")
    rows = export_table(data_root, table, path, file_format.value)
    console.print(f"{rows} rows in {path}")


def _export_latents(
    data_root: Path,
    model: str | None,
    selection: Selection,
    output: Path | None,
    encoded_tokens: bool,
    file_format: FormatChoice,
    device: str,
    dtype: Precision,
) -> None:
    from flows.commands.running import showing_progress
    from tasks.evaluation.export import export_latents, export_tokens

    if file_format is not FormatChoice.parquet:
        raise ConfigurationError("latents are written as Parquet, and tokens as safetensors")
    if not encoded_tokens:
        path = output or Path("latents.parquet")
        console.print(f"{export_latents(data_root, model, selection, path)} rows in {path}")
        return
    if model is None:
        raise ConfigurationError("--encoded-tokens are of one model: name it with --model")
    folder = output or Path("encoded-tokens")
    with showing_progress():
        made, kept = export_tokens(data_root, model, selection, folder, device, dtype)
    console.print(f"{made} files written in {folder}, {kept} were there")


@app.command()
def publish(
    data_root: DataRoot = DATA_ROOT,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Remake the warehouse from all records.")
    ] = False,
) -> None:
    """Fold what is recorded but not yet published into the warehouse."""
    from tasks.run.publish import publish as publish_records

    result = publish_records(data_root.resolve(), from_scratch=from_scratch)
    console.print(
        f"{sum(result.rows.values())} rows from {result.count_files} record files in {result.duration_s:.2f} s"
    )


def _print_query(data_root: Path, query: str, as_json: bool, parameters: list[str] | None = None) -> None:
    from tasks.upkeep.queries import run_query

    columns, rows = run_query(data_root, query, parameters or [])
    print_rows(columns, rows, as_json)
