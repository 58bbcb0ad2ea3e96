"""The files of a folder that a source is made of, found by their names wherever they lie."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path, PurePosixPath
from stat import S_ISREG
from typing import NamedTuple

from ctclip_model.config import compute_fingerprint
from ctclip_model.data.names import name_of_file
from ctclip_model.errors import ConfigurationError

# folders that file systems make for themselves, often unreadable
SYSTEM_FOLDERS = frozenset({"lost+found", "System Volume Information", "$RECYCLE.BIN"})
KINDS_SHOWN = 3  # kinds of other files in a message

Identity = tuple[int, int]  # device and inode, the same for every link to a file


class FoundFile(NamedTuple):
    """A file of a folder."""

    path: str  # relative to the folder
    size_bytes: int
    modified_ns: int
    identity: Identity


@dataclass
class Listing:
    """Volumes and tables of a folder, each with all of its places, and the number of all other files."""

    volumes: dict[str, list[FoundFile]] = field(default_factory=dict)  # places by name, such as valid_53_a_1
    tables: dict[str, list[FoundFile]] = field(default_factory=dict)  # places by file name in small letters
    broken_links: list[str] = field(default_factory=list)  # links of volumes and tables that lead nowhere
    others: Counter[str] = field(default_factory=Counter)  # number of other files by suffix
    examples: dict[str, str] = field(default_factory=dict)  # first path of each suffix

    def fingerprint(self) -> str:
        """Fingerprint of the path, size and time of change of every volume and table."""
        files = [file[:3] for group in (self.volumes, self.tables) for files in group.values() for file in files]
        return compute_fingerprint(sorted(files))

    def describe_others(self) -> str:
        """The other files, by kind and with examples, for a message. Empty if there are none."""
        if not self.others:
            return ""
        kinds = ", ".join(
            f"{count} {suffix or 'without a suffix'}" for suffix, count in self.others.most_common(KINDS_SHOWN)
        )
        example = self.examples[self.others.most_common(1)[0][0]]
        return f"{self.others.total()} other files ({kinds}; such as {example})"


def list_folder(folder: Path, tables: Collection[str], volumes: re.Pattern[str], skipped: Path) -> Listing:
    """Walks a folder once and finds its tables by their file names, and its volumes by a pattern. It is no link.

    Hidden folders, the folder `skipped` and links to folders above are left out. A folder with several links is read
    once, under its own path if it has one. Raises `ConfigurationError` for a folder that cannot be read, because its
    volumes would seem to be missing.
    """
    listing = Listing()
    wanted = {name.lower() for name in tables}
    for entry, path in _walk(folder, skipped):
        name, table = name_of_file(entry.name, volumes), entry.name.lower()
        if name is None and table not in wanted:
            _add_other(listing, path)
            continue
        file = _examine(entry, path)
        if file is None:
            listing.broken_links.append(_printable(path))
        elif name is not None:
            listing.volumes.setdefault(name, []).append(file)
        else:
            listing.tables.setdefault(table, []).append(file)
    for group in (listing.volumes, listing.tables):
        for files in group.values():
            files.sort(key=itemgetter(0))
    return listing


def _walk(folder: Path, skipped: Path) -> Iterator[tuple[os.DirEntry[str], str]]:
    """Yields each file below a folder with its relative path: those of the folder's own tree first, then of links."""
    seen = {_identify(str(above)) for above in (*folder.parents, skipped)} - {_identify(str(folder))}
    start = f"{folder}/".replace("//", "/")
    folders, links = [""], list[str]()
    while folders or links:
        inside = folders.pop() if folders else links.pop()  # ends in a slash
        identity = _identify(start + inside)
        if identity is not None and identity in seen:
            continue
        seen.add(identity)
        for entry in _scan(start + inside):
            path = inside + entry.name
            if not _is_folder(entry):
                yield entry, path
            elif not entry.name.startswith(".") and entry.name not in SYSTEM_FOLDERS:
                (links if entry.is_symlink() else folders).append(f"{path}/")
        links.sort(reverse=True)


def _scan(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:  # a Path for each folder would take longer than the call
            return list(entries)
    except FileNotFoundError:
        return []  # removed since its own folder was read
    except OSError as error:
        raise ConfigurationError(
            f"{folder.rstrip('/')} cannot be read: {error.strerror}. Its volumes would seem to be missing"
        ) from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # a link to itself


def _identify(path: str) -> Identity | None:
    try:
        found = os.stat(path)  # noqa: PTH116  a Path takes longer to make than the call
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _examine(entry: os.DirEntry[str], path: str) -> FoundFile | None:
    """Facts of a file. None for a link that leads nowhere, and for a path that is not UTF-8 and so has no record."""
    try:
        found = entry.stat()
        path.encode()
    except (OSError, UnicodeEncodeError):
        return None
    if not S_ISREG(found.st_mode):
        return None
    return FoundFile(path, found.st_size, found.st_mtime_ns, (found.st_dev, found.st_ino))


def _add_other(listing: Listing, path: str) -> None:
    suffix = ".nii.gz" if path.lower().endswith(".nii.gz") else PurePosixPath(path).suffix.lower()
    listing.others[suffix] += 1
    listing.examples.setdefault(suffix, _printable(path))


def _printable(path: str) -> str:
    return path.encode("utf-8", "replace").decode()
