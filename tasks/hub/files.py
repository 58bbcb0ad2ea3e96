"""Files of a repository on the Hub: what they are, and their bytes, fetched on from where they stopped and checked."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from httpcore2._sync.http11 import HTTP11Connection
from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.constants import HF_HUB_DOWNLOAD_TIMEOUT
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from ctclip_model.errors import DownloadError, HubError, HubUnavailableError
from tasks.hub.requests import Repository, ask
from tasks.run.records import sha256_of
from tasks.settings import LIMITS, Limits, hub_endpoint

HTTP11Connection.READ_NUM_BYTES = 1 << 20  # of its own 64 KiB, the parsing is most of a fast download's time
PARTIAL_FOLDER = ".partial"  # beside what was fetched; each file named by the hash of its whole content


@dataclass(frozen=True)
class HubFile:
    """A file at a commit. A large one has a SHA-256; of a small one, kept in git, only the hash of its blob is told."""

    path: str
    size_bytes: int
    sha256: str | None
    blob_id: str = ""

    @property
    def content_id(self) -> str:
        return self.sha256 or self.blob_id

    def is_at(self, path: Path) -> bool:
        """Whether the file at `path` is this one, byte by byte."""
        try:
            if path.stat().st_size != self.size_bytes:
                return False
            if self.sha256 is not None:
                return sha256_of(path) == self.sha256
            content = path.read_bytes()
        except FileNotFoundError:
            return False
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == self.blob_id


class StoppedError(Exception):
    """Somebody wants no more of the downloads."""


class Meter:
    """Counts the bytes that several threads fetch, holds them to a rate, and stops them."""

    def __init__(self, bytes_per_s: float | None = None) -> None:
        self.bytes_per_s = bytes_per_s
        self.fetched_bytes = 0
        self.stopped = threading.Event()
        self._lock = threading.Lock()
        self._free_at = time.monotonic()

    def add(self, count: int) -> None:
        """Notes bytes that have come, and waits until more may."""
        with self._lock:
            self.fetched_bytes += count
            now = time.monotonic()
            if self.bytes_per_s:
                self._free_at = max(self._free_at, now) + count / self.bytes_per_s
            wait_s = self._free_at - now
        if wait_s > 0:
            self.sleep(wait_s)
        if self.stopped.is_set():
            raise StoppedError

    def sleep(self, duration_s: float) -> None:
        self.stopped.wait(duration_s)


def resolve(repository: Repository, limits: Limits = LIMITS) -> Repository:
    """The same repository at the commit that its revision is now; whatever moves later, this does not."""
    api = _api(repository)
    info = ask(
        repository,
        lambda: api.repo_info(
            repository.repo_id,
            repo_type=repository.kind,
            revision=repository.revision,
            timeout=limits.hub_timeout_s,
            expand=["sha"],  # type: ignore[arg-type]  # or else the answer lists every file there is
        ),
        limits=limits,
    )
    assert info.sha is not None
    return replace(repository, revision=info.sha)


def list_files(repository: Repository, paths: Iterable[str], limits: Limits = LIMITS) -> dict[str, HubFile]:
    """Size and hash of each of `paths` that is there, some hundreds a request; a recursive listing takes minutes.

    Raises `HubError` where the answer holds a path that was not asked for: such a one might lead anywhere.
    """
    api, asked = _api(repository), list(paths)
    batches = [
        asked[start : start + limits.hub_paths_a_request] for start in range(0, len(asked), limits.hub_paths_a_request)
    ]

    def request(batch: list[str]) -> list[HubFile]:
        found = ask(
            repository,
            lambda: api.get_paths_info(
                repository.repo_id, batch, revision=repository.revision, repo_type=repository.kind
            ),
            limits=limits,
        )
        if unknown := {item.path for item in found} - set(batch):
            raise HubError(f"{repository} lists {sorted(unknown)[0]!r}, which was not asked for: nothing of it is used")
        return [_describe(item) for item in found if isinstance(item, RepoFile)]

    with ThreadPoolExecutor(limits.hub_requests_at_once) as pool:
        return {file.path: file for found in pool.map(request, batches) for file in found}


def fetch(
    repository: Repository, file: HubFile, folder: Path, meter: Meter | None = None, limits: Limits = LIMITS
) -> bool:
    """Puts a file at its path under `folder` unless it is there; returns whether any of it had to be fetched.

    What came before a connection or the process broke is kept and fetched on from. Content that is not what the
    repository says is fetched once more. Raises `DownloadError` when it is wrong again, and `HubError`.
    """
    target, partial = folder / file.path, folder / PARTIAL_FOLDER / file.content_id
    if file.is_at(target):
        return False
    for path in (target, partial):
        path.parent.mkdir(parents=True, exist_ok=True)
    meter = meter or Meter()
    for is_last in (False, True):
        try:
            _fill_patiently(repository, file, partial, meter, limits)
            if not file.is_at(partial):
                raise DownloadError(file.path, "wrong_hash", f"has another hash than {file.content_id}")
        except DownloadError:
            partial.unlink(missing_ok=True)
            if is_last:
                raise
        else:
            break
    partial.replace(target)  # not synced to the disk: whoever uses it later checks its hash
    return True


def _fill_patiently(repository: Repository, file: HubFile, partial: Path, meter: Meter, limits: Limits) -> None:
    """Fetches what a partial file lacks; attempts are counted anew as long as some of it comes."""
    while True:
        have = partial.stat().st_size if partial.exists() else 0
        try:
            ask(repository, lambda: _fill(repository, file, partial, meter), limits=limits, sleep=meter.sleep)
        except HubUnavailableError:
            if partial.stat().st_size <= have:
                raise
        else:
            return


def _fill(repository: Repository, file: HubFile, partial: Path, meter: Meter) -> None:
    """Fetches what a partial file lacks."""
    url = hf_hub_url(
        repository.repo_id, file.path, repo_type=repository.kind, revision=repository.revision, endpoint=hub_endpoint()
    )
    headers = build_hf_headers(token=repository.given_token) | {"Accept-Encoding": "identity"}
    with partial.open("ab") as stream:
        have = stream.tell()
        if have == file.size_bytes:
            return
        if have:
            headers["Range"] = f"bytes={have}-"
        # the client's own session: it goes through proxies, and takes no token along where it is redirected to. Its
        # own download of a file forgets, when the process dies, what came before
        with get_session().stream("GET", url, headers=headers, timeout=HF_HUB_DOWNLOAD_TIMEOUT) as response:
            if response.status_code == 416:
                stream.truncate(0)  # there is less of it than we have: begin again
            hf_raise_for_status(response)
            if have and response.status_code != 206:
                stream.seek(0)  # all of it comes, not the rest
                stream.truncate()
            for chunk in response.iter_raw():
                if stream.tell() + len(chunk) > file.size_bytes:
                    raise DownloadError(file.path, "wrong_size", f"is longer than {file.size_bytes} bytes")
                stream.write(chunk)
                meter.add(len(chunk))
        if stream.tell() < file.size_bytes:
            raise DownloadError(file.path, "wrong_size", f"is shorter than {file.size_bytes} bytes")


def _describe(item: RepoFile) -> HubFile:
    return HubFile(item.path, item.size, item.lfs.sha256 if item.lfs else None, item.blob_id)


def _api(repository: Repository) -> HfApi:
    return HfApi(endpoint=hub_endpoint(), token=repository.given_token)
