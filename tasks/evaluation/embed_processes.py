"""Latents of volumes from several processes. Each has a GPU or some cores, and a share of the shards."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from ctclip_model.data.loader import SampleRef, iterate_batches
from ctclip_model.device import Precision, choose_device, limit_cpu_threads
from ctclip_model.errors import ConfigurationError, CTCLIPError, WorkerDiedError
from ctclip_model.evaluation import embed
from ctclip_model.models.model_folder import load_encoders
from tasks.run.child import end_with_parent
from tasks.settings import count_workers

Latents = tuple[Sequence[str], embed.Floats]  # names of volumes, and their latents (names, latent)


@dataclass(frozen=True)
class Encoding:
    """Volumes that one process encodes on one device."""

    model: Path
    data_root: Path
    samples: Sequence[SampleRef]
    device: str
    precision: Precision
    cpu_threads: int | None  # threads of PyTorch. None: as many as it takes by itself

    def run(self) -> Iterator[Latents]:
        """Yields the latents of each batch in the order of the samples."""
        loaded = load_encoders(self.model, device=self.device)
        device = choose_device(self.device)
        size = embed.count_at_once(loaded.model, device)
        batches = iterate_batches(self.samples, self.data_root, batch_size=size, device=device)
        with limit_cpu_threads(self.cpu_threads):
            yield from embed.embed_volumes(loaded.model, batches, dtype=self.precision.autocast)


def choose_devices(name: str, processes: int | None) -> list[str]:
    """The device of each process: every GPU, or `processes` of them, or one CPU as many times.

    `name` is auto, cpu or cuda. A GPU of a number, such as cuda:1, is used alone. Raises `ConfigurationError` for more
    processes than GPUs.
    """
    device = choose_device(name)
    if device.type == "cpu":
        return ["cpu"] * (processes or 1)
    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if device.index is None else [str(device)]
    if processes is not None and processes > len(gpus):
        raise ConfigurationError(f"{processes} processes on {len(gpus)} GPUs: each needs one of its own")
    return gpus[:processes]


@contextmanager
def encoding(whole: Encoding, devices: Sequence[str]) -> Iterator[Iterator[Latents]]:
    """Latents of the volumes, encoded here on one device, or in a process for each of several.

    Batches of several devices come in any order. Leaving the context ends the processes. A process's error is raised
    here, and `WorkerDiedError` if one is killed.
    """
    if len(devices) == 1:
        yield whole.run()
        return
    running: dict[Connection, BaseProcess] = {}
    try:
        for share in _divide(whole, devices):
            reader, process = _start(share, len(devices))
            running[reader] = process
        yield _receive(dict(running))
    finally:
        for process in running.values():
            process.terminate()
            process.join()


def _divide(whole: Encoding, devices: Sequence[str]) -> Iterator[Encoding]:
    """Equal shares of the volumes, one after the other in the order of the shards."""
    count, threads = len(whole.samples), whole.cpu_threads or max(1, count_workers() // len(devices))
    for index, device in enumerate(devices):
        begin, end = (count * place // len(devices) for place in (index, index + 1))
        if samples := whole.samples[begin:end]:
            yield dataclasses.replace(whole, samples=samples, device=device, cpu_threads=threads)


def _start(share: Encoding, processes: int) -> tuple[Connection, BaseProcess]:
    context = multiprocessing.get_context("spawn")  # a forked process could use no GPU
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=_encode_and_send, args=(share, writer, processes))
    resource_tracker.ensure_running()  # it would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited: Ctrl+C is for this process alone
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        writer.close()  # the process holds the other end alone, so that its death ends the pipe
    return reader, process


def _encode_and_send(share: Encoding, writer: Connection, processes: int) -> None:
    """Sends each batch of latents, then None, or the error that ended the work."""
    end_with_parent()
    os.environ["LOCAL_WORLD_SIZE"] = str(processes)  # readers of volumes share the cores by it
    try:
        for latents in share.run():
            writer.send(latents)
        writer.send(None)
    except Exception as error:  # noqa: BLE001  raised again by `_receive`
        with suppress(OSError):
            writer.send(_portable(error, share.device))


def _portable(error: Exception, device: str) -> CTCLIPError:
    """An error that another process can read. A library's own may be none, so its traceback becomes a note."""
    if isinstance(error, CTCLIPError):
        return error
    portable = WorkerDiedError(f"embed: a process on {device} failed ({type(error).__name__}: {error})")
    portable.add_note("".join(traceback.format_exception(error)))
    return portable


def _receive(running: dict[Connection, BaseProcess]) -> Iterator[Latents]:
    while running:
        for reader in wait(list(running)):
            assert isinstance(reader, Connection)
            try:
                message = reader.recv()
            except EOFError:
                running[reader].join()
                raise WorkerDiedError(
                    f"embed: a process ended with exit code {running[reader].exitcode}; the same call goes on from here"
                ) from None
            if message is None:
                del running[reader]
            elif isinstance(message, Exception):
                raise message
            else:
                yield message
