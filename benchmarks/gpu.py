"""Every figure of a GPU in one command: peaks, parity, the step table, training from shards, embedding, labelling.

Each section is a process with its own time limit and prints its results as they come. FOLDER gets all of them as
`gpu.json` and as a table, `gpu.md`. Without a GPU the tiny model takes the same way, only to show that it runs. It
needs no nibabel, DuckDB, Dask or Prefect: a checkout and a Python with CUDA's PyTorch will do.

Usage: PYTHONPATH=. python benchmarks/gpu.py [--out FOLDER] [SECTION ...]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measure import machine
from on_gpu import data, parity, steps
from on_gpu.common import HAS_GPU, RESULT

SECTIONS: dict[str, tuple[Callable[[], None], int]] = {  # with the time limit in seconds
    "peaks": (parity.peaks, 20),
    "kernels": (parity.compare_kernels, 25),
    "parity": (parity.parity, 35),
    "steps": (steps.steps, 115),
    "train": (data.train, 100),
    "use": (data.use, 60),
    "restart": (data.restart, 45),
    "profile": (steps.profile, 40),
    "parts": (steps.parts, 25),
}
LIMIT_FACTOR = 1 if HAS_GPU else 20  # a CPU shows that it runs, however busy it is


def main() -> None:
    parser = argparse.ArgumentParser(description="Every figure of a GPU in one command.")
    parser.add_argument("sections", nargs="*", default=list(SECTIONS), metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), metavar="FOLDER")
    parser.add_argument("--here", action="store_true", help="run the sections in this process, without limits")
    given = parser.parse_args()
    if unknown := set(given.sections) - set(SECTIONS):
        parser.error(f"there is no section {', '.join(sorted(unknown))}: choose from {', '.join(SECTIONS)}")
    if given.here:
        for name in given.sections:
            SECTIONS[name][0]()
        return
    given.out.mkdir(parents=True, exist_ok=True)
    results: list[dict[str, Any]] = []
    for name in given.sections:
        started = time.monotonic()
        results += run_section(name)
        print(f"-- {name}: {time.monotonic() - started:.0f} s", flush=True)
        (given.out / "gpu.json").write_text(json.dumps({"card": machine(), "results": results}, indent=1) + "\n")
        (given.out / "gpu.md").write_text(as_table(results))


def run_section(name: str) -> list[dict[str, Any]]:
    """Runs a section in a process of its own, prints its results as they come, and returns them."""
    command = [
        "timeout",
        "--kill-after=5",
        str(SECTIONS[name][1] * LIMIT_FACTOR),
        sys.executable,
        __file__,
        "--here",
        name,
    ]
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    results = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(RESULT):
                results.append(json.loads(line.removeprefix(RESULT)))
                print(f"{results[-1]['section']:8} {results[-1]['name']}: {describe(results[-1])}", flush=True)
    if process.returncode:
        is_late = process.returncode in (124, -9)  # -9: it had to be killed, with the processes that it had started
        fault = "ran past its limit" if is_late else f"ended with {process.returncode}"
        results.append({"section": name, "name": "the section", "failed": fault})
        print(f"{name}: {fault}", flush=True)
    return results


def describe(result: dict[str, Any]) -> str:
    figures = [
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in result.items()
        if key not in ("section", "name") and value is not None
    ]
    return ", ".join(figures)


def as_table(results: list[dict[str, Any]]) -> str:
    rows = [f"| {result['section']} | {result['name']} | {describe(result)} |" for result in results]
    return "\n".join([f"{machine()}", "", "| section | what | figures |", "|---|---|---|", *rows]) + "\n"


if __name__ == "__main__":
    main()
