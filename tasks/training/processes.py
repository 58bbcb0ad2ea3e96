"""Training in processes that torchrun starts. Their crash or kill is an error here, and harms nothing else."""

from __future__ import annotations

import json
import logging
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
from ctclip_model.training.job import TrainingJob, move_paths, write_json
from tasks.run.child import end_with_parent
from tasks.settings import LIMITS

if TYPE_CHECKING:
    from ctclip_model.training.engine.loop import StepRecord
    from ctclip_model.training.worker import Result

logger = logging.getLogger(__name__)

EVENTS = ("step", "result", "error")  # events of a worker: a library may log JSON of its own
LAST_LINES = 3  # lines of a process that died, as its error quotes them


@dataclass(frozen=True)
class Launch:
    """The processes of a training: on this machine, and on `nodes` - 1 others that meet it at `rendezvous`."""

    processes: int | None = None  # processes per node; None: one per GPU, or this process without a GPU
    nodes: int = 1
    rendezvous: str | None = None  # host:port of this machine, as the other nodes reach it

    def __post_init__(self) -> None:
        host, port = self.meeting_place
        if self.nodes > 1 and not (host and port.isdigit()):
            raise ConfigurationError(
                f"{self.nodes} nodes need a rendezvous, the host:port of this machine at which they meet, not "
                f"{self.rendezvous!r}"
            )
        if self.nodes < 1 or (self.processes is not None and self.processes < 1):
            raise ConfigurationError(f"{self.processes} processes on {self.nodes} nodes: each must be at least 1")

    @property
    def meeting_place(self) -> tuple[str, str]:
        host, _, port = (self.rendezvous or "").rpartition(":")
        return host, port

    def is_apart(self, compute: Compute) -> bool:
        """True if processes are started: always on a GPU, so that only they end when its memory runs out."""
        return self.nodes > 1 or self.processes is not None or choose_device(compute.device).type == "cuda"

    def command(self, job: Path, data_root: Path, *, suited: int | None = None, node: str = "0") -> list[str]:
        """Arguments of `python` that start a node's processes by torchrun.

        `suited` is the number of processes that suits the training; None: one per GPU. This machine is node 0, whose
        first process writes the model and prints events.
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


def train(job: TrainingJob, data_root: Path, launch: Launch, on_step: Callable[[StepRecord], None]) -> Result:
    """Trains in this process, or by `train_apart` if the launch asks for processes.

    A head on stored latents trains in seconds, always in this process. Raises as `train_apart`.
    """
    if not job.kind.facts.has_head and launch.is_apart(job.compute):
        return train_apart(job, data_root, launch, on_step)
    from ctclip_model.training import worker

    return worker.train(job, data_root, on_step)


def train_apart(job: TrainingJob, data_root: Path, launch: Launch, on_step: Callable[[StepRecord], None]) -> Result:
    """Trains in processes that need nothing except the data root, and passes on each step.

    Raises the training's own error, and `WorkerDiedError` for processes that die. After SIGTERM to this process it
    passes the signal on, waits until the state is saved, and raises `PreemptedError`.
    """
    from ctclip_model.training.engine.curve import TrainingResult
    from ctclip_model.training.engine.loop import StepRecord
    from ctclip_model.training.labeller import LabellerResult

    result_type = LabellerResult if job.kind is ModelKind.labeller else TrainingResult
    folder = data_root / job.manifest.folder
    path = folder.with_name(f"{folder.name}.work") / "job.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, move_paths(job, lambda inside: inside.relative_to(data_root)))
    suited = None if job.kind is ModelKind.ct_clip else 1  # batches of the others are small: VocabFine's is one volume
    if launch.nodes > 1:
        there = Path("$CTCLIP_DATA_ROOT")
        others = " ".join(launch.command(there / path.relative_to(data_root), there, suited=suited, node="N"))
        logger.warning("%d nodes train together; run on each other one, N from 1: python %s", launch.nodes, others)
    with _running([sys.executable, *launch.command(path, data_root, suited=suited)]) as lines:
        for event in lines:
            kind = event.pop("event")
            if kind == "step":
                on_step(StepRecord(**event))
            elif kind == "result":
                return result_type(**event | {"folder": folder})
            else:
                raise _error(**event)
    raise AssertionError("processes that print no result have failed")


def _error(kind: str, text: str) -> errors.CTCLIPError:
    found = getattr(errors, kind)
    error: errors.CTCLIPError = found(text) if not issubclass(found, errors.BadItemError) else errors.CTCLIPError(text)
    return error


@contextmanager
def _running(command: list[str]) -> Iterator[Iterator[dict[str, Any]]]:
    """Runs a command and yields its JSON lines. Leaving the context ends it, with time to save its state."""
    from ctclip_model.training.engine.sigterm import heeding_sigterm

    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace",
        preexec_fn=end_with_parent,
    )  # fmt: skip
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
    """Ends a process that prints nothing for too long, such as one that waits for ever for another."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process, self.heard, self.has_rung = process, time.monotonic(), False
        self.is_over = threading.Event()

    def watch(self) -> None:
        while not self.is_over.wait(min(5.0, LIMITS.training_silence_s / 4)):
            if time.monotonic() - self.heard > LIMITS.training_silence_s:
                self.has_rung = True
                self.process.terminate()  # torchrun passes SIGTERM on, and kills after 30 s
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
    last: deque[str] = deque(maxlen=LAST_LINES)
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
            f"training: its processes printed nothing for {LIMITS.training_silence_s:g} s and were ended; the same "
            "call continues from the last checkpoint"
        )
    if is_asked_to_stop():
        raise PreemptedError("training: stopped on request (SIGTERM); the same call continues from its last checkpoint")
    lines = " / ".join(last)
    raise WorkerDiedError(
        f"training: its processes ended with exit code {code} ({lines}); the same call continues from the last "
        "checkpoint"
    )


def _read_event(line: str) -> dict[str, Any] | None:
    """The event of a line. None: another output, or a line that two processes wrote at once."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) and event.get("event") in EVENTS else None
