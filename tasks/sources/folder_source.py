"""A source in a folder: its volumes and tables are found by name, wherever they lie in it."""

from __future__ import annotations

import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from stat import S_ISDIR
from typing import Generic, TypeVar

from ctclip_model.config import compute_fingerprint
from ctclip_model.data.names import VOLUME_FILE, RadName, VolumeName
from ctclip_model.errors import BadItemError, ConfigurationError, MetadataError
from ctclip_model.files import whole_file
from tasks.run.collector import pausing_collector
from tasks.sources.catalogue import Catalogue, FileFacts
from tasks.sources.file_hashes import FileHashes
from tasks.sources.listing import FoundFile, list_folder

Name = TypeVar("Name", VolumeName, RadName)

NAMES_SHOWN = 2  # volumes named in a message


class FolderSource(ABC, Generic[Name]):
    """Reads a data set from a folder.

    A link is named as it was given, and its target is a part of the revision. Each file's hash is kept with its size
    and time of change, so that a file is read once. Raises `ConfigurationError` for a folder that cannot be read.
    """

    scheme: str
    requested_revision = None  # a folder has one revision

    def __init__(
        self, folder: Path, data_root: Path, tables: Collection[str], volumes: re.Pattern[str] = VOLUME_FILE
    ) -> None:
        self.folder, self.data_root = folder.absolute(), data_root
        self.tables, self.volumes = [PurePosixPath(path).name for path in tables], volumes
        self.errors: list[BadItemError] = []  # errors of files
        self.several: list[tuple[str, FoundFile, FoundFile]] = []  # volume, used file, unused file
        self._list_files()

    def _list_files(self) -> None:
        self.target = find_target(self.folder)
        with pausing_collector():
            self.listing = list_folder(self.target, self.tables, self.volumes, self.data_root)
        cache = self.data_root / "raw" / f"files-{compute_fingerprint(str(self.target))[:8]}.parquet"
        self.hashes, self.seen_path = FileHashes(self.target, cache), cache.with_suffix(".json")

    @property
    def name(self) -> str:
        return f"{self.scheme}://{self.folder}"

    @property
    def former_name(self) -> str:
        """Name that older versions gave to a link: that of its target."""
        return f"{self.scheme}://{self.target}"

    @property
    @abstractmethod
    def storage(self) -> str:
        """Format of the volumes' files, as the table `volumes` keeps it."""

    @abstractmethod
    def _rank(self, name: Name, path: str) -> int | None:
        """Rank of a place of a volume, the best first, or None if its file is no volume of this source."""

    def find_unchanged_revision(self) -> str | None:
        """The revision that was read last. None: a table or file was added, removed or changed since."""
        try:
            seen = json.loads(self.seen_path.read_text("utf-8"))
        except (OSError, ValueError):
            return None
        return str(seen["revision"]) if seen.get("files") == self._fingerprint_files() else None

    def read(self) -> tuple[str, Catalogue]:
        """Lists the folder anew, reads its tables and looks up its files. Returns the revision and its catalogue.

        The revision is a fingerprint of the tables, of the files' hashes, and of the folder that a link leads to.
        Raises `ConfigurationError` for a table that cannot be opened.
        """
        self._list_files()  # anew: a run may wait for hours between the opening of its source and this
        self.errors, self.several = [], []
        revision, catalogue = self._read_catalogue()
        catalogue.errors += self.errors
        catalogue.notes += self._list_notes(catalogue)
        if self.target != self.folder:
            revision = compute_fingerprint(revision, str(self.target))
        self._remember(revision)
        return revision, catalogue

    @abstractmethod
    def _read_catalogue(self) -> tuple[str, Catalogue]:
        """The revision by the tables and the files' hashes, and the catalogue."""

    def _remember(self, revision: str) -> None:
        seen = {"revision": revision, "files": self._fingerprint_files()}
        self.seen_path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(self.seen_path) as file:
            file.write(json.dumps(seen).encode())

    def _fingerprint_files(self) -> str:
        with pausing_collector():
            return compute_fingerprint(self.storage, self.listing.fingerprint())

    def _content(self, path: str) -> bytes | None:
        """Bytes of the table with that path or, in any other folder, with that file name. None for an absent one.

        Raises `ConfigurationError` for a table that cannot be read, and for two tables of one name that differ.
        """
        files = self.listing.tables.get(PurePosixPath(path).name.lower(), [])
        files = [file for file in files if file.path == path] or files
        contents = {content: file for file in files if (content := self._read(file)) is not None}
        if len(contents) > 1:
            paths = " and ".join(file.path for file in contents.values())
            raise ConfigurationError(f"{self.folder} holds different tables {paths}: keep one of them")
        return next(iter(contents), None)

    def _read(self, file: FoundFile) -> bytes | None:
        try:
            return (self.target / file.path).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigurationError(f"{self.folder / file.path} cannot be read: {error.strerror}") from error

    def _facts(self, names: Sequence[Name]) -> Mapping[Name, FileFacts]:
        """Place, size and hash of each volume's file. Notes the volumes with several files, or an unreadable one."""
        places = {name: self._find_places(name) for name in names}
        hashes = self.hashes.look_up(file for files in places.values() for file in files)
        facts = {}
        for name, files in places.items():
            found = {file.path: hashes[file.path] for file in files}
            if error := _find_error(name, found):
                self.errors.append(error)
            elif found:
                facts[name] = FileFacts(files[0].path, files[0].size_bytes, str(found[files[0].path]))
        return facts

    def _find_places(self, name: Name) -> list[FoundFile]:
        """The different files at the best places of a volume."""
        places = self.listing.volumes.get(str(name), ())
        ranked = [(rank, file) for file in places if (rank := self._rank(name, file.path)) is not None]
        if not ranked:
            return []
        ranked.sort()
        best = {file.identity: file for rank, file in reversed(ranked) if rank == ranked[0][0]}
        if len({file.identity for _, file in ranked}) > 1:
            self.several.append((str(name), ranked[0][1], ranked[1][1]))
        return sorted(best.values())

    def _list_notes(self, catalogue: Catalogue) -> Iterator[str]:
        refused = {error.item for error in self.errors}
        several = [(name, used, other) for name, used, other in self.several if name not in refused]
        if several:
            name, used, other = several[0]
            yield (
                f"volumes in several places: {len(several)}, such as {name}: {used.path} is used, {other.path} is not"
            )
        if unnamed := self._list_unnamed(catalogue):
            yield f"volumes in no table of metadata: {len(unnamed)} ({_show(unnamed)})"
        if others := self._list_other_versions(catalogue):
            yield f"volumes of another --storage alone: {len(others)} ({_show(others)})"
        if broken := self.listing.broken_links:
            yield f"links that lead nowhere: {len(broken)} ({_show(broken)})"

    def _list_unnamed(self, catalogue: Catalogue) -> list[str]:
        named = {row["volume_name"] for row in catalogue.volumes}
        return sorted(name for name in self.listing.volumes if name not in named)

    def _list_other_versions(self, catalogue: Catalogue) -> list[str]:
        """Volumes of the catalogue without a file, although there are files of their name."""
        without = (row["volume_name"] for row in catalogue.volumes if row["sha256"] is None)
        refused = {error.item for error in catalogue.errors}
        return [name for name in without if name in self.listing.volumes and name not in refused]

    def describe_contents(self, catalogue: Catalogue) -> str:
        """The folder's files, for a message about missing ones."""
        unnamed, others = self._list_unnamed(catalogue), self._list_other_versions(catalogue)
        broken = self.listing.broken_links
        tables = sum(name.endswith((".csv", ".txt")) for name in self.listing.tables)
        parts = [
            f"{len(others)} volumes of another --storage ({_show(others)})" if others else "",
            f"{len(unnamed)} volumes that no table of metadata names ({_show(unnamed)})" if unnamed else "",
            f"{tables} tables" if tables else "",
            f"{len(broken)} links that lead nowhere ({_show(broken)})" if broken else "",
            self.listing.describe_others(),
        ]
        return ", ".join(filter(None, parts)) or "nothing"


def find_target(folder: Path) -> Path:
    """The folder that a path leads to, through all links. Raises `ConfigurationError` if it is no folder."""
    target = Path(os.path.realpath(folder))
    try:
        mode = target.stat().st_mode
    except OSError as error:
        raise ConfigurationError(f"{folder} is no folder that can be read: {error.strerror}") from error
    if not S_ISDIR(mode):
        raise ConfigurationError(f"{folder} is a file: give the folder that holds tables and volumes as --source")
    return target


def _find_error(name: VolumeName | RadName, found: Mapping[str, str | OSError]) -> BadItemError | None:
    """The error of a volume with a file that cannot be read, or with files of different contents."""
    for path, sha256 in found.items():
        if isinstance(sha256, OSError):
            return MetadataError(str(name), "unreadable_file", f"{path} cannot be read: {sha256.strerror}")
    if len(set(found.values())) > 1:
        return MetadataError(str(name), "ambiguous_file", f"different files have its name: {', '.join(found)}")
    return None


def _show(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMES_SHOWN]) + (", …" if len(names) > NAMES_SHOWN else "")
