"""`ctclip doctor`: checks of this machine and the data root, before a run fails."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from ctclip_model.device import Compute, Precision
from flows.display import console, print_json
from flows.options import DataRoot, Dtype, Json, Preset
from tasks.settings import DATA_ROOT, PRESET

if TYPE_CHECKING:
    from tasks.upkeep.doctor import CheckResult


def doctor(
    data_root: DataRoot = DATA_ROOT,
    train: Annotated[bool, typer.Option("--train", help="Find the largest batch for this machine's memory.")] = False,
    preset: Preset = PRESET,
    dtype: Dtype = Precision.float32,
    as_json: Json = False,
) -> None:
    """Check this machine and the data root. Exit code 1: a fault."""
    from tasks.upkeep import doctor as health

    checks: list[Callable[[], Iterable[CheckResult]]] = [
        health.check_versions, health.check_gpu, health.check_encoders, lambda: health.check_data_root(data_root),
        health.check_token, health.check_server,
    ]  # fmt: skip
    if train:
        checks.append(lambda: check_training_memory(preset, dtype))
    results = [result for check in checks for result in check()]
    if as_json:
        print_json([asdict(result) for result in results])
    else:
        for result in results:
            console.print(f"{'✗' if result.is_bad else '✓'} {result.check}: {result.text}", soft_wrap=True)
    if any(result.is_bad for result in results):
        raise typer.Exit(1)


def check_training_memory(preset: str, dtype: Precision) -> list[CheckResult]:
    """Number of volumes that a training step of the preset can hold, with and without recomputation."""
    from ctclip_model.training.step_memory import estimate_step
    from tasks.models.presets import find_preset
    from tasks.upkeep.doctor import CheckResult

    chosen = find_preset(preset)
    device, free_bytes = find_free_memory()
    results, counts = [], []
    for recompute in (False, True):
        memory = estimate_step(chosen, Compute(precision=dtype, recompute=recompute))
        counts.append(memory.count_fitting(free_bytes))
        way = "with recomputation" if recompute else "without recomputation"
        results.append(
            CheckResult(
                "training memory",
                f"{preset}, {dtype}, {way}: {memory.fixed / 1e9:.2g} GB and {memory.per_volume / 1e9:.2g} GB a volume. "
                f"{counts[-1]} volumes at once fit the {free_bytes / 1e9:.1f} GB free on {device}",
            )
        )
    most, batch_size, per_scan = max(counts), chosen.training.batch_size, chosen.training.volumes_per_scan
    unit, batch = "volume", f"the preset's {batch_size}"
    if per_scan > 1:
        unit, batch = "scan", f"the preset's batch of {batch_size} x {per_scan} volumes"
    if most >= batch_size * per_scan:
        results.append(CheckResult("batch", f"{batch} fits one process"))
    elif most >= per_scan:
        results.append(CheckResult("batch", f"{batch} fits one process with --at-once {most}"))
    else:
        results.append(
            CheckResult("batch", f"no {unit} fits: choose a smaller preset, or --dtype bfloat16", is_bad=True)
        )
    return results


def find_free_memory() -> tuple[str, int]:
    """Name and free bytes of the first GPU, or of the CPU's memory if there is no GPU."""
    import psutil
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name(), torch.cuda.mem_get_info()[0]
    return "the CPU (there is no GPU)", psutil.virtual_memory().available
