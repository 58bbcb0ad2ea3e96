"""The demonstration, one command a stage, and the rebuild of them all."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ctclip_model.device import Precision
from flows.commands import app
from flows.commands.options import (
    AtOnce,
    DaskAddress,
    DataRoot,
    Deployed,
    Device,
    DownloadThreads,
    Dtype,
    FinetuneKinds,
    Force,
    Json,
    KeepRaw,
    KindChoice,
    Labeller,
    Limit,
    MaxRate,
    Model,
    Preset,
    Processes,
    RawCache,
    Recompute,
    Retrain,
    RetryRejects,
    Revision,
    Seed,
    Source,
    Split,
    Storage,
    UnitChoice,
    Volumes,
)
from flows.commands.running import run_flow
from tasks.settings import (
    DATA_ROOT,
    DOWNLOAD_THREADS,
    FINETUNE,
    LABELLER,
    LABELLER_KINDS,
    PRESET,
    PUBLISHED_LABELS,
    RAW_CACHE_GB,
    STAGES,
)


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
    revision: Revision = None,
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
        orientation=orientation, revision=revision,
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
    raw_cache_gb: RawCache = RAW_CACHE_GB,
    keep_raw: KeepRaw = False,
    download_threads: DownloadThreads = DOWNLOAD_THREADS,
    max_mb_per_s: MaxRate = None,
    as_json: Json = False,
) -> None:
    """Convert volumes to shards."""
    run_flow(
        "convert", as_json, data_root=data_root, preset=preset, source=source, split=split, volumes=volumes,
        limit=limit, force=force, retry_rejects=retry_rejects, dask_address=dask_address, recipe=recipe,
        uncompressed=uncompressed, raw_cache_gb=raw_cache_gb, keep_raw=keep_raw, download_threads=download_threads,
        max_mb_per_s=max_mb_per_s,
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
    hand_labels: Annotated[
        Path | None, typer.Option(help="Score the labeller on this CSV: AccessionNo, report_text and the 18 labels.")
    ] = None,
    trained_on: Annotated[
        Path | None, typer.Option(help="A CSV of the reports that an imported labeller was trained on.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Label reports, once a scan."""
    run_flow(
        "label", as_json, data_root=data_root, labeller=labeller, split=split, limit=limit, force=force,
        retry_rejects=retry_rejects, device=device, dtype=dtype, hand_labels=hand_labels, trained_on=trained_on,
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
    device: Device = "auto",
    dtype: Dtype = Precision.float32,
    processes: Processes = None,
    deployed: Deployed = False,
    as_json: Json = False,
) -> None:
    """Train a report labeller on the ingested reports and labels of the train split."""
    run_flow(
        "train_labeller", as_json, data_root=data_root, preset=preset, kind=kind, hand_labels=hand_labels, force=force,
        device=device, dtype=dtype, processes=processes, deployed=deployed,
    )  # fmt: skip


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
    processes: Processes = None,
    nodes: Annotated[int, typer.Option(min=1, help="Machines; the log says what the others are to run.")] = 1,
    rendezvous: Annotated[str | None, typer.Option(help="HOST:PORT of this node, where several meet.")] = None,
    sharded: Annotated[
        bool, typer.Option("--sharded", help="Share the weights out over the processes (FSDP2).")
    ] = False,
    at_once: AtOnce = None,
    validate_every: Annotated[
        int, typer.Option(min=0, help="Steps between two zero-shot scores on scans held out for it; 0: never.")
    ] = 0,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write event files too.")] = False,
    deployed: Deployed = False,
    as_json: Json = False,
) -> None:
    """Train CT-CLIP."""
    run_flow(
        "train", as_json, data_root=data_root, preset=preset, labeller=labeller, seed=seed, retrain=retrain,
        device=device, dtype=dtype, recompute=recompute, compile=compile_layers, processes=processes, nodes=nodes,
        rendezvous=rendezvous, sharded=sharded, encoded_at_once=at_once, validate_every=validate_every,
        tensorboard=tensorboard, deployed=deployed,
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
    processes: Processes = None,
    at_once: AtOnce = None,
    deployed: Deployed = False,
    as_json: Json = False,
) -> None:
    """Fine-tune CT-CLIP on labels."""
    run_flow(
        "finetune", as_json, data_root=data_root, preset=preset, kind=kind.value, model=model, labels_of=labels_of,
        seed=seed, retrain=retrain, device=device, dtype=dtype, recompute=recompute, processes=processes,
        encoded_at_once=at_once, deployed=deployed,
    )  # fmt: skip


@app.command()
def embed(
    data_root: DataRoot = DATA_ROOT,
    preset: Preset = PRESET,
    model: Model = None,
    force: Force = False,
    device: Device = "auto",
    dtype: Dtype = Precision.float32,
    deployed: Deployed = False,
    as_json: Json = False,
) -> None:
    """Embed volumes, reports and prompts."""
    run_flow(
        "embed", as_json, data_root=data_root, preset=preset, model=model, force=force, device=device, dtype=dtype,
        deployed=deployed,
    )  # fmt: skip


@app.command()
def evaluate(
    data_root: DataRoot = DATA_ROOT,
    preset: Preset = PRESET,
    model: Model = None,
    split: Annotated[str | None, typer.Option(help="The split to score; default: all held out.")] = None,
    unit: Annotated[UnitChoice, typer.Option(help="What a row is.")] = UnitChoice.scan,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Score a model from its latents."""
    run_flow(
        "evaluate", as_json, data_root=data_root, preset=preset, model=model, split=split, unit=unit.value, force=force
    )


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
    model: Annotated[str | None, typer.Option(help="Embed and evaluate this one; nothing is trained.")] = None,
    revision: Revision = None,
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
    raw_cache_gb: RawCache = RAW_CACHE_GB,
    keep_raw: KeepRaw = False,
    download_threads: DownloadThreads = DOWNLOAD_THREADS,
    max_mb_per_s: MaxRate = None,
    deployed: Annotated[
        bool, typer.Option("--deployed", help="Each stage as its deployment, on a worker of its pool.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Every stage in turn, each doing only what is pending."""
    run_flow(
        "rebuild", as_json, source=source, data_root=data_root, preset=preset, labeller=labeller,
        model=model, storage=storage and storage.value, from_stage=from_stage, to_stage=to_stage,
        finetune_kinds=() if finetune_kinds == "none" else tuple(finetune_kinds.split(",")), seed=seed,
        retrain=retrain, force=force, retry_rejects=retry_rejects, dask_address=dask_address, device=device,
        dtype=dtype, revision=revision, raw_cache_gb=raw_cache_gb, keep_raw=keep_raw, download_threads=download_threads,
        max_mb_per_s=max_mb_per_s, deployed=deployed,
    )  # fmt: skip
