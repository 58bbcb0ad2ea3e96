"""One process of a training, alone or under torchrun. It needs nothing except the data root.

Usage: python -m torch.distributed.run --nproc-per-node=N -m ctclip_model.training.worker JOB DATA_ROOT

Prints JSON lines, objects with an `event`: `step` with a step's record, `result` with the model's numbers, `error` with
an error's kind and text. Exit code 0, 1 after an error, 143 after SIGTERM, with the state saved.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

import torch
import torch.distributed as dist

from ctclip_model.device import limit_cpu_threads
from ctclip_model.errors import CTCLIPError, PreemptedError
from ctclip_model.json_config import read_config
from ctclip_model.models.kinds import ModelKind
from ctclip_model.training.contrastive import train_contrastive
from ctclip_model.training.engine.curve import TrainingResult
from ctclip_model.training.engine.loop import StepRecord
from ctclip_model.training.engine.processes import rank
from ctclip_model.training.engine.state import keep_precision
from ctclip_model.training.job import TrainingJob, move_paths
from ctclip_model.training.labeller import LabellerResult, read_manifest, train_labeller
from ctclip_model.training.lipro import train_lipro
from ctclip_model.training.vocabfine import train_vocabfine

Result: TypeAlias = TrainingResult | LabellerResult
PREEMPTED = 128 + 15  # exit code of a process that SIGTERM has ended


def main() -> None:
    """Trains the job of the command line."""
    path, data_root = map(Path, sys.argv[1:])
    try:
        with processes_joined():
            _train(move_paths(read_config(TrainingJob, path), lambda path: data_root / path), data_root)
    except CTCLIPError as error:
        _print_event("error", kind=type(error).__name__, text=str(error))
        sys.exit(PREEMPTED if isinstance(error, PreemptedError) else 1)


def _train(job: TrainingJob, data_root: Path) -> None:
    def on_step(record: StepRecord) -> None:
        if rank() == 0:
            _print_event("step", **asdict(record))

    result = train(job, data_root, on_step)
    if rank() == 0:
        _print_event("result", **asdict(result) | {"folder": str(job.manifest.folder)})


def train(job: TrainingJob, data_root: Path, on_step: Callable[[StepRecord], None]) -> Result:
    """Trains a job in this process.

    Raises the errors of its kind's training, and `ConfigurationError` if it began in another precision.
    """
    manifest, preset, parent = job.manifest, job.preset, job.parent
    folder = data_root / manifest.folder
    common: dict[str, Any] = {"origin": manifest.origin, "on_step": on_step}
    if not job.kind.facts.has_head:  # a head trains in seconds, without checkpoints
        keep_precision(folder, job.compute.precision, writes=rank() == 0)
    with limit_cpu_threads(preset.cpu_threads):
        if job.kind is ModelKind.labeller:
            names, reports, labels = read_manifest(manifest.path)
            return train_labeller(reports, labels, preset.labeller, folder, names=names, compute=job.compute, **common)
        if job.kind is ModelKind.ct_clip:
            return train_contrastive(
                manifest.path,
                data_root,
                preset,
                folder,
                labels_of=job.labels_of,
                label_set=job.label_set,
                compute=job.compute,
                **common,
            )
        assert parent is not None, "a fine-tuned kind has a parent"
        if job.kind is ModelKind.lipro:
            return train_lipro(manifest.path, parent.folder, preset.lipro, folder, label_set=job.label_set, **common)
        return train_vocabfine(
            manifest.path,
            data_root,
            parent.folder,
            preset.vocabfine,
            folder,
            label_set=job.label_set,
            compute=job.compute,
            **common,
        )


@contextmanager
def processes_joined() -> Iterator[None]:
    """Joins the processes that torchrun has started. Each has a GPU of its own, if there are any."""
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


def _print_event(event: str, **facts: Any) -> None:
    # One write a line: the lines of two processes would mix otherwise.
    sys.stdout.write(json.dumps({"event": event} | facts) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
