"""Dask does the fan-out: jobs out, results and errors back as they come, whatever happens to a worker."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from tasks.settings import LIMITS, Limits, count_workers

logger = logging.getLogger(__name__)

Job = TypeVar("Job")
Result = TypeVar("Result")


def fan_out(
    function: Callable[[Job], Result],
    jobs: Sequence[Job],
    *,
    address: str | None = None,
    workers: int | None = None,
    limits: Limits = LIMITS,
) -> Iterator[tuple[Job, Result | BaseException]]:
    """Runs `function` on every job and yields (job, result or error) as each ends; never raises for one job.

    A job whose worker dies is done again elsewhere, `worker_deaths` times. At most a few jobs a worker are in flight,
    so neither the scheduler nor the results grow with the number of jobs.
    """
    if not jobs:
        return
    count = min(workers or count_workers(), len(jobs))
    with _connect(address, count, limits) as client:
        yield from _stream(client, function, jobs, limits)


def _stream(client, function, jobs, limits):  # type: ignore[no-untyped-def]
    from distributed import KilledWorker, as_completed

    waiting = iter(jobs)
    in_flight, suspects = {}, []
    room = max(1, len(client.scheduler_info()["workers"])) * limits.jobs_in_flight_per_worker

    def submit_next() -> list:
        for job in waiting:
            future = client.submit(function, job, pure=False)
            in_flight[future.key] = job
            return [future]
        return []

    completed = as_completed([future for _ in range(room) for future in submit_next()])
    for future in completed:
        job = in_flight.pop(future.key)
        if isinstance(future.exception(), KilledWorker):
            suspects.append(job)  # or a job that waited on the same workers as one that kills them
        else:
            yield job, _outcome(future)
        for following in submit_next():
            completed.add(following)
    for job in suspects:  # alone, so that a death is its own
        yield job, _outcome(client.submit(function, job, pure=False))


def _outcome(future):  # type: ignore[no-untyped-def]
    error = future.exception()
    result = future.result() if error is None else error
    future.release()
    return result


@contextmanager
def _connect(address: str | None, workers: int, limits: Limits):  # type: ignore[no-untyped-def]
    import dask
    from distributed import Client, LocalCluster

    options = {
        "distributed.scheduler.allowed-failures": limits.worker_deaths - 1,
        "distributed.worker.daemon": False,
        "distributed.admin.log-format": "%(message)s",
    }
    logging.getLogger("distributed").setLevel(logging.ERROR)  # a worker's death is this module's business
    with dask.config.set(options), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if address is not None:
            with Client(address, timeout="30s") as client:
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
