"""Zero-shot probabilities of 18 abnormalities of one volume, full size, same weights: the published way and ours.

The published way encodes the image and two texts, padded to 512 tokens, for each abnormality. Ours encodes the image
once. It encodes the prompts at their own length once for a data set, which is counted here for the one volume.

Usage: python benchmarks/bench_zero_shot.py
"""

from __future__ import annotations

import plain_model
import torch
import torch.nn.functional as F
from measure import machine, seconds
from torch import Tensor

from ctclip_model.config import published
from ctclip_model.data.abnormalities import ABNORMALITIES, prompt_pair
from ctclip_model.data.label_sets import CT_RATE_18
from ctclip_model.evaluation.embed import embed_prompts, embed_volumes
from ctclip_model.evaluation.zero_shot import zero_shot
from ctclip_model.models.clip import CTCLIP
from ctclip_model.models.text import tokenize, train_tokenizer

PADDED_TO = 512  # tokens


def main() -> None:
    preset = published()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model = CTCLIP(preset.model).eval().to(device)
    volume = torch.rand(1, 1, *preset.recipe.shape, device=device) * 2 - 1
    pairs = [prompt_pair(name) for name in ABNORMALITIES]
    tokenizer = train_tokenizer([prompt for pair in pairs for prompt in pair], preset.model.text.vocab_size)
    padded = [pad(tokenize(tokenizer, pair, PADDED_TO), device) for pair in pairs]
    results: dict[str, Tensor] = {}

    def plain() -> None:
        results["plain"] = plain_model.zero_shot(model, volume, padded).cpu()

    def ours() -> None:
        prompts = embed_prompts(model, tokenizer, CT_RATE_18)
        ((_, latents),) = embed_volumes(model, [(["volume"], volume)])
        results["ours"] = torch.from_numpy(zero_shot(latents, prompts, model.temperature.exp().item()))[0]

    with torch.inference_mode():
        plain_model.encode_image(model, volume)  # warm-up
        ours()
        ours_s = seconds(ours)
        plain_s = seconds(plain)
    difference = (results["plain"].double() - results["ours"]).abs().max().item()
    assert difference < 1e-4, difference
    print(f"zero-shot, 18 abnormalities, one volume, full size, fp32, {machine()}, one run")
    print(f"  plain {plain_s:7.2f} s   ours {ours_s:6.2f} s   {plain_s / ours_s:5.1f} x faster;"
          f" probabilities within {difference:.0e}")  # fmt: skip


def pad(tokens: dict[str, Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    ids, mask = tokens["input_ids"], tokens["attention_mask"]
    surplus = (0, PADDED_TO - ids.shape[1])
    return F.pad(ids, surplus).to(device), F.pad(mask, surplus).to(device)


if __name__ == "__main__":
    main()
