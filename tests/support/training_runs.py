"""A training of random weights on random volumes, in seconds, in this process or in others."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ctclip_model.config import Preset, Recipe, smoke
from ctclip_model.data.shards import write_shard
from ctclip_model.device import Compute
from ctclip_model.models.kinds import ModelKind
from ctclip_model.training.job import Manifest, TrainingJob, move_paths, write_json
from support.paths import ROOT
from support.volumes import make_shard_volume


def write_samples(data_root: Path, recipe: Recipe, scans: int = 24, valid_findings: str | None = None) -> Path:
    """A manifest of labelled train scans of one or two reconstructions, and their shard.

    With `valid_findings`, a last sample is of the valid split and has these findings.
    """
    names = [f"train_{scan}_a_{count}" for scan in range(1, scans + 1) for count in range(1, 2 + scan % 2)]
    if valid_findings is not None:
        names.append("valid_1_a_1")
    volumes = (make_shard_volume(name, recipe, seed=seed) for seed, name in enumerate(names))
    rows = []
    for row in write_shard(data_root / "shards/0.arrow", recipe, volumes):
        split, patient, _, _ = row.name.split("_")
        has_effusion = int(patient) % 2
        findings = "Pleural effusion is seen." if has_effusion else "No pleural effusion. The spleen is normal."
        rows.append(
            {
                "volume_name": row.name, "scan_id": row.name[:-2], "patient_id": f"{split}_{patient}", "split": split,
                "shard_path": "shards/0.arrow", "row_index": row.row_index, "fingerprint": "",
                "findings": findings if split == "train" else valid_findings, "impression": f"Number {patient}.",
                "labels": [has_effusion] * 17 + [None],
            }
        )  # fmt: skip
    path = data_root / "manifest.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def short_preset(**training: Any) -> Preset:
    """The smoke preset with a few steps of batches of 8, with everything that draws random numbers."""
    base = smoke()
    settings = {
        "batch_size": 8, "samples": 96, "learning_rate": 1e-3, "text_learning_rate": None, "short_text_share": 0.5,
        "text_pretraining_samples": 0, "steps_per_checkpoint": 2,
    }  # fmt: skip
    return dataclasses.replace(base, training=dataclasses.replace(base.training, **settings | training))


def make_job(data_root: Path, preset: Preset, compute: Compute = Compute("cpu")) -> TrainingJob:
    """A job that trains CT-CLIP on the manifest of `write_samples`."""
    manifest = Manifest(data_root / "manifest.parquet", "model", "data", "config", 36, "here", "1")
    return TrainingJob(ModelKind.ct_clip, manifest, preset, compute)


def write_job(data_root: Path, job: TrainingJob) -> Path:
    """Writes a job as `start_worker` reads it."""
    write_json(data_root / "job.json", move_paths(job, lambda path: path.relative_to(data_root)))
    return data_root / "job.json"


def start_worker(data_root: Path, *, processes: int = 1) -> subprocess.Popen[str]:
    """Starts the job of a data root in processes of its own."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "--no-python"]
    program = [sys.executable, "-m", "ctclip_model.training.worker", str(data_root / "job.json"), str(data_root)]
    command = program if processes == 1 else [sys.executable, *launcher, *program]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=data_root
    )


def parse_events(output: str) -> list[dict[str, Any]]:
    """Events that a worker has printed."""
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def read_curve(folder: Path) -> list[tuple[int, float]]:
    """Step and loss of each step of a trained model."""
    table = pq.read_table(folder / "metrics.parquet")
    return list(zip(table["step"].to_pylist(), table["loss"].to_pylist(), strict=True))
