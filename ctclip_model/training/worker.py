"""One process of a training, alone or under torchrun; all that it needs is the data root.

Usage: python -m torch.distributed.run --nproc-per-node=N -m ctclip_model.training.worker JOB DATA_ROOT

Says what happens as JSON lines, each an object with an `event`: `step` with a step's record, `result` with what the
model is, `error` with what went wrong. Exit code 0, 1 after an error, 143 where SIGTERM ended it, its state saved.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
import torch.distributed as dist

from ctclip_model.config import Preset
from ctclip_model.device import Compute, limit_cpu_threads
from ctclip_model.errors import CTCLIPError, PreemptedError
from ctclip_model.files import whole_file
from ctclip_model.json_config import read_config
from ctclip_model.models.kinds import ModelKind
from ctclip_model.training.contrastive import train_contrastive
from ctclip_model.training.engine.curve import TrainingResult
from ctclip_model.training.engine.loop import StepRecord
from ctclip_model.training.engine.processes import rank
from ctclip_model.training.labeller import LabellerResult, read_manifest, train_labeller
from ctclip_model.training.vocabfine import train_vocabfine

Result: TypeAlias = TrainingResult | LabellerResult
PREEMPTED = 128 + 15  # the exit code of what SIGTERM has ended


@dataclass(frozen=True)
class Job:
    """A training to do; paths are relative to the data root, which may lie elsewhere on each machine."""

    kind: ModelKind
    manifest: str
    folder: str
    preset: Preset
    compute: Compute
    origin: dict[str, str]  # what the model card says of the data
    parent: str | None = None  # the folder of the CT-CLIP that VocabFine is to train on

    def write(self, path: Path) -> None:
        with whole_file(path) as file:
            file.write(json.dumps(asdict(self), indent=2).encode())

    @staticmethod
    def read(path: Path) -> Job:
        return read_config(Job, path)


def main() -> None:
    """Runs the job that the command line names."""
    path, data_root = map(Path, sys.argv[1:])
    try:
        with processes_joined():
            _train(Job.read(path), data_root)
    except CTCLIPError as error:
        _tell("error", kind=type(error).__name__, text=str(error))
        sys.exit(PREEMPTED if isinstance(error, PreemptedError) else 1)


def _train(job: Job, data_root: Path) -> None:
    def on_step(record: StepRecord) -> None:
        if rank() == 0:
            _tell("step", **asdict(record))

    result = train(job, data_root, on_step)
    if rank() == 0:
        _tell("result", **asdict(result) | {"folder": job.folder})


def train(job: Job, data_root: Path, on_step: Callable[[StepRecord], None]) -> Result:
    """Trains what the job asks for, in this process."""
    manifest, folder, preset = data_root / job.manifest, data_root / job.folder, job.preset
    told: dict[str, Any] = {"compute": job.compute, "origin": job.origin, "on_step": on_step}
    with limit_cpu_threads(preset.cpu_threads):
        if job.kind is ModelKind.labeller:
            names, reports, labels = read_manifest(manifest)
            return train_labeller(reports, labels, preset.labeller, folder, names=names, **told)
        if job.kind is ModelKind.vocabfine:
            assert job.parent is not None
            return train_vocabfine(manifest, data_root, data_root / job.parent, preset.vocabfine, folder, **told)
        return train_contrastive(manifest, data_root, preset, folder, **told)


@contextmanager
def processes_joined() -> Iterator[None]:
    """Joins the processes that torchrun has started, each with a GPU of its own where there are any."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if has_gpu else "gloo")
    try:
        yield
        dist.barrier()
    finally:
        dist.destroy_process_group()


def _tell(event: str, **facts: Any) -> None:
    sys.stdout.write(json.dumps({"event": event} | facts) + "\n")  # at once, or those of two processes would mix
    sys.stdout.flush()


if __name__ == "__main__":
    main()
