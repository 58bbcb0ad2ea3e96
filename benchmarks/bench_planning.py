"""Planning a conversion of all of CT-RATE's 50,188 volumes: at first, with nothing new, and with 5 % of them changed.

Usage: python benchmarks/bench_planning.py [CSV with a column VolumeName ...]
Without CT-RATE's CSVs the same number of names is made up.
"""

from __future__ import annotations

import csv
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ctclip_model.config import Recipe
from ctclip_model.data.names import VolumeName, parse_volume_name
from tasks.run.pending import plan_items
from tasks.run.stage_run import open_run
from tasks.volumes.jobs import make_jobs, read_volumes

COUNTS = {"train": 47_149, "valid": 3_039}
CHANGED_SHARE = 0.05
RECIPE = Recipe()


def main() -> None:
    names = [name for path in sys.argv[1:] for name in read_names(Path(path))] or made_up_names()
    with tempfile.TemporaryDirectory() as folder:
        data_root = Path(folder)
        ingest(data_root, names, "first")
        convert(data_root, "the first time", len(names))
        convert(data_root, "again, nothing changed", 0)
        changed = names[:: round(1 / CHANGED_SHARE)]
        ingest(data_root, changed, "second")
        convert(data_root, f"{CHANGED_SHARE:.0%} changed", len(changed))


def read_names(path: Path) -> list[VolumeName]:
    with path.open(encoding="utf-8-sig") as file:
        return [parse_volume_name(row["VolumeName"]) for row in csv.DictReader(file)]


def made_up_names(count: int = sum(COUNTS.values())) -> list[VolumeName]:
    """As many names as CT-RATE has, or `count`, with two reconstructions per scan and one scan per patient."""
    valid = round(count * COUNTS["valid"] / sum(COUNTS.values()))
    return [
        VolumeName(split, index // 2 + 1, "a", index % 2 + 1)
        for split, part in (("train", count - valid), ("valid", valid))
        for index in range(part)
    ]


def ingest(data_root: Path, names: list[VolumeName], content: str) -> None:
    with open_run(data_root, "ingest") as run:
        run.record("volumes", [volume_row(name, content) for name in names])


def volume_row(name: VolumeName, content: str) -> dict[str, Any]:
    return {
        "volume_name": str(name), "scan_id": name.scan_id, "patient_id": name.patient_id, "split": name.split,
        "fingerprint": content, "storage": "v2", "path": str(name.path()), "size_bytes": 1,
        "sha256": f"{content} {name}", "source": "file:///ct-rate", "spacing_x_mm": 0.7, "spacing_y_mm": 0.7,
        "spacing_z_mm": 1.5, "is_withdrawn": False,
    }  # fmt: skip


def convert(data_root: Path, label: str, expected: int) -> None:
    """Plans a conversion, and records it as done without doing it."""
    with open_run(data_root, "convert", RECIPE.recipe_id) as run:
        started = time.perf_counter()
        volumes = read_volumes(data_root, RECIPE, None)
        pending = plan_items(run, RECIPE.recipe_id, {name: volume.fingerprint for name, volume in volumes.items()})
        jobs = make_jobs(run, RECIPE, [volumes[name] for name in pending])
        seconds = time.perf_counter() - started
        assert len(pending) == expected
        done = [{"volume_name": name, "recipe_id": RECIPE.recipe_id, "fingerprint": pending[name]} for name in pending]
        if done:
            run.record("shard_volumes", done)
    print(f"{len(volumes)} volumes, {label}: {len(pending)} pending in {len(jobs)} jobs, planned in {seconds:.2f} s")


if __name__ == "__main__":
    main()
