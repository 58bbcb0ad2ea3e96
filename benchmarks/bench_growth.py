"""Growth with the number of volumes: planning, publishing, status, views and the index page, and the exponent of each.

Names, reports and labels are made up. Every volume is converted and labelled, and has a latent of 16.

Usage: python benchmarks/bench_growth.py COUNT COUNT ...
"""

from __future__ import annotations

import math
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from measure import machine

from ctclip_model.config import Recipe
from ctclip_model.data.abnormalities import ABNORMALITIES
from tasks.report.index import write_index
from tasks.run.pending import plan_items
from tasks.run.records import RecordWriter, new_run_id
from tasks.run.stage_run import open_run
from tasks.upkeep.queries import read_status
from tasks.volumes.jobs import fingerprint_volumes, read_rows
from warehouse import store

RECIPE = Recipe()
COUNT_CHANGED = 1000
LATENT = 16
VIEWS = ("stage_status", "pending", "scans", "training_samples", "label_prevalence")


def main() -> None:
    counts = [int(argument) for argument in sys.argv[1:]]
    measured = [measure(count) for count in counts]
    print(f"{machine()}, CPU seconds, once each")
    print("| | " + " | ".join(f"{count:,}" for count in counts) + " | exponent |")
    print("|---|" + "---|" * (len(counts) + 1))
    for name in measured[0]:
        values = [one[name] for one in measured]
        print(f"| {name} | " + " | ".join(f"{value:.2f}" for value in values) + f" | {exponent(counts, values):.2f} |")


def exponent(counts: list[int], values: list[float]) -> float:
    """Slope of the logarithms between the two largest counts: 1 is linear."""
    return math.log(values[-1] / values[-2]) / math.log(counts[-1] / counts[-2]) if len(counts) > 1 else math.nan


def measure(count: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        data_root = Path(folder)
        write_records(data_root, count)
        found = {"publish of everything": cpu_seconds(lambda: store.publish(data_root))}
        found["first plan of the conversion"] = cpu_seconds(lambda: plan(data_root, is_first=True))
        found["plan with nothing to do"] = cpu_seconds(lambda: plan(data_root))
        change(data_root)
        found[f"publish of {COUNT_CHANGED} changed volumes"] = cpu_seconds(lambda: store.publish(data_root))
        found["publish of nothing"] = cpu_seconds(lambda: store.publish(data_root))
        found["status"] = cpu_seconds(lambda: read_status(data_root))
        for view in VIEWS:
            sql = f"select count(*), bit_xor(hash(rows)) from {view} as rows"
            found[f"view {view}"] = cpu_seconds(lambda sql=sql: store.query(data_root, sql))
        found["index page"] = cpu_seconds(lambda: write_index(data_root))
        file = data_root / store.WAREHOUSE_FILE
        found["warehouse, GB"] = file.stat().st_size / 1e9
        found["copy of the warehouse, wall"] = wall_seconds(lambda: store._copy(file, data_root / "copy"))
        return found


def cpu_seconds(call: Callable[[], object]) -> float:
    started = time.process_time()
    call()
    return time.process_time() - started


def wall_seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def plan(data_root: Path, *, is_first: bool = False) -> None:
    """Plans the conversion. The first time, records every volume as converted without converting it."""
    with open_run(data_root, "convert", RECIPE.recipe_id) as run:
        pending = plan_items(run, RECIPE.recipe_id, fingerprint_volumes(read_rows(data_root), RECIPE))
        assert bool(pending) == is_first
        if pending:
            shards = [f"shards/{RECIPE.recipe_id}/{row // 512:06d}.arrow" for row in range(len(pending))]
            columns = {"volume_name": [*pending], "fingerprint": [*pending.values()], "shard_path": shards}
            run.record("shard_volumes", fill(pa.table(columns), recipe_id=RECIPE.recipe_id, row_index=0))


def change(data_root: Path) -> None:
    """Records new files of some volumes."""
    writer = start_run(data_root, "ingest")
    writer.write("volumes", make_volumes(make_names(COUNT_CHANGED), "changed"))


def write_records(data_root: Path, count: int) -> None:
    writer = start_run(data_root, "ingest")
    names = make_names(count)
    scans = pc.unique(names["scan_id"])
    writer.write("sources", [{"source": "file:///made-up", "revision": "1", "kind": "ct-rate"}])
    writer.write("volumes", make_volumes(names, "first"))
    text = pc.binary_join_element_wise("Findings of ", scans, "")
    writer.write("reports", fill(pa.table({"scan_id": scans, "findings": text}), fingerprint="r"))
    values = np.random.default_rng(0).integers(0, 2, len(scans) * len(ABNORMALITIES), np.int8)
    labels = {"scan_id": pc.take(scans, np.repeat(np.arange(len(scans)), len(ABNORMALITIES))), "value": values}
    rows = pa.table(labels | {"abnormality": [*ABNORMALITIES] * len(scans)})
    writer.write("published_labels", fill(rows, fingerprint="f"))
    writer.write("labels", fill(rows, fingerprint="f", labeller_id="tfidf"))
    vectors = np.random.default_rng(0).standard_normal((count, LATENT), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    offsets = np.arange(0, vectors.size + 1, LATENT, dtype=np.int32)
    latents = pa.table({"item": names["volume_name"], "latent": pa.ListArray.from_arrays(offsets, vectors.ravel())})
    writer.write("latents", fill(latents, model_id="m", kind="volume", fingerprint="l"))


def start_run(data_root: Path, stage: str) -> RecordWriter:
    writer = RecordWriter(data_root, new_run_id(data_root))
    writer.write("runs", [{"run_id": writer.run_id, "status": "running", "stage": stage, "variant": ""}])
    return writer


def make_names(count: int) -> pa.Table:
    """Names of volumes, with two reconstructions of a scan and one scan of a patient."""
    patients = [f"train_{row // 2 + 1}" for row in range(count)]
    scans = [f"{patient}_a" for patient in patients]
    volumes = [f"{scan}_{row % 2 + 1}" for row, scan in enumerate(scans)]
    return pa.table({"volume_name": volumes, "scan_id": scans, "patient_id": patients})


def make_volumes(names: pa.Table, content: str) -> pa.Table:
    sha256 = pc.binary_join_element_wise(content, names["volume_name"], " ")
    table = names.append_column("sha256", sha256).append_column("path", names["volume_name"])
    return fill(
        table, split="train", fingerprint=content, storage="v2", size_bytes=1, source="file:///made-up",
        spacing_x_mm=0.7, spacing_y_mm=0.7, spacing_z_mm=1.5, is_withdrawn=False,
    )  # fmt: skip


def fill(table: pa.Table, **constants: object) -> pa.Table:
    """The table with columns of one value each."""
    for name, value in constants.items():
        table = table.append_column(name, pa.repeat(pa.scalar(value), len(table)))
    return table


if __name__ == "__main__":
    main()
