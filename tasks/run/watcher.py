"""Watcher of a stage run: a process that outlives the run's own and records its death.

The watcher is a shell that waits on a pipe. A run that ends writes a line into the pipe. A pipe that closes without
that line belongs to a process that was killed, or that crashed in a native library. Python writes the place of a crash
into the pipe (`faulthandler`), and the watcher then starts `python -m tasks.run.watcher`.
"""

from __future__ import annotations

import faulthandler
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).parents[2]  # folder that this package is imported from
OVER = "over"
WAIT = f'read -r line; [ "$line" = {OVER} ] || exec "$@" "$line"'
FAULT = re.compile(r"Fatal Python error: (?P<fault>.+)")
PLACE = re.compile(r'File "(?P<path>.+)", line (?P<line>\d+) in (?P<function>.+)')


@contextmanager
def watched(data_root: Path, stage: str, variant: str, run_id: str) -> Iterator[None]:
    """Watches this process during a run. Its death within the block is recorded as the end of the run."""
    start = [sys.executable, "-m", "tasks.run.watcher", str(data_root), stage, variant, run_id]
    process = subprocess.Popen(
        ["sh", "-c", WAIT, "sh", *start],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    assert process.stdin is not None
    is_free = not faulthandler.is_enabled()
    if is_free:
        faulthandler.enable(process.stdin, all_threads=False)
    try:
        yield
    finally:
        if is_free:
            faulthandler.disable()
        with suppress(BrokenPipeError):
            process.stdin.write(f"{OVER}\n".encode())
            process.stdin.close()
        process.wait()


def describe_death(report: str) -> str:
    """Describes a death in one line, from the text that the dying process left in the pipe.

    >>> describe_death("Fatal Python error: Aborted\\n\\nCurrent thread 0x1 (most recent call first):\\n")
    'its process crashed (Aborted)'
    >>> describe_death("")
    'its process was killed, for example for lack of memory'
    """
    fault, place = FAULT.search(report), PLACE.search(report)
    if fault is None:
        return "its process was killed, for example for lack of memory"
    where = f", in {place['function']} of {place['path']}, line {place['line']}" if place else ""
    return f"its process crashed ({fault['fault']}{where})"


def main(data_root: str, stage: str, variant: str, run_id: str, first_line: str) -> None:
    """Prints and records the death of a run's process."""
    report = os.fsencode(f"{first_line}\n") + sys.stdin.buffer.read()
    death = describe_death(report.decode("utf-8", "replace"))
    print(f"ctclip: {stage}: {death}. A rerun goes on from here", file=sys.stderr, flush=True)
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # nobody who reads stderr waits for the rest
    from tasks.run.stage_run import record_death

    record_death(Path(data_root), stage, variant, run_id, death)


if __name__ == "__main__":
    main(*sys.argv[1:])
