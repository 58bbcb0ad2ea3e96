"""Atomic, durable writes: after a crash, a path holds its old content or its new content, never a part."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

# Answers of file systems that sync no folder, such as CIFS and some FUSE: their renames are atomic all the same.
NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EACCES, errno.EISDIR}

STANDARD_STREAMS = {"-": "/dev/fd/1", "/dev/stdout": "/dev/fd/1", "/dev/stderr": "/dev/fd/2"}
DESCRIPTOR = re.compile(r"/(?:dev|proc/self)/fd/(\d+)")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync(path: Path) -> None:
    """Makes a file's content, or a rename within a folder, survive a power cut.

    A folder is left alone where the file system syncs none. Raises `OSError`, which names the file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if not (error.errno in NO_FOLDER_SYNC and path.is_dir()):
            raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Opens a temporary file for writing, which replaces `path` once it is complete and on the disk.

    After an error `path` stays as it was. A killed process leaves a hidden file that ends in `.tmp`. A symbolic link
    stays, and the file that it names is replaced. A device, a pipe or `-` gets the complete content at the end.
    """
    if is_stream(path):
        with tempfile.NamedTemporaryFile() as file:
            yield file  # type: ignore[misc]
            file.flush()
            with Path(file.name).open("rb") as written, _open_stream(path) as stream:
                shutil.copyfileobj(written, stream)
        return
    path = path.resolve() if path.is_symlink() else path
    temporary = _temporary_for(path)
    try:
        with temporary.open("wb") as file:
            yield file
        fsync(temporary)
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync(path.parent)


@contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """Makes an empty temporary folder, which replaces `folder` once its files are on the disk.

    After an error `folder` stays as it was. A process that is killed between two renames leaves no folder, and a
    killed process leaves hidden folders that end in `.tmp`.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary, replaced = _temporary_for(folder), _temporary_for(folder)
    temporary.mkdir()
    try:
        yield temporary
        for path in (*temporary.rglob("*"), temporary):
            fsync(path)
        if folder.exists():
            folder.rename(replaced)
        temporary.rename(folder)
        fsync(folder.parent)
    finally:
        if replaced.exists() and not folder.exists():
            replaced.rename(folder)
        for path in (temporary, replaced):
            shutil.rmtree(path, ignore_errors=True)


def is_stream(path: Path) -> bool:
    """True for devices and pipes, for `-`, and for `/dev/stdout`, even where that is a regular file."""
    is_device = any(path.absolute().is_relative_to(folder) for folder in ("/dev", "/proc"))
    return str(path) == "-" or (path.exists() and (is_device or not path.is_file()) and not path.is_dir())


def _open_stream(path: Path) -> BinaryIO:
    """Opens a stream for writing. A descriptor of this process is taken as it is: what it holds stays before."""
    name = STANDARD_STREAMS.get(str(path), str(path))
    if (found := DESCRIPTOR.fullmatch(name)) is None:
        return path.open("wb")
    sys.stdout.flush()
    return os.fdopen(os.dup(int(found[1])), "wb")


def _temporary_for(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
