"""Files of a repository on the Hub: their sizes and hashes, and their bytes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

from httpcore2._sync.http11 import HTTP11Connection
from httpx2 import Response
from huggingface_hub import HfApi, hf_hub_url, is_offline_mode
from huggingface_hub.constants import HF_HUB_DOWNLOAD_TIMEOUT
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from ctclip_model.errors import FileRefusedError, HubError
from tasks.hub.requests import Repository, ask, is_refusal_of_file
from tasks.remote.files import RemoteFile
from tasks.remote.waiting import Sleep, ask_in_threads
from tasks.settings import LIMITS, Limits, hub_endpoint

T = TypeVar("T")

# bytes per read: with the client's own 64 KiB, parsing takes most of the time of a fast download
HTTP11Connection.READ_NUM_BYTES = 1 << 20


@dataclass(frozen=True)
class HubStore:
    """The files of a repository on the Hub. The Hub knows the SHA-256 of a large file, and the git hash of a small one.

    A download of the Hub's own client is not resumed by a later process, therefore this one reads the bytes itself.
    """

    repository: Repository
    limits: Limits = LIMITS

    @property
    def is_offline(self) -> bool:
        """True if HF_HUB_OFFLINE is set."""
        return is_offline_mode()

    def ask(self, request: Callable[[], T], sleep: Sleep = time.sleep) -> T:
        """Makes a request, again after faults that pass. Raises `HubError`."""
        return ask(self.repository, request, limits=self.limits, sleep=sleep)

    def find_files(self, paths: Iterable[str]) -> dict[str, RemoteFile]:
        """Size and hash of the files of `paths` that the repository has, by path.

        Asks for some hundreds in a request, where a recursive listing would take minutes. Raises `HubError`, also for
        an answer with another path: it could lead out of the folder.
        """
        api, asked, repository = open_api(self.repository), list(paths), self.repository
        size = self.limits.hub_paths_a_request
        batches = [asked[start : start + size] for start in range(0, len(asked), size)]

        def request(batch: list[str], sleep: Sleep) -> list[RemoteFile]:
            found = self.ask(
                lambda: api.get_paths_info(
                    repository.repo_id, batch, revision=repository.revision, repo_type=repository.kind
                ),
                sleep,
            )
            if unknown := {item.path for item in found} - set(batch):
                raise HubError(
                    f"{repository} lists {sorted(unknown)[0]!r}, which was not asked for: nothing is downloaded"
                )
            return [_describe(item) for item in found if isinstance(item, RepoFile)]

        answers = ask_in_threads(request, batches, self.limits.hub_requests_at_once)
        return {file.path: file for found in answers for file in found}

    @contextmanager
    def open(self, file: RemoteFile, start: int) -> Iterator[tuple[int, Iterator[bytes]]]:
        """Opens a file at a byte in one request. The first byte that comes is 0 if the Hub sends the complete file."""
        repository = self.repository
        url = hf_hub_url(
            repository.repo_id, file.path, repo_type=repository.kind, revision=repository.revision,
            endpoint=hub_endpoint(),
        )  # fmt: skip
        headers = build_hf_headers(token=repository.given_token) | {"Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        # the client's session goes through proxies and sends no token to the address of a redirect
        with get_session().stream("GET", url, headers=headers, timeout=HF_HUB_DOWNLOAD_TIMEOUT) as response:
            if start == 0 or response.status_code != 416:
                _require_file(response, repository, file)
                yield (start if response.status_code == 206 else 0), response.iter_raw()
                return
        with self.open(file, 0) as whole:  # the partial file is longer than the Hub's: begin again
            yield whole


def resolve(repository: Repository, limits: Limits = LIMITS) -> Repository:
    """The repository at the commit that its revision names now. Raises `HubError`."""
    return replace(repository, revision=read_head(repository, limits).commit)


@dataclass(frozen=True)
class Head:
    """The commit that a revision names now. `is_private` tells of the repository."""

    commit: str
    is_private: bool


def read_head(repository: Repository, limits: Limits = LIMITS) -> Head:
    """The commit that the repository's revision names now. Raises `HubError`."""
    info = ask(
        repository,
        lambda: open_api(repository).repo_info(
            repository.repo_id, repo_type=repository.kind, revision=repository.revision, timeout=limits.hub_timeout_s,
            expand=["sha", "private"],  # type: ignore[arg-type]  # the default answer lists all files
        ),
        limits=limits,
    )  # fmt: skip
    assert info.sha is not None
    return Head(info.sha, bool(info.private))


def _require_file(response: Response, repository: Repository, file: RemoteFile) -> None:
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


def _describe(item: RepoFile) -> RemoteFile:
    sha256 = item.lfs.sha256 if item.lfs else None
    return RemoteFile(item.path, item.size, sha256, None if sha256 else f"git:{item.blob_id}")


def open_api(repository: Repository) -> HfApi:
    """The Hub's client with the repository's token."""
    return HfApi(endpoint=hub_endpoint(), token=repository.given_token)
