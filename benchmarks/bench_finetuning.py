"""VocabFine steps that encode a volume once, once per group and once per prompt pair, and LiPro on stored latents.

Usage: python benchmarks/bench_finetuning.py [scans]
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ctclip_model.config import LiProConfig, tiny
from ctclip_model.data.label_sets import CT_RATE_18
from ctclip_model.models.clip import CTCLIP, similarity
from ctclip_model.training.lipro import fit_head
from ctclip_model.training.vocabfine import vocabfine_losses

RUNS = 5
SCANS, LATENT = 47_149, 512  # volumes of CT-RATE's train split, and the published width of a latent


def main() -> None:
    scans = int(sys.argv[1]) if len(sys.argv) > 1 else SCANS
    torch.set_num_threads(1)
    torch.manual_seed(0)
    preset = tiny()
    model = CTCLIP(preset.model).eval()
    volumes = torch.rand(4, 1, *preset.recipe.shape) * 2 - 1
    labels = (torch.rand(len(volumes), 18) < 0.3).float()
    ids = torch.randint(5, preset.model.text.vocab_size, (len(CT_RATE_18.prompts), 8))

    def once() -> None:
        prompts = model.encode_text(ids, torch.ones_like(ids))
        vocabfine_losses(model.encode_image(volumes), prompts, labels, model.temperature).sum().backward()

    ours = median_s(once)
    print(f"VocabFine, the tiny preset, {len(volumes)} volumes a step, one thread, median of {RUNS}")
    print(f"  encoded once     {ours:7.3f} s")
    for name, size in (("once per group", 6), ("once per pair", 1)):
        plain = median_s(lambda size=size: step_plainly(model, volumes, ids, labels, size))
        print(f"  {name:<16} {plain:7.3f} s   {plain / ours:6.1f} x")
    latents = F.normalize(torch.randn(scans, LATENT), dim=1)
    targets = (torch.rand(scans, 18) < 0.2).float()
    started = time.perf_counter()
    fit_head(latents, targets, [f"scan_{index}" for index in range(scans)], LiProConfig())
    print(f"LiPro on {scans:,} stored latents of {LATENT}, one thread: {time.perf_counter() - started:.1f} s")


def step_plainly(model: CTCLIP, volumes: Tensor, ids: Tensor, labels: Tensor, size: int) -> None:
    """One step the published way. Each group of `size` abnormalities encodes the volumes anew and goes backward."""
    for start in range(0, 18, size):
        tokens = ids[2 * start : 2 * (start + size)]
        texts = model.encode_text(tokens, torch.ones_like(tokens))
        scores = similarity(model.encode_image(volumes), texts, model.temperature).unflatten(1, (size, 2))
        is_present = labels[:, start : start + size, None] == 1
        pairs = torch.where(is_present, scores, scores.flip(-1)).softmax(-1)
        F.mse_loss(pairs, torch.tensor([1.0, 0.0]).expand_as(pairs)).backward()


def median_s(function: Callable[[], object]) -> float:
    times = []
    for _ in range(RUNS):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


if __name__ == "__main__":
    main()
