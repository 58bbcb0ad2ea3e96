"""A training of random weights on random volumes, in seconds, in this process or in others."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ctclip_model.config import Preset, Recipe, smoke
from ctclip_model.data.shards import ShardVolume, write_shard
from ctclip_model.data.volume import ConvertedVolume
from ctclip_model.device import Compute
from ctclip_model.models.kinds import ModelKind
from ctclip_model.training.worker import Job
from support.paths import ROOT

FACTS = ((9, 9, 9), (1.0, 1.0, 1.0), ((0, 24), (0, 40), (0, 40)), 0.0, 1.0, -1000, 1000)


def write_samples(data_root: Path, recipe: Recipe, scans: int = 24) -> Path:
    """A manifest of so many labelled train scans, of one or two reconstructions, and their shard."""
    rng = np.random.default_rng(0)
    names = [f"train_{scan}_a_{count}" for scan in range(1, scans + 1) for count in range(1, 2 + scan % 2)]
    volumes = (
        ShardVolume(name, "", ConvertedVolume(rng.integers(-1000, 1000, recipe.shape, np.int16), *FACTS))
        for name in names
    )
    rows = []
    for row in write_shard(data_root / "shards/0.arrow", recipe, volumes):
        patient = int(row.name.split("_")[1])
        rows.append(
            {
                "volume_name": row.name, "scan_id": row.name[:-2], "patient_id": f"train_{patient}", "split": "train",
                "shard_path": "shards/0.arrow", "row_index": row.row_index, "fingerprint": "",
                "findings": f"Finding {patient} is seen. The rest is normal.", "impression": f"Number {patient}.",
                "labels": [patient % 2] * 18,
            }
        )  # fmt: skip
    path = data_root / "manifest.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def short_preset(**training: Any) -> Preset:
    """A few steps of batches of 8, with all that draws random numbers; the text encoder learns too."""
    base = smoke()
    settings = {
        "batch_size": 8, "samples": 96, "learning_rate": 1e-3, "text_learning_rate": None, "short_text_share": 0.5,
        "text_pretraining_samples": 0, "steps_per_checkpoint": 2,
    }  # fmt: skip
    return dataclasses.replace(base, training=dataclasses.replace(base.training, **settings | training))


def write_job(data_root: Path, preset: Preset, compute: Compute = Compute("cpu")) -> Path:
    job = Job(
        ModelKind.ct_clip, "manifest.parquet", "models/model", preset, compute, {"source": "here", "revision": "1"}
    )
    job.write(data_root / "job.json")
    return data_root / "job.json"


def start_worker(data_root: Path, *, processes: int = 1) -> subprocess.Popen[str]:
    """The job of a data root in processes of their own."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "--no-python"]
    program = [sys.executable, "-m", "ctclip_model.training.worker", str(data_root / "job.json"), str(data_root)]
    command = program if processes == 1 else [sys.executable, *launcher, *program]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=data_root
    )


def events(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def curve_of(folder: Path) -> list[tuple[int, float]]:
    table = pq.read_table(folder / "metrics.parquet")
    return list(zip(table["step"].to_pylist(), table["loss"].to_pylist(), strict=True))
