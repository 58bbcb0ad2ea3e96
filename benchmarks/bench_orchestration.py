"""Commands on a data root of 50,188 made-up volumes with nothing left to do, and the time that Prefect adds to a stage.

The rebuild of eight stages runs beside a Prefect server that was there before. Its time holds Python's start, the
import of Prefect and the flows, and not the start of a server. CPU seconds are those of the command alone.

Usage: python benchmarks/bench_orchestration.py FOLDER [COUNT]
The data root is made in the folder, which takes minutes. Later runs find it there.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench_planning import COUNTS
from made_up_root import REBUILD, make_root
from measure import machine

from tasks.settings import STAGES

RUNS = 3
ROOT = Path(__file__).parent.parent
LIMITS_S = {"--help": 0.3, "sql": 0.5, "status": 0.7, "plan": 1.5, "rebuild": 5.0}
STAGE_LIMIT_S = 2.0


def main() -> None:
    folder, count = Path(sys.argv[1]).resolve(), int(sys.argv[2]) if sys.argv[2:] else sum(COUNTS.values())
    with prefect_server() as environment:
        data_root = make_root(folder, count)
        print(f"{machine()}: {count} volumes, medians of {RUNS}, load {os.getloadavg()[0]:.1f}")
        for words in list_commands():
            runs = [time_command([*words, "--data-root", str(data_root)], environment) for _ in range(RUNS)]
            wall_s, cpu_s = (statistics.median(column) for column in zip(*runs, strict=True))
            seconds = f"{wall_s:.2f} s, CPU {cpu_s:.2f} s (at most {LIMITS_S[words[0]]:g})"
            print(f"  ctclip {' '.join(words[:2])}: {seconds}", flush=True)
        times = [time_beside_stage(data_root) for _ in range(RUNS)]
        print(f"  a stage besides its own work: {statistics.median(times):.2f} s (at most {STAGE_LIMIT_S:.0f})")


def list_commands() -> list[list[str]]:
    """Commands by their words, without the data root."""
    options = [word for name, value in REBUILD.items() for word in (f"--{name}", value)]
    plans = [["plan", stage] for stage in STAGES]
    return [["--help"], ["sql", "select 1"], ["status"], *plans, ["rebuild", "--json", *options]]


@contextmanager
def prefect_server() -> Iterator[Mapping[str, str]]:
    """Starts a temporary Prefect server for this process, and for commands with the environment that it yields."""
    from prefect.settings import get_current_settings
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        settings = get_current_settings()
        own = {"PREFECT_API_URL": str(settings.api.url), "PREFECT_HOME": str(settings.home), "PYTHONPATH": str(ROOT)}
        yield os.environ | own


def time_command(words: list[str], environment: Mapping[str, str]) -> tuple[float, float]:
    """Wall and CPU seconds of a command. Raises if it fails, or if a rebuild finds anything to do."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "flows", *(words[:1] if words[0] == "--help" else words)]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, command
    if words[0] == "rebuild":
        require_nothing_done(json.loads(output))
    return wall_s, usage.ru_utime + usage.ru_stime


def require_nothing_done(summaries: list[dict[str, Any]]) -> None:
    assert not any(summary["done"] for summary in summaries), summaries
    assert {summary["stage"] for summary in summaries} == set(STAGES), summaries


def time_beside_stage(data_root: Path) -> float:
    """Seconds of a flow besides the work of its stage."""
    from flows.label import label

    started = time.perf_counter()
    summary = label(data_root, labeller=REBUILD["labeller"])
    return time.perf_counter() - started - float(summary["duration_s"])


if __name__ == "__main__":
    main()
