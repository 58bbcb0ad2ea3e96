"""Whole stages on shards that are written here: training, a killed training, embedding, fine-tuning, labelling."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ctclip_model.config import LabellerConfig, VocabFineConfig
from ctclip_model.data.abnormalities import ABNORMALITIES, prompt_pair
from ctclip_model.data.label_sets import CT_RATE_18
from ctclip_model.data.loader import BatchReader, VolumeDataset, iterate_batches, read_samples
from ctclip_model.data.reading_processes import count_reading_processes
from ctclip_model.data.shards import ShardVolume, write_shard
from ctclip_model.device import Compute, Precision
from ctclip_model.evaluation.embed import batch_size, embed_prompts, embed_volumes, embed_with_tokens
from ctclip_model.evaluation.evidence import read_prompts, split_scores
from ctclip_model.evaluation.zero_shot import zero_shot
from ctclip_model.labelling.transformer import TransformerLabeller
from ctclip_model.models.clip import CTCLIP
from ctclip_model.models.report_labeller import ReportLabeller
from ctclip_model.models.text import train_tokenizer
from ctclip_model.training.contrastive import prepare_model, teach_contrast, train_contrastive
from ctclip_model.training.engine.loop import StepRecord
from ctclip_model.training.lipro import fit_head
from ctclip_model.training.samples import read_training_data
from ctclip_model.training.vocabfine import PromptSteps
from on_gpu.common import BF16, DEVICE, HAS_GPU, PRESET, median_s, random_hu, report


def train() -> None:
    """Training steps from shards that are written here, with the longest reports, and the shards read alone."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        batch = 64 if HAS_GPU else 8
        manifest = write_data(root, 2 * batch)
        dataset = VolumeDataset(read_samples(manifest), root)
        for way, count in (("threads", 4), ("processes", count_reading_processes())):
            read = BatchReader(dataset, **{way: count}, pinned=HAS_GPU)  # type: ignore[arg-type]
            report_speed("train", f"shards read alone, {count} {way}", batch, lambda read=read: read(range(batch)))
        compute = Compute(precision=Precision.bfloat16, recompute=True, compile=HAS_GPU)
        config = replace(
            PRESET.training, batch_size=batch, samples=batch * (24 if HAS_GPU else 6), text_learning_rate=None,
            varies_samples=False, codes_from_data=False,
        )  # fmt: skip
        data = read_training_data(manifest, root, config.report_sections)
        with DEVICE:
            model = prepare_model(CTCLIP(PRESET.model), compute)
        texts = [" ".join(sentence for part in sections for sentence in part) for sections in data.reports]
        tokenizer = train_tokenizer(texts, PRESET.model.text.vocab_size)
        records: list[StepRecord] = []
        teach_contrast(model, tokenizer, data, config, compute=compute, on_step=records.append)
        counted = records[4:]  # after the first batches, which meet new memory and the compiler
        durations = [batch / record.volumes_per_s for record in counted]
        waits = [d * record.data_wait_share for d, record in zip(durations, counted, strict=True)]
        report(
            "train", f"from shards, batch {batch}, {len(counted)} steps",
            volumes_per_s=len(counted) * batch / sum(durations), data_wait=sum(waits) / sum(durations),
            memory_gb=records[-1].memory_bytes / 1e9,
        )  # fmt: skip


def report_speed(section: str, name: str, volumes: int, way: Callable[[], object]) -> None:
    report(section, name, volumes_per_s=volumes / median_s(way, runs=1, warm=2))


def use() -> None:
    """Latents from shards, zero-shot of one volume in memory, steps of fine-tuning, labelling."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        manifest = write_data(root, 64 if HAS_GPU else 8)
        with DEVICE:
            model = CTCLIP(PRESET.model).eval()
        embed(model, manifest, root)
        assess(model)
        fine_tune(model, manifest, root)
    label()


def embed(model: CTCLIP, manifest: Path, root: Path) -> None:
    samples = read_samples(manifest) * (8 if HAS_GPU else 1)
    size = batch_size(model.config, DEVICE)
    batches = iterate_batches(samples, root, batch_size=size, device=DEVICE)
    counted, started = 0, time.perf_counter()
    for index, (names, _) in enumerate(embed_volumes(model, batches, dtype=BF16)):
        if index == 2:  # the first batches meet new memory
            counted, started = 0, time.perf_counter()
        counted += len(names)
    report("use", f"embedding from shards, {size} at once", volumes_per_s=counted / (time.perf_counter() - started))
    volumes = random_hu(size).unsqueeze(1)
    way = lambda: list(embed_volumes(model, [(["a"], volumes)], dtype=BF16))  # noqa: E731
    report_speed("use", f"embedding volumes on the device, {size} at once", size, way)
    if HAS_GPU:
        compiled = CTCLIP(PRESET.model).to(DEVICE).eval()
        compiled.compile_layers()
        way = lambda: list(embed_volumes(compiled, [(["a"], volumes)], dtype=BF16))  # noqa: E731
        report_speed("use", f"embedding volumes on the device, compiled, {size} at once", size, way)


def assess(model: CTCLIP) -> None:
    prompts = [prompt for name in ABNORMALITIES for prompt in prompt_pair(name)]
    tokenizer = train_tokenizer(prompts * 2, 120)
    latents_of_prompts = embed_prompts(model, tokenizer, CT_RATE_18, dtype=BF16)
    volume = random_hu(1).unsqueeze(1).cpu()
    volume = volume.pin_memory() if HAS_GPU else volume

    def way() -> None:
        ((_, latents),) = embed_volumes(model, [(["a"], volume)], dtype=BF16)
        zero_shot(latents, latents_of_prompts, 10.0)

    report("use", "zero-shot of one volume in memory, 18 abnormalities", seconds=median_s(way))
    readout = read_prompts(latents_of_prompts, 10.0)

    def way_with_evidence() -> None:
        _, norms, tokens = embed_with_tokens(model, volume.to(DEVICE), dtype=BF16)
        split_scores(model, readout, tokens[0], norms[0])

    report("use", "the same with evidence", seconds=median_s(way_with_evidence))


def fine_tune(model: CTCLIP, manifest: Path, root: Path) -> None:
    """Seconds of a VocabFine step of one volume, and of LiPro on 24,128 scans' latents."""
    data = read_training_data(manifest, root, ["findings"])
    tokenizer = train_tokenizer([prompt for name in ABNORMALITIES for prompt in prompt_pair(name)] * 2, 120)
    steps = PromptSteps(
        model.train(), tokenizer, data, VocabFineConfig(), CT_RATE_18, Compute(precision=Precision.bfloat16)
    )
    batch = steps.make_batch(0)
    report("use", "VocabFine, forward and backward of one volume", seconds=median_s(lambda: steps.compute_loss(batch)))
    scans = 24_128 if HAS_GPU else 500
    latents = torch.nn.functional.normalize(torch.randn(scans, model.config.latent_dim), dim=-1)
    labels = (torch.rand(scans, len(ABNORMALITIES)) < 0.2).float()
    names = [str(scan) for scan in range(scans)]
    way = lambda: fit_head(latents, labels, names, PRESET.lipro)  # noqa: E731
    report("use", f"LiPro on {scans:,} latents", seconds=median_s(way, runs=1, warm=0))


def label() -> None:
    labeller = ReportLabeller(LabellerConfig() if HAS_GPU else PRESET.labeller).to(DEVICE).eval()
    reports = [long_report(index)[: 1400 + index % 1000] for index in range(4000 if HAS_GPU else 20)]
    tokenizer = train_tokenizer(reports, 500)
    transformer = TransformerLabeller(labeller, tokenizer, "random")
    duration_s = median_s(lambda: transformer.label(reports, dtype=BF16), runs=1, warm=1)
    tokens = sum(len(ids) for ids in tokenizer(reports)["input_ids"]) / len(reports)
    size = "RadBERT's size" if HAS_GPU else PRESET.name
    report("use", f"labelling, {size}, {tokens:.0f} tokens a report", reports_per_s=len(reports) / duration_s)


def restart() -> None:
    """A training that SIGKILL ends in the middle, and the same command again."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_data(root, 8)
        command = [sys.executable, "-c", f"from on_gpu.data import train_a_little; train_a_little({name!r})"]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            assert process.stdout is not None
            seen = []
            for line in process.stdout:
                seen.append(int(line))
                if seen[-1] == 5:
                    process.kill()
        started = time.perf_counter()
        again = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True)
        steps = [int(line) for line in again.stdout.split()]
        report(
            "restart", "killed after step 5 of 8, started again", continued_at_step=steps[0], ended_at_step=steps[-1],
            seconds=time.perf_counter() - started,
        )  # fmt: skip


def train_a_little(folder: str) -> None:
    """Eight steps with a checkpoint after every second. Prints the number of each."""
    config = replace(
        PRESET.training,
        batch_size=2,
        samples=16,
        steps_per_checkpoint=2,
        text_pretraining_samples=0,
        text_learning_rate=None,
    )
    preset = replace(PRESET, training=config)
    root = Path(folder)
    compute = Compute(precision=Precision.bfloat16, recompute=True)
    train_contrastive(
        root / "manifest.parquet", root, preset, root / "model",
        compute=compute, on_step=lambda record: print(record.step, flush=True),
    )  # fmt: skip


def long_report(index: int) -> str:
    """A report of more tokens than the longest that the model reads."""
    rng = np.random.default_rng(index)
    words = (
        "nodule",
        "lung",
        "right",
        "lower",
        "lobe",
        "measuring",
        "mm",
        "no",
        "pleural",
        "effusion",
        "heart",
        "size",
    )
    return " ".join(" ".join(rng.choice(words, 12)) + "." for _ in range(60))


def write_data(root: Path, count: int) -> Path:
    """Shards of `count` chest-like volumes (sixteen different ones) and their manifest."""
    recipe = PRESET.recipe
    shape = recipe.shape

    def draw(seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        noise = rng.standard_normal(shape, dtype=np.float32)
        noise[:, 1:] += noise[:, :-1]
        noise[:, :, 1:] += noise[:, :, :-1]
        y, x = np.mgrid[-1 : 1 : shape[1] * 1j, -1 : 1 : shape[2] * 1j].astype(np.float32)
        body = np.where(x**2 + y**2 > 0.9, -1000, np.where((abs(x) - 0.4) ** 2 + y**2 < 0.1, -870, 40))
        return np.clip(np.rint(body + np.where(body > -999, 12 * noise, 0)), -1000, 1000).astype(np.int16)

    with ThreadPoolExecutor(16) as pool:
        drawn = list(pool.map(draw, range(16 if HAS_GPU else 2)))

    def write(number: int) -> list[Any]:
        volumes = []
        for index in range(number, count, 16):
            facts = SimpleNamespace(
                voxels=drawn[index % len(drawn)], shape_in=shape, spacing_mm=(1.0, 1.0, 1.0),
                window=tuple((0, size) for size in shape), hu_mean=0.0, hu_std=1.0, hu_min=-1000, hu_max=1000,
                spacing_note=None, rescale_slope=1.0, rescale_intercept=0.0,
            )  # fmt: skip
            volumes.append(ShardVolume(f"train_{index}_a_1", "", facts))  # type: ignore[arg-type]
        path = f"{number}.arrow"
        return [(row.name, path, row.row_index) for row in write_shard(root / path, recipe, volumes)]

    with ThreadPoolExecutor(16) as pool:
        rows = [row for rows in pool.map(write, range(min(16, count))) for row in rows]
    columns = {
        "volume_name": [name for name, _, _ in rows],
        "shard_path": [path for _, path, _ in rows],
        "row_index": [index for _, _, index in rows],
        "scan_id": [name[:-2] for name, _, _ in rows],
        "patient_id": [name[:-4] for name, _, _ in rows],
        "split": ["train"] * len(rows),
        "findings": [long_report(index) for index in range(len(rows))],
        "impression": ["No nodule."] * len(rows),
        "labels": [[0.0] * 18] * len(rows),
    }
    pq.write_table(pa.table(columns), root / "manifest.parquet")
    return root / "manifest.parquet"
