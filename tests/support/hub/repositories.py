"""Repositories of the loopback hub, their commits, and the content of files."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

LFS_SUFFIXES = (
    ".gz",
    ".pt",
    ".pth",
    ".bin",
    ".safetensors",
    ".parquet",
)  # all else is kept in git


@dataclass(frozen=True)
class Blob:
    """A file's content; in git there is only a pointer to a large one."""

    size: int
    sha256: str
    git_sha1: str
    is_lfs: bool

    def describe(self, path: str, is_xet: bool = False) -> dict[str, object]:
        """As the Hub lists it."""
        described: dict[str, object] = {"type": "file", "path": path, "size": self.size, "oid": self.git_sha1}
        if self.is_lfs:
            described["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": 134}
            if is_xet:
                described["xetHash"] = self.sha256
        return described


@dataclass
class HubRepository:
    """A repository of a kind, `datasets` or `models`; a gated one gives files only to those who accepted its terms."""

    kind: str
    repo_id: str
    store: Path
    is_gated: bool = False
    is_private: bool = False
    is_xet: bool = False  # large files stand in Xet's chunks, which a bridge makes files of for plain HTTP
    commits: dict[str, Mapping[str, Blob]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, folder: Path, branch: str = "main") -> str:
        """Makes the content of a folder the branch's newest commit; it may be changed afterwards."""
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        return self.commit_files({str(path.relative_to(folder)): self._keep(path) for path in paths}, branch)

    def commit_files(self, files: Mapping[str, Blob], branch: str = "main") -> str:
        """The same of files that nobody will ask the content of."""
        listed = json.dumps([[path, blob.sha256] for path, blob in sorted(files.items())])
        sha = hashlib.sha1(f"{self.branches.get(branch)} {listed}".encode()).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        return sha

    def keep_bytes(self, path: str, content: bytes) -> Blob:
        """The blob of a file in git that somebody pushed."""
        sha256 = hashlib.sha256(content).hexdigest()
        (self.store / sha256).write_bytes(content)
        return Blob(len(content), sha256, hash_git(content), is_lfs=False)

    def keep_uploaded(self, sha256: str, size: int) -> Blob | None:
        """The blob of a large file that was uploaded before its commit, or None if it was not."""
        if not (self.store / sha256).exists():
            return None
        return Blob(size, sha256, hash_git(make_pointer(sha256, size)), is_lfs=True)

    def find_commit(self, revision: str) -> str | None:
        return self.branches.get(revision) or (revision if revision in self.commits else None)

    def _keep(self, path: Path) -> Blob:
        content = path.read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        if not (self.store / sha256).exists():
            shutil.copyfile(path, self.store / sha256)
        is_lfs = path.name.endswith(LFS_SUFFIXES)
        in_git = make_pointer(sha256, len(content)) if is_lfs else content
        return Blob(len(content), sha256, hash_git(in_git), is_lfs)


def make_pointer(sha256: str, size: int) -> bytes:
    """Git's content of a large file."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def hash_git(content: bytes) -> str:
    """Git's SHA-1 of a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
