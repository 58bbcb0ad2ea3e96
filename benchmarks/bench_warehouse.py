"""A warehouse of all of CT-RATE: loading and publishing its records, each view, `ctclip status`, and the index page.

Usage: python benchmarks/bench_warehouse.py [CSV of labels ...]
The CSVs are CT-RATE's own, with VolumeName and a column per abnormality. Without them the same number of names and
labels is made up. Five models score every scan, and every volume has a latent of 512.
"""

from __future__ import annotations

import csv
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
from bench_planning import RECIPE, made_up_names, volume_row

from ctclip_model.data.abnormalities import ABNORMALITIES
from ctclip_model.data.names import VolumeName, parse_volume_name
from tasks.report.index import write_index
from tasks.run.records import RecordWriter, new_run_id
from warehouse import schema, store

MODELS = tuple(f"model-{number}" for number in range(5))
LATENT = 512
ROWS_PER_FILE = 20_000
RUNS = 3
LIMITS_S = {"load": 60.0, "publish": 5.0, "view": 1.0, "status": 2.0, "index": 2.0}
ROOT = Path(__file__).parent.parent

Result = TypeVar("Result")


def main() -> None:
    names, labels = read_labels([Path(path) for path in sys.argv[1:]]) if sys.argv[1:] else made_up_labels()
    with tempfile.TemporaryDirectory() as folder:
        data_root = Path(folder)
        write_records(data_root, names, labels)
        result, load_s = timed(lambda: store.publish(data_root))
        size = (data_root / store.WAREHOUSE_FILE).stat().st_size
        print(f"{len(names)} volumes, {sum(result.rows.values()):,} rows, {size / 1e6:.0f} MB")
        report("load", load_s, LIMITS_S["load"])
        report("publish of one more run", statistics.median(publish_more(data_root)), LIMITS_S["publish"])
        report("publish of nothing", timed(lambda: store.publish(data_root))[1], LIMITS_S["publish"])
        report("`ctclip status`", statistics.median(run_status(data_root)), LIMITS_S["status"])
        report("index page", timed(lambda: write_index(data_root))[1], LIMITS_S["index"])
        measure_views(data_root)


def read_labels(paths: list[Path]) -> tuple[list[VolumeName], np.ndarray]:
    """Names of the volumes, and their labels (volumes, 18)."""
    rows = [row for path in paths for row in csv.DictReader(path.open(encoding="utf-8-sig"))]
    labels = np.array([[int(float(row[name])) for name in ABNORMALITIES] for row in rows], np.int8)
    return [parse_volume_name(row["VolumeName"]) for row in rows], labels


def made_up_labels() -> tuple[list[VolumeName], np.ndarray]:
    names = made_up_names()
    return names, np.random.default_rng(0).integers(0, 2, (len(names), len(ABNORMALITIES)), np.int8)


def write_records(data_root: Path, names: list[VolumeName], labels: np.ndarray) -> None:
    """Writes records as ingest, convert, embed and evaluate leave them, in files of the same size."""
    writer = RecordWriter(data_root, new_run_id(data_root))
    writer.write("runs", [{"run_id": writer.run_id, "status": "running", "stage": "ingest", "variant": ""}])
    first = {name.scan_id: row for row, name in reversed(list(enumerate(names)))}
    scans = sorted(first)
    by_scan = labels[[first[scan] for scan in scans]]  # (scans, 18)
    writer.write("sources", [{"source": "file:///ct-rate", "revision": "1", "kind": "ct-rate"}])
    writer.write("volumes", [volume_row(name, "f") | {"metadata": {"Rows": "512"}} for name in names])
    writer.write(
        "reports", [{"scan_id": scan, "findings": f"Findings of {scan}.", "fingerprint": "r"} for scan in scans]
    )
    writer.write("published_labels", scan_rows(scans, fingerprint="f", value=by_scan.ravel()))
    writer.write(
        "labels",
        scan_rows(
            scans, fingerprint="f", labeller_id="tfidf", value=by_scan.ravel(), probability=by_scan.ravel() * 0.9
        ),
    )
    converted = {"recipe_id": RECIPE.recipe_id, "fingerprint": "f", "shard_path": "shards/0.arrow"}
    writer.write("shard_volumes", [converted | {"volume_name": str(name), "row_index": 0} for name in names])
    wanted = {"stage": "convert", "variant": RECIPE.recipe_id, "fingerprint": "f"}
    writer.write("wanted", [wanted | {"item": str(name)} for name in names])
    write_latents(writer, names)
    for seed, model in enumerate(MODELS):
        write_predictions(writer, model, scans, by_scan, seed)


def scan_rows(scans: list[str], **columns: object) -> pa.Table:
    """One row per scan and abnormality. A column is given as one value, or as an array (scans x 18,)."""
    count = len(scans) * len(ABNORMALITIES)
    table = pa.table({"abnormality": list(ABNORMALITIES) * len(scans)})
    table = table.append_column("scan_id", pa.array(np.repeat(scans, len(ABNORMALITIES))))
    for name, value in columns.items():
        table = table.append_column(name, pa.array(value if isinstance(value, np.ndarray) else [value] * count))
    return table


def write_latents(writer: RecordWriter, names: list[VolumeName]) -> None:
    generator = np.random.default_rng(0)
    items = [str(name) for name in names]
    embed = {"stage": "embed", "variant": MODELS[0], "fingerprint": "l"}
    writer.write("wanted", [embed | {"item": f"volume:{item}"} for item in items])
    for start in range(0, len(items), ROWS_PER_FILE):
        chunk = items[start : start + ROWS_PER_FILE]
        latents = generator.standard_normal((len(chunk), LATENT), np.float32)
        latents /= np.linalg.norm(latents, axis=1, keepdims=True)
        columns = {"model_id": MODELS[0], "kind": "volume", "fingerprint": "l"}
        table = pa.table({name: [value] * len(chunk) for name, value in columns.items()} | {"item": chunk})
        offsets = np.arange(0, latents.size + 1, LATENT, dtype=np.int32)
        writer.write("latents", table.append_column("latent", pa.ListArray.from_arrays(offsets, latents.ravel())))


def write_predictions(writer: RecordWriter, model: str, scans: list[str], labels: np.ndarray, seed: int) -> None:
    """Writes predictions of every scan. Each split is an evaluation of its own, as in a rebuild."""
    scored = {"model_id": model, "dataset": "ct-rate", "protocol": "zero-shot", "unit": "scan", "fingerprint": "e"}
    noise = np.random.default_rng(seed).random(labels.shape)
    for split in ("train", "valid"):
        mine = np.array([scan.startswith(split) for scan in scans])
        probabilities = (labels[mine] + noise[mine]) / 2
        chosen = [scan for scan, is_mine in zip(scans, mine, strict=True) if is_mine]
        rows = scan_rows(chosen, split=split, probability=probabilities.ravel(), **scored)
        writer.write(
            "predictions", rows.rename_columns(["item" if name == "scan_id" else name for name in rows.column_names])
        )
        writer.write(
            "metrics",
            [
                scored
                | {"split": split, "label_source": "published", "abnormality": name, "metric": "auroc", "value": 0.7}
                | {"n": len(chosen)}
                for name in (*ABNORMALITIES, "macro")
            ],
        )


def publish_more(data_root: Path) -> list[float]:
    """Seconds of publishes that each find one small new run, as between two pieces of a stage."""
    durations = []
    for _ in range(RUNS):
        writer = RecordWriter(data_root, new_run_id(data_root))
        writer.write("runs", [{"run_id": writer.run_id, "status": "running", "stage": "convert", "variant": ""}])
        writer.write("exclusions", [{"volume_name": "train_1_a_1", "reason": "no_chest", "is_withdrawn": True}])
        durations.append(timed(lambda: store.publish(data_root))[1])
    return durations


def run_status(data_root: Path) -> list[float]:
    """Wall seconds of the command, Python's start included."""
    command = [sys.executable, "-m", "flows", "status", "--data-root", str(data_root)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return [
        timed(lambda: subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True))[1]
        for _ in range(RUNS)
    ]


def measure_views(data_root: Path) -> None:
    """Times a count and a hash of every view's rows. With `count(*)` alone DuckDB would skip columns."""
    durations = {}
    for view in schema.view_definitions():
        with store.read(data_root) as connection:
            query = f"select count(*), bit_xor(hash(rows)) from {view} as rows"
            durations[view] = timed(lambda connection=connection, query=query: connection.execute(query).fetchall())[1]
    slowest = sorted(durations, key=durations.__getitem__, reverse=True)
    for view in slowest[:5]:
        report(f"view {view}", durations[view], LIMITS_S["view"])
    print(f"all {len(durations)} views: {sum(durations.values()):.2f} s")


def timed(call: Callable[[], Result]) -> tuple[Result, float]:
    started = time.perf_counter()
    result = call()
    return result, time.perf_counter() - started


def report(name: str, seconds: float, limit_s: float) -> None:
    print(f"{name}: {seconds:.2f} s, {'within' if seconds <= limit_s else 'BEYOND'} {limit_s:g} s")


if __name__ == "__main__":
    main()
