"""Downloads volumes from the Hub or a bucket ahead of the jobs that need them, within a bound on the disk."""

from __future__ import annotations

import dataclasses
import errno
import shutil
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from ctclip_model.errors import (
    BadItemError,
    ConfigurationError,
    FileRefusedError,
    HubNotFoundError,
    MissingInputError,
    RemoteError,
    RemoteNotFoundError,
    RemoteUnavailableError,
    StageFailedError,
    VolumeError,
)
from tasks.remote.fetch import Meter, fetch
from tasks.remote.files import RemoteFile, Store, drop_file
from tasks.run.logs import log_context
from tasks.run.stage_run import StageRun
from tasks.settings import DOWNLOAD_THREADS, LIMITS, RAW_CACHE_GB, Limits
from tasks.sources.address import parse_address
from tasks.sources.open_source import open_store
from tasks.volumes.jobs import ConversionJob, VolumeFile

REASONS: dict[type[RemoteError], str] = {  # the first that fits
    FileRefusedError: "refused", HubNotFoundError: "not_on_hub", RemoteNotFoundError: "not_in_bucket",
    RemoteUnavailableError: "download_failed",
}  # fmt: skip
Fetching: TypeAlias = "deque[tuple[ConversionJob, list[Future[bool]]]]"


@dataclass(frozen=True)
class DownloadOptions:
    """Bounds of the downloads. Raises `ConfigurationError` for a bound that is not above zero."""

    raw_cache_gb: float = RAW_CACHE_GB  # most GB of volumes in raw/ at once
    keep_raw: bool = False  # keep downloaded files and ignore raw_cache_gb
    threads: int = DOWNLOAD_THREADS
    max_mb_per_s: float | None = None  # MB/s of all threads together (None: no limit)

    def __post_init__(self) -> None:
        if self.raw_cache_gb <= 0 or self.threads < 1 or (self.max_mb_per_s is not None and self.max_mb_per_s <= 0):
            raise ConfigurationError("--raw-cache-gb, --download-threads and --max-mb-per-s must be above zero")

    @property
    def bound_bytes(self) -> float:
        return float("inf") if self.keep_raw else self.raw_cache_gb * 1e9


class Downloader:
    """Downloads volumes into `raw/` in threads of this process, and drops files that no job needs any more.

    A volume that cannot be downloaded waits in `rejects` for `record_rejects`. A refused account and a full disk raise.
    """

    def __init__(
        self, data_root: Path, options: DownloadOptions, token: str | None = None, limits: Limits = LIMITS
    ) -> None:
        self.folder, self.options, self.token, self.limits = data_root / "raw", options, token, limits
        self.meter = Meter(options.max_mb_per_s and options.max_mb_per_s * 1e6)
        self.pool = ThreadPoolExecutor(options.threads, thread_name_prefix="download")
        self.room = threading.Condition()  # notified when bytes of the bound come free
        self.held_bytes = 0  # bytes of files that are downloaded or reserved for jobs that are not recorded yet
        self.foreign_bytes = 0  # bytes of files in raw/ that no job of this run needs
        self.needed_bytes = 0.0  # most bytes that the downloads to come take on the disk at once
        self.rejects: deque[tuple[VolumeFile, BadItemError]] = deque()
        self.absent: deque[VolumeFile] = deque()  # volumes that are not in raw/ while HF_HUB_OFFLINE is set
        self.count_fetched = self.count_reused = self.reused_bytes = self.failures_in_a_row = 0
        self.started = time.monotonic()
        self._stores: dict[str, Store] = {}  # stores by the origin of volumes
        self._stores_lock = threading.Lock()

    def __enter__(self) -> Downloader:
        return self

    def __exit__(self, *_: object) -> None:
        self.meter.stopped.set()
        with self.room:
            self.room.notify_all()
        self.pool.shutdown(cancel_futures=True)

    def prepare(self, volumes: Sequence[VolumeFile], largest_job_bytes: int) -> None:
        """Measures `raw/`. Raises `ConfigurationError` if the bound or the disk is too small for the volumes."""
        paths = {volume.path for volume in volumes}
        present = list_raw_files(self.folder)
        self.foreign_bytes = sum(size for path, size in present.items() if path not in paths)
        bound = self.options.bound_bytes
        if self.foreign_bytes + largest_job_bytes > bound:
            raise ConfigurationError(
                f"--raw-cache-gb {self.options.raw_cache_gb:g} is too small: {largest_job_bytes / 1e9:.3g} GB are "
                f"needed at once, and {self.folder} holds {self.foreign_bytes / 1e9:.3g} GB of other files; "
                "`ctclip gc` lists converted files to delete"
            )
        missing = sum(
            volume.size_bytes for volume in volumes if volume.path not in present and not self._is_offline(volume)
        )
        self.needed_bytes = needed = min(missing, bound - self.foreign_bytes)
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise ConfigurationError(
                f"downloads need {needed / 1e9:.3g} GB in {self.folder}, where {free / 1e9:.3g} GB are free: "
                "make room, or choose a smaller --raw-cache-gb"
            )

    def fetch_jobs(self, jobs: Iterable[ConversionJob]) -> Iterator[ConversionJob]:
        """Yields each job when its files are there, without its rejected volumes, and downloads ahead."""
        waiting = deque(jobs)
        fetching: Fetching = deque()
        self._fetch_ahead(waiting, fetching)  # starts before the caller draws the first job
        return self._yield_fetched(waiting, fetching)

    def submit(self, volume: VolumeFile) -> Future[bool]:
        """Runs `fetch` in a thread of the pool. Its log lines carry the caller's run and the volume."""
        with log_context(item=volume.volume_name):
            return self.pool.submit(copy_context().run, self.fetch, volume)

    def _fetch_ahead(self, waiting: deque[ConversionJob], fetching: Fetching) -> None:
        while waiting and self._reserve(count_raw_bytes(waiting[0].volumes), is_patient=not fetching):
            job = waiting.popleft()
            fetching.append((job, [self.submit(volume) for volume in job.volumes]))

    def _yield_fetched(self, waiting: deque[ConversionJob], fetching: Fetching) -> Iterator[ConversionJob]:
        while waiting or fetching:
            self._fetch_ahead(waiting, fetching)
            job, futures = fetching.popleft()
            pairs = [(volume, future.result()) for volume, future in zip(job.volumes, futures, strict=True)]
            self.release([volume for volume, is_there in pairs if not is_there])
            if volumes := tuple(volume for volume, is_there in pairs if is_there):
                yield dataclasses.replace(job, volumes=volumes)

    def _reserve(self, size: int, is_patient: bool) -> bool:
        """Reserves bytes within the bound. Waits for room if patient, or else returns False where there is none."""
        with self.room:
            while self.held_bytes and self.foreign_bytes + self.held_bytes + size > self.options.bound_bytes:
                if not is_patient or self.meter.stopped.is_set():
                    return False
                self.room.wait(1.0)
            self.held_bytes += size
            return True

    def release(self, volumes: Iterable[VolumeFile]) -> None:
        """Frees the bytes of volumes that are recorded or rejected, and deletes their files unless `keep_raw`."""
        downloaded = [volume for volume in volumes if volume.origin]
        if not self.options.keep_raw:
            for volume in downloaded:
                drop_file(Path(volume.path))
        with self.room:
            self.held_bytes -= count_raw_bytes(downloaded)
            self.room.notify_all()

    def fetch(self, volume: VolumeFile) -> bool:
        """Downloads the volume's file unless it is there with the right hash. Returns False for a rejected volume.

        Raises `RemoteAccessError` for refused credentials, `RemoteUnavailableError` when the store has failed too often
        in a row, and `StageFailedError` when the disk is full.
        """
        if volume.origin is None:
            return True
        path = str(Path(volume.path).relative_to(self.folder))
        file = RemoteFile(path, volume.size_bytes, volume.sha256, volume.checksum)
        if self._is_offline(volume) and not file.is_at(Path(volume.path)):
            self.absent.append(volume)
            return False
        try:
            is_fetched = fetch(self._find_store(volume.origin), file, self.folder, self.meter)
        except (BadItemError, FileRefusedError, RemoteNotFoundError, RemoteUnavailableError) as error:
            self._reject(volume, error)
            return False
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StageFailedError(self._describe_full_disk(volume)) from error
            raise
        self.failures_in_a_row = 0
        with self.room:
            self.count_fetched += is_fetched
            self.count_reused += not is_fetched
            self.reused_bytes += 0 if is_fetched else volume.size_bytes
        return True

    def _find_store(self, origin: str) -> Store:
        with self._stores_lock:
            if origin not in self._stores:
                self._stores[origin] = open_store(parse_address(origin), self.token, self.limits)
            return self._stores[origin]

    def _is_offline(self, volume: VolumeFile) -> bool:
        return volume.origin is not None and self._find_store(volume.origin).is_offline

    def _reject(self, volume: VolumeFile, error: BadItemError | RemoteError) -> None:
        is_first_refusal = isinstance(error, FileRefusedError) and not self.count_fetched
        if isinstance(error, RemoteUnavailableError) or is_first_refusal:
            self.failures_in_a_row += 1
            if self.failures_in_a_row > self.limits.rejects_tolerated:
                raise error  # the store is down or refuses everything, no volume is to blame
        if isinstance(error, BadItemError):
            reason, detail = error.reason, error.detail
        else:
            reason = next(reason for kind, reason in REASONS.items() if isinstance(error, kind))
            detail = str(error)
        self.rejects.append((volume, VolumeError(volume.volume_name, reason, detail)))

    def _describe_full_disk(self, volume: VolumeFile) -> str:
        free = shutil.disk_usage(self.folder).free
        needed = max(self.needed_bytes - self.meter.fetched_bytes, volume.size_bytes)
        return (
            f"the disk is full: {needed / 1e9:.3g} GB are needed in {self.folder} and {free / 1e9:.3g} GB are free. "
            "Make room, or choose a smaller --raw-cache-gb, and run this again: it goes on from here"
        )

    def record_rejects(self, run: StageRun) -> None:
        """Records the volumes that were rejected since the last call. A rerun tries them again."""
        errors = []
        while self.rejects:
            volume, error = self.rejects.popleft()
            errors.append((error, volume.fingerprint))
        if errors:
            run.reject_all(errors, is_permanent=False)

    def check_offline(self) -> None:
        """Raises `MissingInputError` if HF_HUB_OFFLINE kept volumes from being downloaded."""
        if self.absent:
            raise MissingInputError(
                f"{len(self.absent)} volumes, such as {self.absent[0].volume_name}, are not in {self.folder} and "
                f"HF_HUB_OFFLINE is set: run `ctclip download` where there is a network "
                f"({count_raw_bytes(self.absent) / 1e9:.3g} GB), or unset HF_HUB_OFFLINE"
            )

    def note(self) -> str:
        """Bytes downloaded so far and the mean rate, for a line of progress."""
        fetched = self.meter.fetched_bytes
        rate = fetched / 1e6 / max(time.monotonic() - self.started, 1e-3)
        return f"{fetched / 1e9:.3g} GB fetched at {rate:.3g} MB/s"

    def summary(self) -> str:
        """Files downloaded and reused, for the run's detail."""
        return (
            f"{self.count_fetched} files fetched ({self.note()}), {self.count_reused} reused "
            f"({self.reused_bytes / 1e9:.3g} GB)"
        )


def list_raw_files(folder: Path) -> dict[str, int]:
    """Paths of the volumes' files in the folder `raw/`, and their sizes in bytes."""
    return {str(path): path.stat().st_size for path in (folder / "dataset").rglob("*.nii.gz")}


def count_raw_bytes(volumes: Iterable[VolumeFile]) -> int:
    """Bytes that the files of downloaded volumes take in `raw/`."""
    return sum(volume.size_bytes for volume in volumes if volume.origin)
