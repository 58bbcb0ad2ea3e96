"""Import of many labels at CT-RATE's size, and the views over them: 137 findings of 25,692 scans.

Run: `python -m benchmarks.bench_label_sets [findings] [scans]`. Prints seconds of the import and of each view.
"""

from __future__ import annotations

import csv
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from ctclip_model.data.abnormalities import ABNORMALITIES
from ctclip_model.data.label_sets import Finding, LabelSet
from tasks.labels.import_labels import import_labels
from tasks.run.stage_run import open_run
from warehouse import store

VIEWS = ("label_prevalence", "label_agreement", "labels_wide", "label_disagreements", "stage_status")
LONGEST_IMPORT_S, LONGEST_VIEW_S = 30.0, 1.0


def main() -> None:
    """Prints the times beside their limits."""
    count_findings, count_scans = (int(text) for text in (sys.argv[1:] + ["137", "25692"][len(sys.argv) - 1 :])[:2])
    with tempfile.TemporaryDirectory() as folder:
        data_root, path = Path(folder, "data"), Path(folder, "labels.csv")
        scans = [f"{'valid' if number % 16 == 0 else 'train'}_{number + 1}_a" for number in range(count_scans)]
        _record_scans(data_root, scans)
        findings = (Finding(f"Finding {n}", f"Finding {n} is present.", f"No {n}.") for n in range(count_findings))
        label_set = LabelSet("many", tuple(findings))
        _write_labels(path, scans, label_set)
        for name in ("first", "second"):
            started = time.perf_counter()
            done = import_labels(data_root, path, name, label_set)
            _print(f"import {name}: {done.count_labels:,} labels", time.perf_counter() - started, LONGEST_IMPORT_S)
        for view in VIEWS:
            started = time.perf_counter()
            count = len(store.query(data_root, f"select * from {view} limit 100000"))
            _print(f"view {view}: {count:,} rows", time.perf_counter() - started, LONGEST_VIEW_S)


def _record_scans(data_root: Path, scans: list[str]) -> None:
    """Records a volume and 18 published labels for each scan."""
    values = np.random.default_rng(0).integers(0, 2, (len(scans), len(ABNORMALITIES)))
    with open_run(data_root, "ingest") as run:
        run.record(
            "volumes",
            [
                {"volume_name": f"{scan}_1", "scan_id": scan, "split": scan.split("_")[0], "fingerprint": "f"}
                for scan in scans
            ],
        )
        run.record(
            "published_labels",
            [
                {"scan_id": scan, "abnormality": name, "value": int(value), "fingerprint": "f"}
                for scan, row in zip(scans, values, strict=True)
                for name, value in zip(ABNORMALITIES, row, strict=True)
            ],
        )


def _write_labels(path: Path, scans: list[str], label_set: LabelSet) -> None:
    values = np.random.default_rng(1).integers(0, 2, (len(scans), len(label_set)))
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["scan_id", *label_set.names])
        writer.writerows([scan, *row] for scan, row in zip(scans, values.tolist(), strict=True))


def _print(what: str, seconds: float, limit_s: float) -> None:
    print(f"{what:<45} {seconds:7.2f} s, limit {limit_s:g} s", flush=True)


if __name__ == "__main__":
    main()
