"""Training steps on random volumes: the step table, its kernels, and the parts of the model one by one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace

import plain_model
import torch
import torch.nn.functional as F
from flops import step_flops
from measure import synchronize
from torch import Tensor
from torch.profiler import ProfilerActivity
from torch.profiler import profile as record

from ctclip_model.device import Compute, Precision, autocast_to
from ctclip_model.models import vision
from ctclip_model.models.clip import CTCLIP, contrastive_loss
from ctclip_model.training.contrastive import make_optimizer, prepare_model
from ctclip_model.training.contrastive_steps import Batch, ContrastiveSteps
from ctclip_model.training.engine.processes import clip_gradients
from ctclip_model.training.step_memory import estimate_step
from on_gpu.common import BF16, DEVICE, HAS_GPU, PRESET, attempt, median_s, random_hu, random_tokens, report


@dataclass(frozen=True)
class Variant:
    """One way of a training step."""

    name: str
    batch: int
    dtype: torch.dtype | None = BF16
    tf32: bool = False
    is_plain: bool = False
    compiled: bool = True
    recompute: bool = False
    at_once: int | None = None
    group: int = 8  # volumes that a layer takes at a time

    @property
    def compute(self) -> Compute:
        return Compute(
            precision=Precision.float32 if self.dtype is None else Precision.bfloat16,
            recompute=self.recompute, compile=self.compiled, encoded_at_once=self.at_once,
        )  # fmt: skip


VARIANTS = [
    Variant("ours, bf16, recomputed", 64, recompute=True),
    Variant("ours, bf16, recomputed", 32, recompute=True),
    Variant("ours, bf16, recomputed", 8, recompute=True),
    Variant("ours, bf16", 24),
    Variant("ours, bf16, 24 in a layer", 24, group=24),
    Variant("ours, bf16", 8),
    Variant("ours, bf16, 16 at once", 128, at_once=16),
    Variant("ours, bf16, not compiled", 8, compiled=False),
    Variant("ours, TF32, not compiled", 8, dtype=None, tf32=True, compiled=False),
    Variant("ours, fp32, not compiled", 8, dtype=None, compiled=False),
    Variant("plain, fp32", 8, dtype=None, is_plain=True, compiled=False),
]


def variants_here() -> list[Variant]:
    """All variants on a GPU. On a CPU, one of each kind with small batches, which waits for no compiler."""
    if HAS_GPU:
        return VARIANTS
    kinds = {(v.recompute, v.at_once is None, v.is_plain): v for v in VARIANTS}.values()
    return [replace(v, batch=4, at_once=v.at_once and 2, compiled=False) for v in kinds]


def make_step(variant: Variant) -> Callable[[], None]:
    """A training step as the pipeline takes it, on random volumes with the longest reports."""
    torch.manual_seed(0)
    vision.TOKENS_AT_ONCE["cuda"] = variant.group * math.prod(PRESET.model.vision.grid)
    compute = variant.compute
    with DEVICE:
        model = prepare_model(CTCLIP(PRESET.model), compute).train()
    config = replace(
        PRESET.training, batch_size=variant.batch, text_learning_rate=None, varies_samples=False, codes_from_data=False
    )
    data = SimpleNamespace(scan_ids=[str(index) for index in range(variant.batch)])
    steps = ContrastiveSteps(model, None, data, config, compute)  # type: ignore[arg-type]
    optimizer = make_optimizer(model, config)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    ids, mask = random_tokens(variant.batch, PRESET.model.text.max_length)
    labels = torch.full((variant.batch, 0), torch.nan)  # no prompt loss reads them
    batch = Batch(random_hu(variant.batch), (ids[:, None], mask[:, None]), labels, seed=0)

    def plain_loss() -> Tensor:
        images = plain_model.encode_image(model, batch.volumes.float().div(1000).unsqueeze(1))
        return contrastive_loss(images, model.encode_text(ids.to(DEVICE), mask.to(DEVICE)), model.temperature)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss = plain_loss() if variant.is_plain else steps.compute_loss(batch)
        if not steps.is_in_parts:
            loss.backward()
        clip_gradients(parameters, 0.5).item()
        optimizer.step()
        if not variant.is_plain:
            steps.after_step()

    return step


def steps() -> None:
    """The step table: volumes a second, share of the measured peak, and memory."""
    size = 8192 if HAS_GPU else 128
    a = torch.randn(size, size, device=DEVICE, dtype=BF16)
    peak_tflops = 2 * size**3 / median_s(lambda: a @ a, runs=10) / 1e12
    flops = step_flops(PRESET)
    report("steps", "needed by a volume", tflop=flops / 1e12)
    for variant in variants_here():
        name = f"{variant.name}, batch {variant.batch}"
        with attempt("steps", name):
            torch.backends.cuda.matmul.allow_tf32 = variant.tf32
            if HAS_GPU:
                torch.cuda.reset_peak_memory_stats()
            started = time.perf_counter()
            step = make_step(variant)
            step()
            synchronize()
            first_s = time.perf_counter() - started
            seconds = median_s(step, runs=3 if variant.batch > 32 else 4, warm=1)
            speed = variant.batch / seconds
            memory = torch.cuda.max_memory_allocated() / 1e9 if HAS_GPU else None
            report(
                "steps", name, volumes_per_s=speed, tflops=speed * flops / 1e12,
                share_of_peak=speed * flops / 1e12 / peak_tflops, memory_gb=memory, foretold_gb=foretell_gb(variant),
                first_step_s=first_s,
            )  # fmt: skip
        step = None  # type: ignore[assignment]


def foretell_gb(variant: Variant) -> float | None:
    """The memory that `ctclip doctor --train` foretells for our ways."""
    if variant.is_plain:
        return None
    memory = estimate_step(PRESET, variant.compute)
    return (memory.fixed + memory.per_volume * (variant.at_once or variant.batch)) / 1e9


def profile() -> None:
    """The kernels that take most of a training step."""

    variant = Variant("ours, bf16", 24 if HAS_GPU else 4, compiled=HAS_GPU)
    step = make_step(variant)
    for _ in range(2):
        step()
    activities = [ProfilerActivity.CUDA] if HAS_GPU else [ProfilerActivity.CPU]
    with record(activities=activities) as recorded:
        step()
        synchronize()
    attribute = "self_device_time_total" if HAS_GPU else "self_cpu_time_total"
    events = sorted(recorded.key_averages(), key=lambda event: -getattr(event, attribute))
    total = sum(getattr(event, attribute) for event in events)
    for event in events[:48]:
        microseconds = getattr(event, attribute)
        report(
            "profile", event.key[:110], share=microseconds / total, ms_a_volume=microseconds / 1e3 / variant.batch,
            calls=event.count,
        )  # fmt: skip
    report("profile", "all kernels", ms_a_volume=total / 1e3 / variant.batch)


def time_part(name: str, forward: Callable[[], Tensor], count: int, *, backward: bool = True) -> None:
    """Reports the time of a part's forward pass, and of both passes, in ms a volume of `count`."""

    def way() -> None:
        with autocast_to(DEVICE, BF16):
            out = forward()
        if backward:
            out.backward(torch.ones_like(out))

    with attempt("parts", name):
        both = median_s(way) * 1e3 / count
        with torch.no_grad(), autocast_to(DEVICE, BF16):
            once = median_s(forward) * 1e3 / count
        report("parts", name, ms_a_volume=both, forward_ms=once)


def parts() -> None:
    """Forward and backward of each part of the model for eight volumes, in ms a volume, each in several ways."""
    count = 8 if HAS_GPU else 2
    torch.manual_seed(0)
    config = PRESET.model.vision
    depth, height, width = config.grid
    grid = (count, depth, height, width)
    model = CTCLIP(PRESET.model).to(DEVICE).train()
    encoder = model.visual_transformer
    spatial = encoder.enc_spatial_transformer.layers[0]
    time_way = partial(time_part, count=count)
    slabs = torch.randn(count * depth, height * width, config.dim, device=DEVICE, requires_grad=True)

    conv = spatial["0"]
    time_way("positions", lambda: conv.add(slabs, grid))
    heads = config.heads
    head = torch.randn(count * depth, height * width, heads, config.dim_head, device=DEVICE, dtype=BF16)
    head.requires_grad_()
    with torch.no_grad():
        bias_value = encoder.spatial_rel_pos_bias()
    bias = bias_value.detach().requires_grad_()
    small = torch.randn(count * height * width, depth, heads, config.dim_head, device=DEVICE, dtype=BF16)
    small.requires_grad_()

    def sdpa(part: Tensor, bias: Tensor | None) -> Tensor:
        part = part.transpose(1, 2)
        return F.scaled_dot_product_attention(part, part, part, bias, scale=8.0)

    time_way("spatial attention, SDPA", lambda: sdpa(head, bias))
    time_way("temporal attention, SDPA", lambda: sdpa(small, None))
    time_way("spatial attention", lambda: vision.attend(head, head, head, bias))
    time_way("temporal attention", lambda: vision.attend(small, small, small, None))
    units = F.normalize(slabs.detach().flatten(0, 1), dim=-1)
    for is_half in (False, True) if HAS_GPU and vision.HAS_KERNELS else (False,):
        name = "bfloat16" if is_half else "float32"
        search = partial(encoder.vq.search, units, in_bfloat16=is_half)
        time_way(f"code search, {name}", search, backward=False)
    time_way("feed-forward", lambda: spatial["3"](slabs))
    ids, mask = (part.to(DEVICE) for part in random_tokens(8 * count, PRESET.model.text.max_length))
    time_way("text of the longest, 8 a volume", lambda: model.encode_text(ids, mask))
    for fused in (False, True):
        optimizer = torch.optim.AdamW(model.parameters(), 1e-6, fused=fused)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        report("parts", f"AdamW, fused {fused}, ms a step", ms=median_s(optimizer.step) * 1e3)
