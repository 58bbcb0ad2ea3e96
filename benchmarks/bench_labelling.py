"""Report labelling with a model of RadBERT's size and random weights: padded to 512 tokens, and ours.

The texts are random words. Their lengths in tokens follow the 800 public hand-labelled reports (TOKEN_QUANTILES).

Usage: python benchmarks/bench_labelling.py [reports]
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from measure import in_turn, machine
from numpy.typing import NDArray

from ctclip_model.config import LabellerConfig
from ctclip_model.labelling.transformer import TransformerLabeller
from ctclip_model.models.report_labeller import ReportLabeller
from ctclip_model.models.text import tokenize, train_tokenizer

BATCH, PADDED_TO, RUNS = 8, 512, 3
# Lengths of the 800 reports in tokens of RoBERTa's vocabulary: quantiles at 0, 10, ... 100 %. The mean is 409.
TOKEN_QUANTILES = (80, 195, 242, 280, 317, 357, 402, 461, 554, 704, 1733)
RECONSTRUCTIONS = 50_188 / 25_692  # volumes per scan: the published way labels a report once per volume


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 48
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    lengths = np.interp((np.arange(count) + 0.5) / count, np.linspace(0, 1, 11), TOKEN_QUANTILES)
    texts = write_texts(lengths.astype(int))
    torch.manual_seed(0)
    model = ReportLabeller(LabellerConfig()).eval().to(device)
    torch.nn.init.normal_(model.classifier.weight, std=0.5)  # so that probabilities differ
    labeller = TransformerLabeller(model, train_tokenizer(texts, 2000), "random")
    results: dict[str, NDArray[np.float32]] = {}

    def plain() -> None:
        results["plain"] = label_plainly(labeller, texts, device)

    def ours() -> None:
        results["ours"] = labeller.label(texts)

    def half() -> None:
        results["half"] = labeller.label(texts, dtype=torch.bfloat16)

    ways = {"plain": plain, "ours": ours} | ({"half": half} if has_fast_bfloat16(device) else {})
    times = in_turn(ways, RUNS)
    difference = np.abs(results["plain"] - results["ours"]).max()
    assert ((results["plain"] >= 0.5) == (results["ours"] >= 0.5)).all()
    print(f"{count} reports, RadBERT's size, fp32, {machine()}, median of {RUNS}")
    ratio = times["plain"] / times["ours"]
    print(f"  padded to {PADDED_TO} {times['plain']:7.2f} s   ours {times['ours']:7.2f} s   {ratio:5.2f} x")
    print(f"  labelled once per scan ({RECONSTRUCTIONS:.2f} volumes each in CT-RATE): {ratio * RECONSTRUCTIONS:5.2f} x")
    print(f"  labels equal, probabilities within {difference:.0e}")
    if "half" in ways:
        difference = np.abs(results["plain"] - results["half"]).max()
        print(f"  in bfloat16 {times['half']:.2f} s   {times['plain'] / times['half']:5.2f} x;"
              f" probabilities within {difference:.3f}")  # fmt: skip
    else:
        print("  bfloat16: not measured, because this processor has no instructions for it")


def label_plainly(labeller: TransformerLabeller, texts: list[str], device: torch.device) -> NDArray[np.float32]:
    """Labels all reports in their order, padded to the limit, with every token of the last layer computed."""
    results = []
    for start in range(0, len(texts), BATCH):
        tokens = tokenize(labeller.tokenizer, texts[start : start + BATCH], PADDED_TO)
        surplus = (0, PADDED_TO - tokens["input_ids"].shape[1])
        ids, mask = (torch.nn.functional.pad(part, surplus).to(device) for part in tokens.values())
        positions = mask.cumsum(dim=1) * mask + 1
        with torch.inference_mode():
            pooled = labeller.model.model(ids, attention_mask=mask, position_ids=positions).pooler_output
            results.append(labeller.model.classifier(pooled).sigmoid().cpu().numpy())
    return np.concatenate(results)


def write_texts(lengths: NDArray[np.int64]) -> list[str]:
    """Texts of the given lengths, in random order. Each word is one token."""
    generator = np.random.default_rng(0)
    words = ["".join(chr(97 + digit) for digit in (n // 26 % 26, n % 26, 3)) for n in range(500)]
    return [" ".join(generator.choice(words, max(1, length))) for length in generator.permutation(lengths)]


def has_fast_bfloat16(device: torch.device) -> bool:
    return device.type == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported()


if __name__ == "__main__":
    main()
