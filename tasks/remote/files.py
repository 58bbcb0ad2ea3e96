"""Remote files, their checks, and the interface of the stores that hold them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from ctclip_model.config import compute_fingerprint
from ctclip_model.files import sha256_of, whole_file

T = TypeVar("T")

PARTIAL_FOLDER = ".partial"  # folder of unfinished downloads, each named by the content of the complete file
HASH_SUFFIX = ".sha256"  # names the file beside a download that holds its SHA-256
MD5_DIGITS = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class RemoteFile:
    """A file of a store, with what the store says of its content.

    `checksum` is `md5:HEX`, `git:HEX` (git's SHA-1 of a blob), `etag:TEXT` or `time:TEXT` (of the last change).
    """

    path: str  # relative to the store
    size_bytes: int
    sha256: str | None
    checksum: str | None = None
    has_opaque_etag: bool = False  # True: the store encrypts the file with a key, and its ETag is no MD5

    @property
    def content_id(self) -> str:
        """The best statement of the file's content."""
        return self.sha256 or self.checksum or ""

    @property
    def partial_name(self) -> str:
        """Name of the file's unfinished download."""
        return self.sha256 or compute_fingerprint(self.path, self.size_bytes, self.checksum)

    def is_same(self, other: RemoteFile | None) -> bool:
        """True if a later look at the store found the same content."""
        if other is None or other.size_bytes != self.size_bytes:
            return False
        return self.checksum == other.checksum or (self.sha256 is not None and self.sha256 == other.sha256)

    def find_hash(self) -> tuple[str, str] | None:
        """Algorithm and hexadecimal hash of the content. None: the store states nothing that can be computed."""
        if self.sha256:
            return "sha256", self.sha256
        kind, _, text = (self.checksum or "").partition(":")
        if kind in ("md5", "git") or (kind == "etag" and MD5_DIGITS.fullmatch(text)):
            return ("git" if kind == "git" else "md5"), text
        return None

    def matches(self, path: Path) -> bool:
        """True if the file at `path` has this file's size and the hash that the store states."""
        stated = self.find_hash()
        try:
            if stated is None or path.stat().st_size != self.size_bytes:
                return False
            return _compute_hash(path, stated[0]) == stated[1]
        except FileNotFoundError:
            return False

    def is_at(self, path: Path) -> bool:
        """True if this file was downloaded to `path` and is unchanged there."""
        if self.matches(path):
            return True
        try:
            own_hash, content_id = path.with_name(path.name + HASH_SUFFIX).read_text("utf-8").split(" ", 1)
            return content_id == self.content_id and path.stat().st_size == self.size_bytes and (
                sha256_of(path) == own_hash
            )  # fmt: skip
        except (FileNotFoundError, ValueError):
            return False

    def holds(self, content: bytes) -> bool:
        """True if this file has that content, by the hash that the store states."""
        stated = self.find_hash()
        if stated is None or len(content) != self.size_bytes:
            return False
        algorithm, text = stated
        data = b"blob %d\0" % len(content) + content if algorithm == "git" else content
        return hashlib.new("sha1" if algorithm == "git" else algorithm, data).hexdigest() == text

    def keep_hash(self, path: Path, target: Path) -> None:
        """Notes the SHA-256 of the file at `path`, which is about to be renamed to `target`."""
        with whole_file(target.with_name(target.name + HASH_SUFFIX)) as file:
            file.write(f"{sha256_of(path)} {self.content_id}".encode())


class Store(Protocol):
    """Files below an address: a repository on the Hub at a commit, or a prefix of a bucket."""

    @property
    def is_offline(self) -> bool:
        """True if the user forbids requests to this store."""
        ...

    def find_files(self, paths: Iterable[str]) -> dict[str, RemoteFile]:
        """The files of `paths` that the store has, by path. Raises `RemoteError`."""
        ...

    def open(self, file: RemoteFile, start: int) -> AbstractContextManager[tuple[int, Iterator[bytes]]]:
        """Opens a file at a byte, without retries. Gives the first byte that comes, which may be 0, and the bytes.

        Raises `DownloadError` for a file that has changed, and faults that `ask` understands.
        """
        ...

    def ask(self, request: Callable[[], T], sleep: Callable[[float], None]) -> T:
        """Makes a request, again after faults that pass. Raises `RemoteError`."""
        ...


def drop_file(path: Path) -> None:
    """Deletes a downloaded file and its hash, if they are there."""
    for each in (path, path.with_name(path.name + HASH_SUFFIX)):
        each.unlink(missing_ok=True)


def _compute_hash(path: Path, algorithm: str) -> str:
    if algorithm == "git":
        content = path.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()
