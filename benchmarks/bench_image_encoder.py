"""The full-size image encoder on one volume: forward, and forward with backward, the plain way and ours.

Usage: python benchmarks/bench_image_encoder.py [runs]
"""

from __future__ import annotations

import sys

import plain_model
import torch
from measure import in_turn, machine, peak_bytes
from torch import Tensor

from ctclip_model.config import published
from ctclip_model.models.clip import CTCLIP


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    model = CTCLIP(published().model).to(device)
    volume = torch.rand(1, 1, *published().recipe.shape, device=device) * 2 - 1

    def plain() -> Tensor:
        return plain_model.encode_image(model, volume)

    def ours() -> Tensor:
        model.visual_transformer.recompute = False
        return model.encode_image(volume)

    def ours_recomputed() -> Tensor:
        model.visual_transformer.recompute = True
        return model.encode_image(volume)

    ways = {"plain": plain, "ours": ours, "ours, recomputed": ours_recomputed}
    print(f"image encoder, full size, one volume, fp32, {machine()}, median of {runs}")
    model.eval()
    with torch.inference_mode():
        torch.testing.assert_close(plain(), ours(), rtol=0, atol=1e-5)
        forward = in_turn({"plain": plain, "ours": ours}, runs)
    print(f"  forward            plain {forward['plain']:6.2f} s  ours {forward['ours']:6.2f} s"
          f"  {forward['plain'] / forward['ours']:5.2f} x faster")  # fmt: skip

    model.visual_transformer.train()

    def step(encode) -> None:  # type: ignore[no-untyped-def]
        model.zero_grad(set_to_none=True)
        encode().sum().backward()
        model.visual_transformer.vq.statistics = None

    steps = {name: (lambda encode=encode: step(encode)) for name, encode in ways.items()}
    peaks = {}
    for name, one in steps.items():
        model.zero_grad(set_to_none=True)
        peaks[name] = peak_bytes(one)
    model.zero_grad(set_to_none=True)
    times = in_turn(steps, runs)
    for name in ("ours", "ours, recomputed"):
        print(f"  forward + backward plain {times['plain']:6.2f} s  {name} {times[name]:6.2f} s"
              f"  {times['plain'] / times[name]:5.2f} x faster")  # fmt: skip
        print(f"  peak above model   plain {peaks['plain'] / 1e9:6.2f} GB {name} {peaks[name] / 1e9:6.2f} GB"
              f"  1/{peaks['plain'] / peaks[name]:.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
