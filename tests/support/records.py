"""Record files written by the stages' own writer, and rows to put into them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from ctclip_model.data.abnormalities import ABNORMALITIES
from tasks.run.records import RecordWriter

RUNS = tuple(f"20261123T19530000000{n}-abc{n:03d}" for n in range(10))


def write_run(
    data_root: Path,
    run: int,
    stage: str = "convert",
    *,
    variant: str = "",
    status: str | None = "completed",
    **tables: Any,
) -> None:
    """Records a run that starts, writes `tables` ({table: rows}) and, unless `status` is None, ends."""
    writer = RecordWriter(data_root, RUNS[run])
    writer.write("runs", [_status_row(run, "running", stage, variant)])
    for table, rows in tables.items():
        writer.write(table, rows)
    if status:
        writer.write("runs", [_status_row(run, status, stage, variant)])


def volume_row(name: str, fingerprint: str = "f", **columns: Any) -> dict[str, Any]:
    """Row of `volumes` for a volume of CT-RATE, complete enough to be converted."""
    split, patient, scan, _ = name.split("_")
    row = {
        "volume_name": name, "scan_id": f"{split}_{patient}_{scan}", "patient_id": f"{split}_{patient}",
        "split": split, "storage": "v2", "source": "ct-rate:/x", "path": f"{name}.nii.gz", "size_bytes": 1,
        "sha256": f"sha256 of {name}", "spacing_x_mm": 0.7, "spacing_y_mm": 0.7, "spacing_z_mm": 1.0,
        "rescale_slope": 1.0, "rescale_intercept": 0.0, "metadata": {"Manufacturer": "x"}, "fingerprint": fingerprint,
    }  # fmt: skip
    return row | columns


def report_row(scan_id: str, findings: str = "", **columns: Any) -> dict[str, Any]:
    """Row of `reports`. Its fingerprint is its text, so that another text is a change."""
    findings = findings or f"Findings of {scan_id}."
    return {"scan_id": scan_id, "findings": findings, "fingerprint": findings} | columns


def label_rows(scans: Sequence[str], labels: np.ndarray) -> list[dict[str, Any]]:
    """Rows of `published_labels` of (scans, 18) zeros and ones."""
    return [
        {"scan_id": scan, "abnormality": name, "value": int(value)}
        for scan, row in zip(scans, labels, strict=True)
        for name, value in zip(ABNORMALITIES, row, strict=True)
    ]


def wanted_rows(stage: str, variant: str, fingerprints: Mapping[str, str]) -> list[dict[str, Any]]:
    """Rows of `wanted`: the items that a stage should make, with their fingerprints."""
    return [
        {"stage": stage, "variant": variant, "item": item, "fingerprint": fingerprint}
        for item, fingerprint in fingerprints.items()
    ]


def write_embedding(
    data_root: Path, run: int, latents: Mapping[tuple[str, str], np.ndarray], fingerprint: str = "l"
) -> None:
    """Records a run that embeds with the model `m`: latents by (kind, item), and that they are wanted."""
    write_run(
        data_root, run, "embed",
        latents=[
            {"model_id": "m", "kind": kind, "item": item, "fingerprint": fingerprint, "latent": latent.tolist()}
            for (kind, item), latent in latents.items()
        ],
        wanted=wanted_rows("embed", "m", {f"{kind}:{item}": fingerprint for kind, item in latents}),
    )  # fmt: skip


def _status_row(run: int, status: str, stage: str, variant: str) -> dict[str, Any]:
    recorded_at = datetime(2026, 11, 23, 19, run, 0 if status == "running" else 30, tzinfo=UTC)
    return {"run_id": RUNS[run], "status": status, "stage": stage, "variant": variant, "recorded_at": recorded_at}
