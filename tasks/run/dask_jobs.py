"""Jobs on Dask workers: submitted as they come, and handed back as they end, even if workers die."""

from __future__ import annotations

import logging
import queue
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

from ctclip_model.errors import StageFailedError
from tasks.run.logs import WithLogContext
from tasks.settings import LIMITS, Limits, count_workers

logger = logging.getLogger(__name__)

SILENCE_TIMEOUT = "300s"  # a link that is cut for a shorter time loses no job
SCHEDULER_TIMEOUT = "30s"  # until a scheduler must have answered
# Dask's profiler asks for the frames of all threads. If CPython 3.11 collects garbage meanwhile, the process stops for
# good (python/cpython#106883, dask/distributed#8616).
WITHOUT_PROFILER = {"distributed.worker.profile.enabled": False}

Job = TypeVar("Job")
Result = TypeVar("Result")


def fan_out(
    function: Callable[[Job], Result],
    jobs: Iterable[Job],
    *,
    address: str | None = None,
    workers: int | None = None,
    limits: Limits = LIMITS,
) -> Iterator[tuple[Job, Result | BaseException]]:
    """Runs `function` on every job, and yields (job, result or error) as each job ends.

    A job whose worker dies runs again on another worker, up to `worker_deaths` times. A few jobs per worker are in
    flight, so neither the scheduler nor the results grow with the number of jobs. A thread draws the jobs, which may
    block while other jobs run. `address` is that of a Dask scheduler; without it a local cluster is started.

    Raises `StageFailedError` if no scheduler answers, if it is lost, or if no job ends for `fan_out_stall_s`. Raises an
    error of `jobs` itself once the jobs that were drawn before have ended.
    """
    count = workers or count_workers()
    if isinstance(jobs, Sized):
        count = min(count, len(jobs))
    if not count:
        return
    with _connect(address, count, limits) as client:
        yield from _run_jobs(client, WithLogContext(function), jobs, limits)


def _run_jobs(client, function, jobs, limits):  # type: ignore[no-untyped-def]
    from distributed import KilledWorker

    suspects = []  # jobs of a killed worker: each is either fatal, or was queued on the worker that a fatal job killed
    with _Submitter(client, function, jobs, limits) as submitter:
        for job, future in submitter.ended_jobs():
            outcome = _take_outcome(future)
            if isinstance(outcome, KilledWorker):
                suspects.append(job)
            else:
                yield job, outcome
    for job in suspects:  # one at a time, so that a worker's death is its only job's
        with _Submitter(client, function, [job], limits) as alone:
            for _, future in alone.ended_jobs():
                yield job, _take_outcome(future)
    if submitter.error is not None:
        raise submitter.error


def _find_scheduler(address: str):  # type: ignore[no-untyped-def]
    """A client of a running scheduler. Raises `StageFailedError` if none answers."""
    from distributed import Client

    try:
        return Client(address, timeout=SCHEDULER_TIMEOUT)
    except (OSError, ValueError) as error:  # ValueError for an address of an unknown form
        raise StageFailedError(
            f"no Dask scheduler answers at {address} in {SCHEDULER_TIMEOUT}: start one there, or give its address with "
            "--dask-address"
        ) from error


class _Submitter:
    """Thread that draws jobs and submits each to Dask once one of the slots is free. An ended job frees its slot."""

    def __init__(self, client, function, jobs, limits) -> None:  # type: ignore[no-untyped-def]
        self.client, self.function, self.jobs = client, function, jobs
        self.stall_s = limits.fan_out_stall_s
        self.free_slots = threading.Semaphore(max(1, self._count_workers()) * limits.jobs_in_flight_per_worker)
        self.in_flight: set = set()  # futures, kept because Dask cancels a job whose future is dropped
        self.ended: queue.SimpleQueue = queue.SimpleQueue()  # (job, future), or None after the last submission
        self.error: BaseException | None = None  # raised by `jobs`
        self.is_closed = False

    def __enter__(self) -> _Submitter:
        threading.Thread(target=self._submit_all, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.is_closed = True
        self.free_slots.release()  # wakes the thread, which may be waiting for a slot

    def ended_jobs(self) -> Iterator[tuple]:
        """Yields (job, future) as jobs end, until all jobs are submitted and none is in flight."""
        are_submitted = False
        while self.in_flight or not are_submitted:
            try:
                ended = self.ended.get(timeout=self.stall_s)
            except queue.Empty:
                if self.in_flight:
                    raise StageFailedError(
                        f"no job of {len(self.in_flight)} has ended for {self.stall_s:g} s, "
                        f"on {self._count_workers()} Dask workers"
                    ) from None
                continue  # `jobs` itself is slow
            if ended is None:
                are_submitted = True
                continue
            self.in_flight.discard(ended[1])
            self.free_slots.release()
            yield ended

    def _submit_all(self) -> None:
        try:
            for job in self.jobs:
                self.free_slots.acquire()
                if self.is_closed:
                    return
                future = self.client.submit(self.function, job, pure=False)
                self.in_flight.add(future)
                future.add_done_callback(lambda future, job=job: self.ended.put((job, future)))
        except BaseException as error:  # noqa: BLE001  raised again where the results are read
            self.error = error
        finally:
            self.ended.put(None)

    def _count_workers(self) -> int:
        return len(self.client.scheduler_info()["workers"])


def _take_outcome(future):  # type: ignore[no-untyped-def]
    from distributed import KilledWorker
    from distributed.client import FutureCancelledError
    from distributed.comm import CommClosedError

    try:
        outcome = future.exception()
        if outcome is None:
            outcome = future.result()
    except KilledWorker as error:  # the result was lost with its worker, and the job was then done again
        outcome = error
    except (FutureCancelledError, CommClosedError) as error:  # nothing else cancels a job
        raise StageFailedError("the connection to the Dask scheduler is lost: a rerun goes on from here") from error
    future.release()
    return outcome


@contextmanager
def _connect(address: str | None, workers: int, limits: Limits):  # type: ignore[no-untyped-def]
    import dask
    from distributed import Client, LocalCluster

    options = WITHOUT_PROFILER | {
        "distributed.scheduler.allowed-failures": limits.worker_deaths - 1,
        "distributed.worker.daemon": False,
        "distributed.comm.timeouts.tcp": SILENCE_TIMEOUT,
        "distributed.deploy.lost-worker-timeout": "1 day",  # else a worker that takes 15 s to start again is given up
        "distributed.admin.log-format": "%(message)s",
    }
    logging.getLogger("distributed").setLevel(logging.ERROR)  # this module reports the death of a worker,
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # and the loss of the scheduler
    with dask.config.set(options), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if address is not None:
            with _find_scheduler(address) as client:
                yield client
            return
        with (
            LocalCluster(
                n_workers=workers, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0",
                memory_limit=limits.worker_memory_bytes, silence_logs=logging.CRITICAL,
            ) as cluster,
            Client(cluster) as client,
        ):  # fmt: skip
            yield client
