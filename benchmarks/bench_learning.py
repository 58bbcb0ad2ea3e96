"""Held-out zero-shot AUROC against samples seen: the published training recipe and ours, from the same weights.

Both recipes learn the same phantoms from the same random weights and text encoder. They run on one CPU thread with
eight volumes in memory at a time. The published recipe has batches of 8 with their own negatives, a constant rate, no
limit of the temperature, and the Findings alone. Its rate is the best of five by its final AUROC on the first seed.
Our recipe runs with as many samples as the published one, and with a third of them. Each has a schedule of its own
length.

Usage: python benchmarks/bench_learning.py FOLDER               all missing runs, then the table
       python benchmarks/bench_learning.py FOLDER SEED RECIPE   one run: `ours`, `third`, or `published-RATE`
"""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from measure import machine
from transformers import PreTrainedTokenizerFast

from ctclip_model.config import HU_PER_UNIT, Negatives, TrainingConfig, tiny
from ctclip_model.data.abnormalities import ABNORMALITIES
from ctclip_model.data.phantom import PhantomConfig, make_phantoms
from ctclip_model.data.phantom.dataset import VISIBLE_ABNORMALITIES
from ctclip_model.data.reports import report_sentences
from ctclip_model.data.volume import load_volume
from ctclip_model.device import Compute
from ctclip_model.models.clip import CTCLIP
from ctclip_model.models.text import train_tokenizer
from ctclip_model.training.contrastive import teach_contrast, teach_text
from ctclip_model.training.engine.loop import StepRecord
from ctclip_model.training.samples import TrainingData

PRESET = tiny()
PATIENTS = 800, 150  # train, valid
SAMPLES, SAMPLES_PER_POINT = 16_000, 1_000
SEEDS = range(5)
BATCH, TEXTS, RATE = 16, 8, 3e-3  # our recipe: the preset's values suit 2.5 times the samples
RATES = (1e-5, 4e-5, 1.7e-4, 7e-4, 3e-3)
IN_MEMORY = 8  # volumes encoded at once, for either recipe


def main() -> None:
    folder = Path(sys.argv[1])
    if len(sys.argv) == 4:
        run(folder, int(sys.argv[2]), sys.argv[3])
        return
    for seed, recipe in [(0, f"published-{rate:g}") for rate in RATES]:
        run_apart(folder, seed, recipe)
    best = max((f"published-{rate:g}" for rate in RATES), key=lambda recipe: curve(folder, 0, recipe)[-1][1])
    for seed in SEEDS:
        for recipe in ("ours", "third", best):
            run_apart(folder, seed, recipe)
    report(folder, best)


def run_apart(folder: Path, seed: int, recipe: str) -> None:
    if not (folder / f"{seed}-{recipe}.json").exists():
        subprocess.run([sys.executable, __file__, str(folder), str(seed), recipe], check=True)


def config_of(recipe: str, seed: int) -> TrainingConfig:
    if recipe in ("ours", "third"):
        samples = SAMPLES if recipe == "ours" else SAMPLES // 3
        return dataclasses.replace(
            PRESET.training, samples=samples, seed=seed, batch_size=BATCH, texts_per_volume=TEXTS, learning_rate=RATE
        )
    return TrainingConfig(
        negatives=Negatives.local, samples=SAMPLES, learning_rate=float(recipe.split("-", 1)[1]),
        report_sections=("findings",), seed=seed,
    )  # fmt: skip


def run(folder: Path, seed: int, recipe: str) -> None:
    """Trains one model and writes its curve, a list of (samples, AUROC)."""
    torch.set_num_threads(1)
    config = config_of(recipe, seed)
    train, held_out = read_phantoms(folder / "phantoms", config.report_sections)
    model, tokenizer = first_weights(folder, seed)
    batches_per_point = round(SAMPLES_PER_POINT / config.batch_size)
    if recipe == "third":
        batches_per_point = SAMPLES // 3 // config.batch_size // 5
    points: list[tuple[int, float]] = []

    def on_step(record: StepRecord) -> None:
        if record.validation_auroc is not None:
            points.append((record.samples, record.validation_auroc))

    started = time.process_time()
    config = dataclasses.replace(config, steps_per_validation=batches_per_point)
    compute = Compute("cpu", encoded_at_once=IN_MEMORY)
    teach_contrast(model, tokenizer, train, config, held_out=held_out, compute=compute, on_step=on_step)
    result = {"curve": points, "cpu_s": time.process_time() - started, "machine": machine()}
    (folder / f"{seed}-{recipe}.json").write_text(json.dumps(result))
    print(f"seed {seed}, {recipe}: {points[-1][1]:.3f} after {points[-1][0]:,} samples, {result['cpu_s']:.0f} s of CPU")


def first_weights(folder: Path, seed: int) -> tuple[CTCLIP, PreTrainedTokenizerFast]:
    """Random weights of the seed, shared by both recipes. The text encoder has learned the train split's labels."""
    path, tokens = folder / f"{seed}-first.pt", folder / "tokenizer"
    train, _ = read_phantoms(folder / "phantoms", PRESET.training.report_sections)
    if not tokens.exists():
        texts = [" ".join(sentence for section in report for sentence in section) for report in train.reports]
        train_tokenizer(texts, PRESET.model.text.vocab_size).save_pretrained(tokens)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tokens)
    torch.manual_seed(seed)
    model = CTCLIP(PRESET.model)
    if not path.exists():
        teach_text(model, tokenizer, train, dataclasses.replace(PRESET.training, seed=seed))
        torch.save(model.state_dict(), path)
    model.load_state_dict(torch.load(path, weights_only=True))
    return model, tokenizer


def read_phantoms(folder: Path, sections: tuple[str, ...]) -> tuple[TrainingData, TrainingData]:
    """Train split, and one volume per scan of the valid split. Labels that no volume can show are nan."""
    cache = folder.with_suffix(".pt")
    if not cache.exists():
        train, valid = PATIENTS
        make_phantoms(folder, PhantomConfig(seed=0, train_patients=train, valid_patients=valid), processes=1)
        torch.save({split: read_split(folder, split) for split in ("train", "valid")}, cache)
    splits = torch.load(cache, weights_only=True)
    train_data, valid_data = (as_data(splits[split], sections) for split in ("train", "valid"))
    first = {scan: index for index, scan in reversed(list(enumerate(valid_data.scan_ids)))}
    held_out = valid_data.take(sorted(first.values()))
    hidden = [index for index, name in enumerate(ABNORMALITIES) if name not in VISIBLE_ABNORMALITIES]
    held_out.labels[:, hidden] = torch.nan
    return train_data, held_out


def read_split(folder: Path, split: str) -> dict[str, Any]:
    """Volumes, texts and labels of a split as plain values, which `torch.load` reads."""
    name = {"train": "train", "valid": "validation"}[split]
    reports = read_rows(folder / f"dataset/radiology_text_reports/{name}_reports.csv")
    labels = read_rows(folder / f"dataset/multi_abnormality_labels/{split}_predicted_labels.csv")
    paths = {path.name: path for path in folder.rglob("*.nii.gz")}
    voxels = [load_volume(paths[volume], recipe=PRESET.recipe)[0].mul(HU_PER_UNIT).round() for volume in reports]
    return {
        "names": [volume.removesuffix(".nii.gz") for volume in reports],
        "volumes": torch.stack(voxels).to(torch.int16),
        "texts": [(row["Findings_EN"], row["Impressions_EN"]) for row in reports.values()],
        "labels": torch.tensor([[float(labels[volume][label]) for label in ABNORMALITIES] for volume in reports]),
    }


def read_rows(path: Path) -> dict[str, dict[str, str]]:
    with path.open(newline="") as file:
        return {row["VolumeName"]: row for row in csv.DictReader(file)}


def as_data(split: dict[str, Any], sections: tuple[str, ...]) -> TrainingData:
    return TrainingData(
        volumes=lambda rows: split["volumes"][torch.as_tensor(list(rows))],
        scan_ids=[name.rsplit("_", 1)[0] for name in split["names"]],
        reports=[report_sentences(findings, impression, sections) for findings, impression in split["texts"]],
        labels=split["labels"],
        names=split["names"],
        patient_ids=[name.rsplit("_", 2)[0] for name in split["names"]],
    )


def curve(folder: Path, seed: int, recipe: str) -> list[tuple[int, float]]:
    points: list[tuple[int, float]] = json.loads((folder / f"{seed}-{recipe}.json").read_text())["curve"]
    return points


def report(folder: Path, best: str) -> None:
    """Prints the mean curves over the seeds, and after how many samples ours passes the published recipe's end."""
    print(
        f"held-out macro AUROC of {len(VISIBLE_ABNORMALITIES)} abnormalities, mean (least-most) of {len(SEEDS)} seeds"
    )
    for recipe in (best, "ours", "third"):
        for points in zip(*(curve(folder, seed, recipe) for seed in SEEDS), strict=True):
            scores = [score for _, score in points]
            print(
                f"{recipe:>20} {points[0][0]:>7,} {statistics.mean(scores):.3f} ({min(scores):.3f}-{max(scores):.3f})"
            )
    for rate in RATES:
        print(f"published at {rate:g}, seed 0: {curve(folder, 0, f'published-{rate:g}')[-1][1]:.3f}")
    goals = [curve(folder, seed, best)[-1][1] for seed in SEEDS]
    shares = []
    for seed, goal in zip(SEEDS, goals, strict=True):
        points = curve(folder, seed, "ours")
        reached = next((samples for samples, score in points if score >= goal), None)
        shares.append((reached or math.inf) / SAMPLES)
        (samples, third), final = curve(folder, seed, "third")[-1], points[-1][1]
        print(
            f"seed {seed}: published {goal:.3f}, ours {third:.3f} with a third of the samples ({samples:,}) and "
            f"{final:.3f} with all; the latter passes the published recipe after {reached} samples"
        )
    means = [
        (points[0][0], statistics.mean(score for _, score in points))
        for points in zip(*(curve(folder, seed, "ours") for seed in SEEDS), strict=True)
    ]
    reached = next((samples for samples, score in means if score >= statistics.mean(goals)), math.inf)
    print(f"mean curve: ours passes the published after {reached / SAMPLES:.2f} of the samples (asked: 0.33)")
    print(f"single seeds: after {statistics.median(shares):.2f} in the median, {max(shares):.2f} at most")
    gains = [curve(folder, seed, "third")[-1][1] - goal for seed, goal in zip(SEEDS, goals, strict=True)]
    print(f"ours with a third, less the published with all: {statistics.mean(gains):+.3f} (least {min(gains):+.3f})")


if __name__ == "__main__":
    main()
