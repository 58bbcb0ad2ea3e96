"""Dask does the fan-out: jobs out, results and errors back as they come, whatever happens to a worker."""

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
    """Runs `function` on every job and yields (job, result or error) as each ends; never raises for one job.

    A job whose worker dies is done again elsewhere, `worker_deaths` times. At most a few jobs a worker are in flight,
    so neither the scheduler nor the results grow with the number of jobs. They are drawn in a thread of their own,
    which may wait for one while others run; what drawing them raises is raised here, once those that run have ended.
    Raises `StageFailedError` where no job at all ends for `fan_out_stall_s`. What jobs log is about the same run.
    """
    count = workers or count_workers()
    if isinstance(jobs, Sized):
        count = min(count, len(jobs))
    if not count:
        return
    with _connect(address, count, limits) as client:
        yield from _stream(client, WithLogContext(function), jobs, limits)


def _stream(client, function, jobs, limits):  # type: ignore[no-untyped-def]
    from distributed import KilledWorker

    suspects = []
    feed = _Feed(client, function, limits)
    thread = threading.Thread(target=feed.run, args=(jobs,), daemon=True)
    thread.start()
    try:
        for job, future in feed.ended(limits.fan_out_stall_s):
            if isinstance(future.exception(), KilledWorker):
                suspects.append(job)  # or a job that waited on the same workers as one that kills them
            else:
                yield job, _outcome(future)
    finally:
        feed.close()
    for job in suspects:  # alone, so that a death is its own
        yield job, _outcome(client.submit(function, job, pure=False))
    if feed.error is not None:
        raise feed.error


class _Feed:
    """Submits jobs as they come and as there is room, and hands out their futures as they end."""

    def __init__(self, client, function, limits) -> None:  # type: ignore[no-untyped-def]
        self.client, self.function = client, function
        workers = max(1, len(client.scheduler_info()["workers"]))
        self.room = threading.Semaphore(workers * limits.jobs_in_flight_per_worker)
        self.queue: queue.SimpleQueue = queue.SimpleQueue()  # (job, future), or None after the last submission
        self.in_flight: set = set()
        self.error: BaseException | None = None
        self.is_closed = False

    def run(self, jobs: Iterable) -> None:
        try:
            for job in jobs:
                self.room.acquire()
                if self.is_closed:
                    return
                future = self.client.submit(self.function, job, pure=False)
                self.in_flight.add(future)
                future.add_done_callback(lambda future, job=job: self.queue.put((job, future)))
        except BaseException as error:  # noqa: BLE001  raised again by whoever draws the results
            self.error = error
        finally:
            self.queue.put(None)

    def ended(self, stall_s: float) -> Iterator[tuple]:
        is_fed = False
        while not is_fed or self.in_flight:
            try:
                item = self.queue.get(timeout=stall_s)
            except queue.Empty:
                if self.in_flight:
                    raise self._stalled(stall_s) from None
                continue
            if item is None:
                is_fed = True
                continue
            self.in_flight.discard(item[1])
            self.room.release()
            yield item

    def _stalled(self, stall_s: float) -> StageFailedError:
        workers = len(self.client.scheduler_info()["workers"])
        return StageFailedError(
            f"no job of {len(self.in_flight)} has ended for {stall_s:g} s, on {workers} Dask workers"
        )

    def close(self) -> None:
        self.is_closed = True
        self.room.release()


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
