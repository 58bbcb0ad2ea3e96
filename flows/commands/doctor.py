"""`ctclip doctor`: what of this machine and data root is not as it should be, before a run finds out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Annotated

import typer

from ctclip_model.device import Compute, Precision
from flows.commands import app
from flows.commands.options import DataRoot, Dtype, Json, Preset
from flows.display import console, print_json
from tasks.models.presets import find_preset
from tasks.settings import DATA_ROOT, PRESET
from tasks.upkeep import doctor as health
from tasks.upkeep.doctor import CheckResult


@app.command()
def doctor(
    data_root: DataRoot = DATA_ROOT,
    train: Annotated[bool, typer.Option("--train", help="What batch fits this machine's memory.")] = False,
    preset: Preset = PRESET,
    dtype: Dtype = Precision.float32,
    as_json: Json = False,
) -> None:
    """Check this machine; exit code 1 where something is wrong."""
    checks: list[Callable[[], Iterable[CheckResult]]] = [
        health.check_versions, health.check_gpu, lambda: health.check_data_root(data_root), health.check_token,
        health.check_server,
    ]  # fmt: skip
    if train:
        checks.append(lambda: check_training_memory(preset, dtype))
    findings = [finding for check in checks for finding in check()]
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            console.print(f"{'✗' if finding.is_bad else '✓'} {finding.check}: {finding.text}", soft_wrap=True)
    if any(finding.is_bad for finding in findings):
        raise typer.Exit(1)


def check_training_memory(preset: str, dtype: Precision) -> list[CheckResult]:
    """How many volumes a training step of the preset can hold, with and without recomputing."""
    from ctclip_model.training.step_memory import estimate_step

    chosen = find_preset(preset)
    name, free_bytes = free_memory()
    counts = {}
    findings = []
    for recompute in (False, True):
        memory = estimate_step(chosen, Compute(precision=dtype, recompute=recompute))
        counts[recompute] = memory.count_fitting(free_bytes)
        way = "recomputed" if recompute else "as it is"
        findings.append(
            CheckResult(
                "training memory",
                f"{preset}, {dtype}, {way}: {memory.fixed / 1e9:.2g} GB and {memory.per_volume / 1e9:.2g} GB a volume; "
                f"of {free_bytes / 1e9:.1f} GB free on {name}, {counts[recompute]} volumes at once",
            )
        )
    most = max(counts.values())
    wanted = chosen.training.batch_size
    if most >= wanted:
        findings.append(CheckResult("batch", f"the preset's {wanted} fits one process"))
    elif most:
        findings.append(CheckResult("batch", f"the preset's {wanted} fits one process with --at-once {most}"))
    else:
        findings.append(CheckResult("batch", "not one volume fits: take a smaller preset, or bfloat16", is_bad=True))
    return findings


def free_memory() -> tuple[str, int]:
    """The first GPU and its free bytes; where there is none, this machine's RAM."""
    import psutil
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name(), torch.cuda.mem_get_info()[0]
    return "the CPU (there is no GPU)", psutil.virtual_memory().available
