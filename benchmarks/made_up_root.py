"""A data root of made-up volumes in which every stage of a rebuild is recorded as done.

Names, reports and labels are made up. Conversion, training, VocabFine and embedding are recorded without being done.
Ingest, the tf-idf labeller, labels, LiPro, evaluations and pages are real.
"""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from bench_planning import COUNTS, made_up_names

from ctclip_model.config import Preset, smoke
from ctclip_model.data.abnormalities import ABNORMALITIES, prompt_pair
from ctclip_model.data.names import VolumeName
from ctclip_model.device import Precision
from ctclip_model.models.clip import CTCLIP
from ctclip_model.models.kinds import ModelKind
from ctclip_model.models.text import train_tokenizer
from tasks.evaluation.embed import plan_work
from tasks.models.find import find_model
from tasks.models.import_model import ImportOptions, import_model
from tasks.models.record import ModelRow, record_model
from tasks.run.pending import plan_items
from tasks.run.stage_run import open_run
from tasks.settings import LIMITS
from tasks.sources.tables import LABELS, METADATA, REPORTS
from tasks.training.fine_tune import Finetuning
from tasks.training.manifest import config_fingerprint
from tasks.volumes.jobs import read_volumes
from warehouse import store

TRAINED, VOCABFINE = "ct-clip-made-up", "vocabfine-made-up"
REBUILD = {"preset": "smoke", "labeller": "tfidf"}  # options of the rebuild that has nothing to do
DONE = "made_up_root.done"


def make_root(folder: Path, count: int) -> Path:
    """Makes `source/` and the data root `data/` in a folder, unless they are there, and returns the data root.

    Needs a Prefect server.
    """
    source, data_root = folder / "source", folder / "data"
    if not (folder / DONE).exists():
        for leftover in (source, data_root):
            shutil.rmtree(leftover, ignore_errors=True)
        write_source(source, made_up_names(count))
        make_everything(source, data_root)
        (folder / DONE).touch()
    return data_root


def write_source(folder: Path, names: list[VolumeName]) -> None:
    """Writes a folder in CT-RATE's layout. Each file has a few bytes."""
    rng = np.random.default_rng(0)
    for split in COUNTS:
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


def make_everything(source: Path, data_root: Path) -> None:
    """Runs or records every stage once, and then rebuilds: the rebuild trains the labeller's LiPro and scores."""
    from flows.ingest import ingest
    from flows.rebuild import rebuild
    from flows.train_labeller import train_labeller

    preset = smoke()
    ingest(str(source), data_root)
    record_conversion(data_root, preset)
    train_labeller(data_root, "smoke", kind="tfidf")
    record_models(data_root, preset)
    for model_id in (TRAINED, VOCABFINE):
        record_latents(data_root, model_id)
    for _ in range(2):  # the second one compares the LiPro with the VocabFine, which is older here and scored later
        rebuild(None, data_root, **REBUILD)


def record_conversion(data_root: Path, preset: Preset) -> None:
    """Records every volume as converted, into empty shards."""
    recipe_id = preset.recipe.recipe_id
    folder = data_root / "shards" / recipe_id
    folder.mkdir(parents=True)
    with open_run(data_root, "convert", recipe_id) as run:
        volumes = read_volumes(data_root, preset.recipe, None)
        wanted = plan_items(run, recipe_id, {name: one.fingerprint for name, one in volumes.items()})
        rows = [
            {
                "volume_name": name, "recipe_id": recipe_id, "fingerprint": fingerprint,
                "shard_path": f"shards/{recipe_id}/{index // LIMITS.shard_volumes:06d}.arrow",
                "row_index": index % LIMITS.shard_volumes,
            }
            for index, (name, fingerprint) in enumerate(wanted.items())
        ]  # fmt: skip
        run.record("shard_volumes", rows)
    for path in {row["shard_path"] for row in rows}:
        (data_root / path).touch()


def record_models(data_root: Path, preset: Preset) -> None:
    """Records random weights as a CT-CLIP that was trained on every sample, and as its VocabFine."""
    torch.manual_seed(0)
    weights = data_root / "weights.pt"
    torch.save(CTCLIP(preset.model).state_dict(), weights)
    prompts = [prompt for name in ABNORMALITIES for prompt in prompt_pair(name)]
    train_tokenizer(prompts * 2, 120).backend_tokenizer.save(str(data_root / "tokenizer.json"))
    imported = data_root / "models" / import_model(data_root, str(weights), ImportOptions(preset="smoke")).model_id
    record_copy(data_root, imported, preset, ModelKind.ct_clip, TRAINED, config_fingerprint(preset))
    parent = find_model(data_root, "smoke", TRAINED)
    vocabfine = Finetuning(ModelKind.vocabfine, parent, preset).fingerprint
    record_copy(data_root, imported, preset, ModelKind.vocabfine, VOCABFINE, vocabfine)


def record_copy(
    data_root: Path, folder: Path, preset: Preset, kind: ModelKind, model_id: str, fingerprint: str
) -> None:
    """Records a copy of a model's folder as another model, trained here on every sample of the train split."""
    copy = data_root / "models" / model_id
    shutil.copytree(folder, copy)
    facts = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(facts | {"kind": kind}))
    is_child = kind is ModelKind.vocabfine
    stage = "finetune" if is_child else "train"
    with open_run(data_root, stage, f"{TRAINED}/{kind}" if is_child else "smoke") as run:
        plan_items(run, run.variant, {fingerprint: fingerprint})
        samples = store.query(data_root, "select volume_name, fingerprint from training_samples")
        record_model(
            run,
            ModelRow(
                model_id=model_id, kind=kind, fingerprint=fingerprint, preset=preset.name, config=asdict(preset),
                recipe_id=preset.recipe.recipe_id, count_parameters=1, logit_scale=14.0, duration_s=1.0,
                parent_model_id=TRAINED if is_child else None, count_samples=len(samples),
            ),
        )  # fmt: skip
        names, fingerprints = zip(*samples, strict=True)
        run.record(
            "model_samples",
            pa.table({"model_id": [model_id] * len(names), "sample_id": names, "fingerprint": fingerprints}),
        )


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
