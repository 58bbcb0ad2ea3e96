"""A rebuild of all of CT-RATE's 50,188 volumes that finds nothing to do, and the time that Prefect adds to a stage.

Names, reports and labels are made up. Conversion and embedding are recorded without being done. All else is real.

Usage: python benchmarks/bench_orchestration.py
"""

from __future__ import annotations

import csv
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from bench_planning import made_up_names
from measure import machine

from ctclip_model.config import smoke
from ctclip_model.data.abnormalities import ABNORMALITIES, prompt_pair
from ctclip_model.data.names import VolumeName
from ctclip_model.device import Precision
from ctclip_model.models.clip import CTCLIP
from ctclip_model.models.text import train_tokenizer
from tasks.evaluation.embed import plan_work
from tasks.models.find import find_model
from tasks.models.import_model import ImportOptions, import_model
from tasks.run.pending import plan_items
from tasks.run.stage_run import open_run
from tasks.settings import STAGES
from tasks.sources.tables import LABELS, METADATA, REPORTS
from tasks.volumes.jobs import read_volumes

RUNS = 3
LIMIT_S, STAGE_LIMIT_S = 15.0, 2.0


def main() -> None:
    from prefect.testing.utilities import prefect_test_harness

    with tempfile.TemporaryDirectory() as temporary, prefect_test_harness(server_startup_timeout=120):
        source, data_root = Path(temporary) / "source", Path(temporary) / "data"
        names = made_up_names()
        write_source(source, names)
        model = make_everything(source, data_root)
        times = [rebuild_nothing(data_root, model) for _ in range(RUNS)]
        print(f"{machine()}: {len(names)} volumes, medians of {RUNS}")
        print(f"  rebuild with nothing to do: {statistics.median(times):.1f} s (at most {LIMIT_S:.0f})")
        times = [one_stage(data_root) for _ in range(RUNS)]
        print(f"  a stage besides its own work: {statistics.median(times):.2f} s (at most {STAGE_LIMIT_S:.0f})")


def write_source(folder: Path, names: list[VolumeName]) -> None:
    """Writes a folder in CT-RATE's layout. Each file has a few bytes."""
    rng = np.random.default_rng(0)
    for split in ("train", "valid"):
        mine = [name for name in names if name.split == split]
        labels = {name.scan_id: rng.integers(0, 2, len(ABNORMALITIES)).tolist() for name in mine}
        tables: dict[str, tuple[list[str], list[list[Any]]]] = {
            METADATA[split]: (["VolumeName", "XYSpacing", "ZSpacing"], [["[0.7, 0.7]", 1.5] for _ in mine]),
            REPORTS[split]: (
                ["VolumeName", "Findings_EN", "Impressions_EN"],
                [[report(labels[name.scan_id]), f"Seen in {name.scan_id}."] for name in mine],
            ),
            LABELS[split]: (["VolumeName", *ABNORMALITIES], [labels[name.scan_id] for name in mine]),
        }
        for path, (columns, rows) in tables.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            with (folder / path).open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(columns)
                writer.writerows([f"{name}.nii.gz", *row] for name, row in zip(mine, rows, strict=True))
        for name in mine:
            path = folder / name.path("v2")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(str(name))


def report(labels: list[int]) -> str:
    return " ".join(prompt_pair(name)[0 if label else 1] for name, label in zip(ABNORMALITIES, labels, strict=True))


def make_everything(source: Path, data_root: Path) -> str:
    """Runs or records every stage once. Returns the model's id."""
    from flows.evaluate import evaluate
    from flows.ingest import ingest
    from flows.label import label
    from flows.report import report as write_report
    from flows.train_labeller import train_labeller

    preset = smoke()
    ingest(str(source), data_root)
    with open_run(data_root, "convert", preset.recipe.recipe_id) as run:
        volumes = read_volumes(data_root, preset.recipe, None)
        wanted = plan_items(run, preset.recipe.recipe_id, {name: one.fingerprint for name, one in volumes.items()})
        done = {"recipe_id": preset.recipe.recipe_id, "shard_path": "shards/none.arrow", "row_index": 0}
        run.record("shard_volumes", [done | {"volume_name": name, "fingerprint": wanted[name]} for name in wanted])
    train_labeller(data_root, "smoke", kind="tfidf")
    label(data_root, labeller="tfidf")
    torch.manual_seed(0)
    weights = data_root / "weights.pt"
    torch.save(CTCLIP(preset.model).state_dict(), weights)
    prompts = [prompt for name in ABNORMALITIES for prompt in prompt_pair(name)]
    train_tokenizer(prompts * 2, 120).backend_tokenizer.save(str(data_root / "tokenizer.json"))
    model_id = import_model(data_root, str(weights), ImportOptions(preset="smoke")).model_id
    record_latents(data_root, model_id)
    evaluate(data_root, "smoke", model=model_id)
    write_report(data_root, "smoke", model=model_id)
    return model_id


def record_latents(data_root: Path, model_id: str) -> None:
    """Records a random latent for every volume, report and prompt that the model should embed."""
    model = find_model(data_root, "smoke", model_id)
    work = plan_work(data_root, model, Precision.float32)
    latents = np.random.default_rng(0).standard_normal((len(work.fingerprints), smoke().model.latent_dim), np.float32)
    latents /= np.linalg.norm(latents, axis=1, keepdims=True)
    with open_run(data_root, "embed", model_id) as run:
        fingerprints = plan_items(run, model_id, work.fingerprints)
        kinds, items = zip(*(item.split(":", 1) for item in fingerprints), strict=True)
        offsets = np.arange(0, latents.size + 1, latents.shape[1], dtype=np.int32)
        columns = {
            "model_id": [model_id] * len(items), "kind": kinds, "item": items,
            "fingerprint": list(fingerprints.values()),
            "latent": pa.ListArray.from_arrays(offsets, latents.ravel()),
        }  # fmt: skip
        run.record("latents", pa.table(columns))


def rebuild_nothing(data_root: Path, model_id: str) -> float:
    from flows.rebuild import rebuild

    started = time.perf_counter()
    summaries = rebuild(None, data_root, "smoke", labeller="tfidf", model=model_id)
    seconds = time.perf_counter() - started
    assert not any(summary["done"] for summary in summaries), summaries
    assert {summary["stage"] for summary in summaries} == set(STAGES) - {"train", "finetune"}
    return seconds


def one_stage(data_root: Path) -> float:
    from flows.label import label

    started = time.perf_counter()
    summary = label(data_root, labeller="tfidf")
    return time.perf_counter() - started - float(summary["duration_s"])


if __name__ == "__main__":
    main()
