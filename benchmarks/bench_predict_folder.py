"""`ctclip predict FOLDER --output` on many CTs: seconds, memory over time, and a rerun after SIGKILL.

One call runs to its end. Another one is killed at 40 % of the rows and called again. Both files must be equal. A last
call finds nothing to do. The CTs are phantoms of a demonstration, and the model is its newest CT-CLIP.

Usage: python benchmarks/bench_predict_folder.py [DEMO] [volumes]   DEMO: the folder of a demonstration
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from measure import machine

POLL_S = 0.2
KILLED_AT = 0.4  # share of the rows
SHARES = (0.1, 0.5, 1.0)  # shares of the rows at which memory is printed


@dataclass(frozen=True)
class Call:
    """A call that ended: seconds, processor seconds, and (rows, MB of memory) over its time."""

    duration_s: float
    cpu_s: float
    samples: list[tuple[int, float]]
    last_line: str

    def memory_mb(self, rows: int) -> float:
        """MB of memory when the file had that many rows."""
        return next((mb for count, mb in self.samples if count >= rows), self.samples[-1][1])


def main() -> None:
    demo = Path(sys.argv[1] if len(sys.argv) > 1 else "demo")
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 1000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "study").mkdir()
        for file in sorted((demo / "phantoms").rglob("*.nii.gz"))[:count]:
            (folder / "study" / file.name).symlink_to(file.resolve())
        count = len(list((folder / "study").iterdir()))
        command = [sys.executable, "-m", "flows", "predict", str(folder / "study"), "--data-root", str(demo / "data")]
        command += ["--model", find_model(demo / "data" / "models")]
        print(f"{machine()}, {count} volumes")
        whole = run(command, folder / "whole.csv")
        memory = ", ".join(f"{whole.memory_mb(int(count * share)):.0f}" for share in SHARES)
        print(f"whole call: {whole.duration_s:.1f} s, {whole.cpu_s:.1f} s of processor time; MB at {SHARES}: {memory}")
        killed = run(command, folder / "rows.csv", stop_at=int(count * KILLED_AT))
        print(f"killed after {killed.duration_s:.1f} s at {killed.samples[-1][0]} rows")
        again = run(command, folder / "rows.csv")
        assert (folder / "rows.csv").read_bytes() == (folder / "whole.csv").read_bytes()
        print(f"called again: {again.duration_s:.1f} s, the same file: {again.last_line}")
        nothing = run(command, folder / "rows.csv")
        print(f"nothing to do: {nothing.duration_s:.1f} s: {nothing.last_line}")


def find_model(models: Path) -> str:
    """The id of the newest CT-CLIP of a demonstration."""
    folders = [path.parent for path in models.glob("tiny-*/config.json") if path.parent.name.count("-") == 1]
    return max(folders, key=lambda folder: folder.stat().st_mtime).name


def run(command: list[str], output: Path, stop_at: int | None = None) -> Call:
    """Runs a call, and kills it once its file has `stop_at` rows."""
    started, cpu_s = time.perf_counter(), _children_s()
    process = subprocess.Popen(
        [*command, "--output", str(output)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    samples: list[tuple[int, float]] = []
    while process.poll() is None:
        rows = output.read_bytes().count(b"\n") - 1 if output.exists() else 0
        samples.append((rows, _memory_mb(process.pid)))
        if stop_at is not None and rows >= stop_at:
            os.kill(process.pid, signal.SIGKILL)
        time.sleep(POLL_S)
    printed = process.communicate()[0].splitlines()
    last = next((line for line in printed if "rows added" in line), "")
    return Call(time.perf_counter() - started, _children_s() - cpu_s, samples, last)


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _memory_mb(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1000 for line in lines if line.startswith("VmRSS")), 0.0)


if __name__ == "__main__":
    main()
