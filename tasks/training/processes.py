"""Training in processes of its own, started by torchrun: a crash or a kill of theirs is an error here, and no more."""

from __future__ import annotations

import ctypes
import json
import logging
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctclip_model import errors
from ctclip_model.device import Compute, choose_device
from ctclip_model.errors import ConfigurationError, PreemptedError, WorkerDiedError
from ctclip_model.models.kinds import ModelKind
from tasks.settings import LIMITS

if TYPE_CHECKING:
    from ctclip_model.training.engine.loop import StepRecord
    from ctclip_model.training.worker import Job, Result

logger = logging.getLogger(__name__)

LAST_WORDS = 20  # lines of a process that died, of which the error gives the last
C_LIBRARY = ctypes.CDLL(None)  # found before a fork, after which little is safe
PR_SET_PDEATHSIG = 1  # of Linux: a signal to this process when its parent dies


@dataclass(frozen=True)
class Launch:
    """Where a training's processes run: here, and on `nodes` - 1 others that meet them at `rendezvous`."""

    processes: int | None = None  # a node; as many as suit the training when None, and without a GPU this very one
    nodes: int = 1
    rendezvous: str | None = None  # host:port of this machine, as the others reach it

    def __post_init__(self) -> None:
        host, port = self.meeting_place
        if self.nodes > 1 and not (host and port.isdigit()):
            raise ConfigurationError(
                f"{self.nodes} nodes need a rendezvous, the host:port of this one at which they meet, "
                f"not {self.rendezvous!r}"
            )
        if self.nodes < 1 or (self.processes is not None and self.processes < 1):
            raise ConfigurationError(f"{self.processes} processes on {self.nodes} nodes are too few to train")

    @property
    def meeting_place(self) -> tuple[str, str]:
        host, _, port = (self.rendezvous or "").rpartition(":")
        return host, port

    def is_apart(self, compute: Compute) -> bool:
        """Whether processes are started: on a GPU always, so that running out of its memory ends them alone."""
        return self.nodes > 1 or self.processes is not None or choose_device(compute.device).type == "cuda"

    def command(self, job: Path, data_root: Path, *, suited: int | None = None, node: str = "0") -> list[str]:
        """What starts a node's, by torchrun; `suited` is how many suit the training, one a GPU when None.

        This machine is node 0, whose first process writes, and tells what happens.
        """
        meeting = ["--standalone"]
        if self.nodes > 1:
            host, port = self.meeting_place
            meeting = [f"--nnodes={self.nodes}", f"--node-rank={node}"]
            meeting += [f"--master-addr={host}", f"--master-port={port}"]
        count = self.processes or suited or "gpu"
        return [
            "-m", "torch.distributed.run", *meeting, f"--nproc-per-node={count}", "--module",
            "ctclip_model.training.worker", str(job), str(data_root),
        ]  # fmt: skip


def train(job: Job, data_root: Path, launch: Launch, on_step: Callable[[StepRecord], None]) -> Result:
    """Trains in this process, or, where the launch says so, as `train_apart` does."""
    if launch.is_apart(job.compute):
        return train_apart(job, data_root, launch, on_step)
    from ctclip_model.training import worker

    return worker.train(job, data_root, on_step)


def train_apart(job: Job, data_root: Path, launch: Launch, on_step: Callable[[StepRecord], None]) -> Result:
    """Trains in processes that need nothing but the data root, and passes on each step as it comes.

    Raises the worker's own error, `PreemptedError` where this process was asked to end (SIGTERM, which it hands on and
    then waits for the state to be saved), and `WorkerDiedError` where they ended otherwise.
    """
    from ctclip_model.training.engine.curve import TrainingResult
    from ctclip_model.training.engine.loop import StepRecord
    from ctclip_model.training.labeller import LabellerResult

    result_type = LabellerResult if job.kind is ModelKind.labeller else TrainingResult
    path = data_root / f"{job.folder}.work" / "job.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    job.write(path)
    suited = None if job.kind is ModelKind.ct_clip else 1  # a batch of the others is small, of VocabFine one volume
    if launch.nodes > 1:
        place = Path("$CTCLIP_DATA_ROOT")
        others = " ".join(launch.command(place / path.relative_to(data_root), place, suited=suited, node="N"))
        logger.warning("%d nodes train together; on each other one, N from 1: python %s", launch.nodes, others)
    with _running([sys.executable, *launch.command(path, data_root, suited=suited)]) as lines:
        for event in lines:
            kind = event.pop("event")
            if kind == "step":
                on_step(StepRecord(**event))
            elif kind == "result":
                return result_type(**event | {"folder": data_root / job.folder})
            else:
                raise _error(**event)
    raise AssertionError("processes that tell no result have failed")


def _error(kind: str, text: str) -> errors.CTCLIPError:
    found = getattr(errors, kind)
    error: errors.CTCLIPError = found(text) if not issubclass(found, errors.BadItemError) else errors.CTCLIPError(text)
    return error


@contextmanager
def _running(command: list[str]) -> Iterator[Iterator[dict[str, Any]]]:
    """The JSON lines of a command, which is ended with the context, and is given time to save its state."""
    from ctclip_model.training.engine.sigterm import heeding_sigterm

    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=_end_with_parent
    )
    try:
        with heeding_sigterm(then=process.terminate) as request:
            with _silence_ended(process) as alarm:
                yield _events(process, lambda: request.is_made, alarm)
            process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(LIMITS.training_stop_s)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if process.stdout is not None:
            process.stdout.close()


class _Alarm:
    """Ends a process that has said nothing for too long, as when one of several waits for ever for another."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process, self.heard, self.has_rung = process, time.monotonic(), False
        self.is_over = threading.Event()

    def watch(self) -> None:
        while not self.is_over.wait(min(5.0, LIMITS.training_silence_s / 4)):
            if time.monotonic() - self.heard > LIMITS.training_silence_s:
                self.has_rung = True
                self.process.terminate()  # torchrun ends its own, first with this signal and then for good
                return


@contextmanager
def _silence_ended(process: subprocess.Popen[str]) -> Iterator[_Alarm]:
    alarm = _Alarm(process)
    thread = threading.Thread(target=alarm.watch, daemon=True)
    thread.start()
    try:
        yield alarm
    finally:
        alarm.is_over.set()
        thread.join()


def _events(
    process: subprocess.Popen[str], is_asked_to_stop: Callable[[], bool], alarm: _Alarm
) -> Iterator[dict[str, Any]]:
    assert process.stdout is not None
    last: deque[str] = deque(maxlen=LAST_WORDS)
    for line in process.stdout:
        alarm.heard = time.monotonic()
        logger.info("%s", line.rstrip())
        if (event := _read_event(line)) is not None:
            yield event
        elif line.strip():
            last.append(line.rstrip())
    code = process.wait()
    if alarm.has_rung:
        raise WorkerDiedError(
            f"training: its processes said nothing for {LIMITS.training_silence_s:g} s and were ended; the same call "
            "goes on from the last checkpoint"
        )
    if is_asked_to_stop():
        raise PreemptedError("training: stopped on request (SIGTERM); the same call goes on from its last checkpoint")
    words = " / ".join(list(last)[-3:])
    raise WorkerDiedError(f"training: its processes ended with exit code {code} ({words}); the same call goes on")


def _read_event(line: str) -> dict[str, Any] | None:
    """What a process tells, unless the line is no such, or another process has written into it."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "event" in event else None


def _end_with_parent() -> None:
    """Were this process killed, its children would train on, beside those of its rerun."""
    if sys.platform == "linux":
        C_LIBRARY.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
