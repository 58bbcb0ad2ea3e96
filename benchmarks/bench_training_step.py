"""A contrastive training step: the plain way in float32, and ours in bfloat16, recomputed, and compiled.

A GPU measures the full size with batch 8. A CPU takes the tiny model, only to show that every way runs.

Usage: python benchmarks/bench_training_step.py [batch]
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import plain_model
import torch
from measure import in_turn, machine, peak_bytes
from torch import Tensor

from ctclip_model.config import published, tiny
from ctclip_model.models.clip import CTCLIP, contrastive_loss

RUNS = 3


def main() -> None:
    has_gpu = torch.cuda.is_available()
    device, preset = ("cuda", published()) if has_gpu else ("cpu", tiny())
    batch = int(sys.argv[1]) if len(sys.argv) > 1 else 8
    torch.manual_seed(0)
    model = CTCLIP(preset.model).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-6)
    text = preset.model.text
    volumes = torch.rand(batch, 1, *preset.recipe.shape, device=device) * 2 - 1
    ids = torch.randint(5, text.vocab_size, (batch, text.max_length), device=device)
    mask = torch.ones_like(ids)

    def step(encode: Callable[[Tensor], Tensor], dtype: torch.dtype | None) -> Callable[[], None]:
        def run() -> None:
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device, dtype, enabled=dtype is not None):
                loss = contrastive_loss(encode(volumes), model.encode_text(ids, mask), model.temperature)
            loss.backward()
            optimizer.step()
            model.update_codebook()

        return run

    def ours(*, recompute: bool) -> Callable[[Tensor], Tensor]:
        def encode(volumes: Tensor) -> Tensor:
            model.visual_transformer.recompute = recompute
            return model.encode_image(volumes)

        return encode

    plain = step(lambda volumes: plain_model.encode_image(model, volumes), None)
    print(f"training step, {preset.name}, batch {batch}, {machine()}, median of {RUNS}")
    reference = report("plain, float32", plain, batch)
    report("ours, float32", step(ours(recompute=False), None), batch, reference)
    report("ours, bfloat16", step(ours(recompute=False), torch.bfloat16), batch, reference)
    report("ours, bfloat16, recomputed", step(ours(recompute=True), torch.bfloat16), batch, reference)
    model.visual_transformer.compile_layers()
    report("the same, compiled", step(ours(recompute=True), torch.bfloat16), batch, reference)


def report(name: str, way: Callable[[], None], batch: int, reference: float | None = None) -> float | None:
    """Prints volumes per second and memory of one way. Returns seconds, or None if it does not fit in memory."""
    try:
        way()  # allocates the optimizer's own memory
        above = peak_bytes(way)
        duration_s = in_turn({name: way}, RUNS)[name]
    except torch.OutOfMemoryError:
        print(f"  {name:28} does not fit")
        return None
    ratio = f"{reference / duration_s:5.2f} x" if reference else ""
    total = f", {torch.cuda.max_memory_allocated() / 1e9:.1f} GB in all" if torch.cuda.is_available() else ""
    print(f"  {name:28} {batch / duration_s:8.2f} volumes/s {ratio:8} {above / 1e9:6.2f} GB above what stays{total}")
    return duration_s


if __name__ == "__main__":
    main()
