"""Files of a repository on the Hub: their sizes and hashes, and downloads that resume and are checked by hash."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from httpcore2._sync.http11 import HTTP11Connection
from httpx2 import Response
from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.constants import HF_HUB_DOWNLOAD_TIMEOUT
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from ctclip_model.errors import DownloadError, FileRefusedError, HubError, HubUnavailableError
from ctclip_model.files import sha256_of
from tasks.hub.requests import Repository, ask, is_refusal_of_file
from tasks.settings import LIMITS, Limits, hub_endpoint

# bytes per read: with the client's own 64 KiB, parsing takes most of the time of a fast download
HTTP11Connection.READ_NUM_BYTES = 1 << 20
PARTIAL_FOLDER = ".partial"  # folder of unfinished downloads, each named by the hash of the complete file


@dataclass(frozen=True)
class HubFile:
    """A file at a commit. The Hub knows the SHA-256 of a large file, and the git hash of a small one."""

    path: str
    size_bytes: int
    sha256: str | None
    blob_id: str = ""  # git's SHA-1 of the file

    @property
    def content_id(self) -> str:
        return self.sha256 or self.blob_id

    def is_at(self, path: Path) -> bool:
        """True if the file at `path` has this file's size and hash."""
        try:
            if path.stat().st_size != self.size_bytes:
                return False
            if self.sha256 is not None:
                return sha256_of(path) == self.sha256
            content = path.read_bytes()
        except FileNotFoundError:
            return False
        return self.holds(content)

    def holds(self, content: bytes) -> bool:
        """True if this file has that content."""
        if self.sha256 is not None:
            return hashlib.sha256(content).hexdigest() == self.sha256
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == self.blob_id


class StoppedError(Exception):
    """The meter was stopped and the downloads end."""


class Meter:
    """Counts the bytes that several threads download, limits their rate and stops them.

    `bytes_per_s` is the limit of all threads together. None: no limit.
    """

    def __init__(self, bytes_per_s: float | None = None) -> None:
        self.bytes_per_s = bytes_per_s
        self.fetched_bytes = 0
        self.stopped = threading.Event()
        self._lock = threading.Lock()
        self._free_at = time.monotonic()

    def add(self, count: int) -> None:
        """Counts downloaded bytes and waits until the rate allows more. Raises `StoppedError` once stopped."""
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
    """The repository at the commit that its revision names now. Raises `HubError`."""
    api = _api(repository)
    info = ask(
        repository,
        lambda: api.repo_info(
            repository.repo_id,
            repo_type=repository.kind,
            revision=repository.revision,
            timeout=limits.hub_timeout_s,
            expand=["sha"],  # type: ignore[arg-type]  # the default answer lists all files
        ),
        limits=limits,
    )
    assert info.sha is not None
    return replace(repository, revision=info.sha)


def list_files(repository: Repository, paths: Iterable[str], limits: Limits = LIMITS) -> dict[str, HubFile]:
    """Size and hash of the files of `paths` that the repository has, by path.

    Asks for some hundreds in a request, where a recursive listing would take minutes. Raises `HubError`, also for an
    answer with another path: it could lead out of the folder.
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
            raise HubError(f"{repository} lists {sorted(unknown)[0]!r}, which was not asked for: nothing is downloaded")
        return [_describe(item) for item in found if isinstance(item, RepoFile)]

    with ThreadPoolExecutor(limits.hub_requests_at_once) as pool:
        return {file.path: file for found in pool.map(request, batches) for file in found}


def fetch(
    repository: Repository, file: HubFile, folder: Path, meter: Meter | None = None, limits: Limits = LIMITS
) -> bool:
    """Downloads a file to its path below `folder` unless it is there. Returns True if it was downloaded.

    A download that broke off is resumed, in a later process too. A file that is refused or has a wrong hash is
    asked for once more. Raises `DownloadError` if it is wrong again, and `HubError`.
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
        except FileRefusedError:
            if is_last:
                raise
        except DownloadError:
            partial.unlink(missing_ok=True)
            if is_last:
                raise
        else:
            break
    partial.replace(target)  # without fsync: readers check the hash
    return True


def _fill_patiently(repository: Repository, file: HubFile, partial: Path, meter: Meter, limits: Limits) -> None:
    """Downloads the rest of a partial file, and counts the attempts anew as long as bytes arrive."""
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
    """Downloads the rest of a partial file in one request."""
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
        # The client's session goes through proxies and sends no token to the address of a redirect. The client's own
        # download of a file is not resumed by a later process.
        with get_session().stream("GET", url, headers=headers, timeout=HF_HUB_DOWNLOAD_TIMEOUT) as response:
            if response.status_code == 416:
                stream.truncate(0)  # the partial file is longer than the Hub's: begin again
            _require_file(response, repository, file)
            if have and response.status_code != 206:
                stream.seek(0)  # the answer is the complete file, not the rest
                stream.truncate()
            for chunk in response.iter_raw():
                if stream.tell() + len(chunk) > file.size_bytes:
                    raise DownloadError(file.path, "wrong_size", f"is longer than {file.size_bytes} bytes")
                stream.write(chunk)
                meter.add(len(chunk))
        if stream.tell() < file.size_bytes:
            raise DownloadError(file.path, "wrong_size", f"is shorter than {file.size_bytes} bytes")


def _require_file(response: Response, repository: Repository, file: HubFile) -> None:
    """Raises an error of the Hub's client for a bad status, and `FileRefusedError` if this file alone is refused."""
    try:
        hf_raise_for_status(response)
    except HfHubHTTPError as error:
        if not is_refusal_of_file(error, repository):
            raise
        raise FileRefusedError(
            f"{response.url.host} refuses {file.path} with status {response.status_code}, although the account may "
            f"read {repository}. A rerun asks again"
        ) from None


def _describe(item: RepoFile) -> HubFile:
    return HubFile(item.path, item.size, item.lfs.sha256 if item.lfs else None, item.blob_id)


def _api(repository: Repository) -> HfApi:
    return HfApi(endpoint=hub_endpoint(), token=repository.given_token)
