"""Limits of the device, and our outputs on it against the published ones, the CPU and PyTorch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from ctclip_model.config import CTCLIPConfig, TextConfig, VisionConfig
from ctclip_model.device import autocast_to
from ctclip_model.models import vision
from ctclip_model.models.clip import CTCLIP
from on_gpu.common import BF16, DEVICE, HAS_GPU, PRESET, attempt, median_s, random_hu, random_tokens, report

ROOT = Path(__file__).resolve().parents[2]
TINY_GOLDEN = CTCLIPConfig(  # the model of tests/golden/ctclip_tiny
    vision=VisionConfig(
        dim=32, codebook_size=64, image_size=40, patch_size=10, depth=30, temporal_patch_size=5, spatial_layers=2,
        temporal_layers=2, dim_head=8, heads=4,
    ),
    text=TextConfig(vocab_size=200, hidden_size=32, layers=2, heads=4, intermediate_size=64),
    latent_dim=16,
)  # fmt: skip


def peaks() -> None:
    """Limits of the card: a product in bfloat16, a copy on the card, a copy to the card."""
    size = 8192 if HAS_GPU else 128
    a, b = (torch.randn(size, size, device=DEVICE, dtype=BF16) for _ in range(2))
    report("peaks", "bf16 product", tflops=2 * size**3 / median_s(lambda: a @ b, runs=20) / 1e12)
    a32 = a.float()
    report("peaks", "fp32 product", tflops=2 * size**3 / median_s(lambda: a32 @ a32, runs=5) / 1e12)
    large = torch.empty(2**31 if HAS_GPU else 2**24, dtype=torch.uint8, device=DEVICE)
    report("peaks", "copy on the card", gb_per_s=2 * large.nbytes / median_s(large.clone, runs=10) / 1e9)
    host = torch.zeros(2**30 if HAS_GPU else 2**24, dtype=torch.uint8, pin_memory=HAS_GPU)
    seconds = median_s(lambda: host.to(DEVICE, non_blocking=True), runs=5)
    report("peaks", "copy to the card", gb_per_s=host.nbytes / seconds / 1e9)


def parity() -> None:
    """The published outputs on this device, and the full size against the CPU."""
    for dtype in (None, BF16):
        report("parity", f"golden latents, {dtype or 'float32'}", **golden_differences(dtype))
    torch.manual_seed(0)
    model = CTCLIP(PRESET.model).eval()
    scans, text = random_hu(1).cpu(), random_tokens(36, 8)
    exact = outputs_on(model, torch.device("cpu"), None, scans, text)
    for name, dtype in (("float32", None), ("bfloat16", BF16)):
        found = outputs_on(model, DEVICE, dtype, scans, text)
        latents, probabilities, codes = ((a - b).abs() for a, b in zip(found, exact, strict=True))
        report(
            "parity", f"{PRESET.name}, {name} against the CPU", latents=latents.max().item(),
            probabilities=probabilities.max().item(), equal_codes=(codes == 0).float().mean().item(),
        )  # fmt: skip


def golden_differences(dtype: torch.dtype | None) -> dict[str, float]:
    """Largest differences of image and text latents from the published ones."""
    folder = ROOT / "tests" / "golden"
    inputs, outputs, weights = (
        load_file(folder / f"ctclip_tiny.{name}.safetensors") for name in ("inputs", "outputs", "weights")
    )
    facts = json.loads((folder / "ctclip_tiny.json").read_text())
    weights |= {key: torch.empty(shape) for key, shape in facts["empty_buffers_or_params"]}
    model = CTCLIP(TINY_GOLDEN)
    model.load_state_dict(weights)
    model = model.to(DEVICE).eval()
    volume, ids, mask = (inputs[name].to(DEVICE) for name in ("volume", "input_ids", "attention_mask"))
    with torch.inference_mode(), autocast_to(DEVICE, dtype):
        images, texts = model.encode_image(volume), model.encode_text(ids, mask)
    found = {"images": images, "texts": texts}
    known = {"images": outputs["image_latents"], "texts": outputs["text_latents"]}
    return {name: (found[name].cpu() - known[name]).abs().max().item() for name in found}


def outputs_on(
    model: CTCLIP, device: torch.device, dtype: torch.dtype | None, scans: Tensor, text: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, probabilities of pairs of texts, and the codes of all tokens."""
    model = model.to(device)
    volumes = scans.unsqueeze(1).to(device)
    with torch.inference_mode(), autocast_to(device, dtype):
        _, codes = model.visual_transformer.vq(model.unquantized_tokens(volumes))
        latents = model.encode_image(volumes)
        prompts = model.encode_text(*(part.to(device) for part in text)).unflatten(0, (-1, 2))
    scores = torch.einsum("bd,lpd->blp", latents.float(), prompts.float()) * model.temperature.exp()
    return latents.cpu().float(), scores.softmax(dim=-1)[..., 0].cpu(), codes.cpu()


def compare_kernels() -> None:
    """Our kernels against PyTorch in float64: relative errors of outputs and gradients."""
    if not vision.HAS_KERNELS or not HAS_GPU:
        report("kernels", "none: there is no GPU with Triton")
        return
    for name, errors in (
        ("positions", lambda: errors_of_positions(2, 24, 24, 512)),
        ("spatial attention", lambda: errors_of_attention(24, 576, True)),
        ("temporal attention", lambda: errors_of_attention(576, 24, False)),
        ("gate", lambda: errors_of_gate(1376)),
    ):
        with attempt("kernels", name):
            report("kernels", name, **errors())
    with attempt("kernels", "code search"):
        report("kernels", "code search in bfloat16 against float32", equal_codes=share_of_equal_codes())


def relative_errors(names: Sequence[str], found: Sequence[Tensor], known: Sequence[Tensor]) -> dict[str, float]:
    return {
        name: ((ours - theirs).norm() / theirs.norm()).item()
        for name, ours, theirs in zip(names, found, known, strict=True)
    }


def errors_of_positions(batch: int, depth: int, side: int, dim: int) -> dict[str, float]:
    torch.manual_seed(0)
    grid = (batch, depth, side, side)
    conv = vision.PositionGenerator(dim).to(DEVICE)
    tokens = torch.randn(batch * depth, side**2, dim, device=DEVICE, requires_grad=True)
    slope = torch.randn_like(tokens)
    ours = conv.add(tokens, grid)
    found = [ours, *torch.autograd.grad(ours, [tokens, *conv.parameters()], slope)]
    conv, exact = conv.double(), tokens.detach().double().requires_grad_()
    theirs = exact + conv(exact, grid)
    known = [theirs, *torch.autograd.grad(theirs, [exact, *conv.parameters()], slope.double())]
    return relative_errors(("tokens", "gradient", "weight", "bias"), found, known)


def errors_of_attention(groups: int, count: int, has_bias: bool) -> dict[str, float]:
    torch.manual_seed(0)
    queries, keys, values = (torch.randn(groups, count, 8, 32, device=DEVICE) for _ in range(3))
    leaves = [F.normalize(queries, dim=-1), F.normalize(keys, dim=-1), values]
    if has_bias:
        leaves.append(torch.randn(1, 8, count, count, device=DEVICE))
    leaves = [leaf.to(BF16).requires_grad_() for leaf in leaves]
    ours = vision.attend(*leaves[:3], leaves[3] if has_bias else None)
    slope = torch.randn_like(ours)
    found = [ours, *torch.autograd.grad(ours, leaves, slope)]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    heads_first = [part.transpose(1, 2) for part in exact[:3]]
    scores = heads_first[0] @ heads_first[1].transpose(-1, -2) * vision.ATTENTION_SCALE
    shares = (scores + exact[3] if has_bias else scores).softmax(dim=-1)
    theirs = (shares @ heads_first[2]).transpose(1, 2)
    known = [theirs, *torch.autograd.grad(theirs, exact, slope.double())]
    return relative_errors(("out", "queries", "keys", "values", "bias")[: len(found)], found, known)


def errors_of_gate(width: int) -> dict[str, float]:
    torch.manual_seed(0)
    hidden = torch.randn(300, 2 * width, device=DEVICE).to(BF16).requires_grad_()
    ours = vision.gpu_gate.gate(hidden)
    slope = torch.randn_like(ours)
    exact = hidden.detach().double().requires_grad_()
    values, gates = exact.chunk(2, dim=-1)
    theirs = values * F.gelu(gates)
    found = [ours, *torch.autograd.grad(ours, hidden, slope)]
    known = [theirs, *torch.autograd.grad(theirs, exact, slope.double())]
    return relative_errors(("out", "gradient"), found, known)


def share_of_equal_codes() -> float:
    """The share of random tokens whose code is the same in both searches."""
    torch.manual_seed(0)
    units, codes = (F.normalize(torch.randn(count, 512, device=DEVICE), dim=-1) for count in (13_824, 8192))
    found, exact = vision.search_in_bfloat16(units, codes), vision.search_in_float32(units, codes)
    return (found == exact).float().mean().item()
