"""The full-size image encoder on one volume: forward, and forward with backward, the plain way and ours.

Then our forward pass in bfloat16, and on a CPU the share of time outside matrix products, attention and convolution.

Usage: python benchmarks/bench_image_encoder.py [runs]
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import plain_model
import torch
from measure import in_turn, machine, peak_bytes
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from ctclip_model.config import published
from ctclip_model.device import autocast_to
from ctclip_model.models.clip import CTCLIP

PRODUCTS = {"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::mkldnn_convolution",
            "aten::_scaled_dot_product_flash_attention_for_cpu"}  # fmt: skip


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

    half = in_dtype(ours, torch.bfloat16)
    times = in_turn({"float32": ours, "bfloat16": half}, runs)
    print(f"  forward            float32 {times['float32']:.2f} s  bfloat16 {times['bfloat16']:.2f} s"
          f"  {times['float32'] / times['bfloat16']:5.2f} x faster")  # fmt: skip
    if device == "cpu":
        shares = ", ".join(f"{share_outside_products(in_dtype(ours, dtype)):.0%}" for dtype in (None, torch.bfloat16))
        print(f"  time outside products, float32 and bfloat16: {shares}")

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


def in_dtype(encode: Callable[[], Tensor], dtype: torch.dtype | None) -> Callable[[], Tensor]:
    """A forward pass in autocast."""

    def way() -> Tensor:
        with torch.inference_mode(), autocast_to(torch.device("cuda" if torch.cuda.is_available() else "cpu"), dtype):
            return encode()

    return way


def share_outside_products(way: Callable[[], Tensor]) -> float:
    """Share of a CPU's time that goes to neither matrix products nor attention nor the patches' convolution."""
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        way()
    times = {event.key: event.self_cpu_time_total for event in recorded.key_averages()}
    products = sum(spent for name, spent in times.items() if name in PRODUCTS)
    return 1 - products / sum(times.values())


if __name__ == "__main__":
    main()
