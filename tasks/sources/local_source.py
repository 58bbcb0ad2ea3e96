"""CT-RATE in a folder, on this machine or on a shared file system."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from stat import S_ISREG
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from ctclip_model.config import compute_fingerprint
from ctclip_model.data.names import RadName, Storage, VolumeName
from ctclip_model.data.phantom import MARKER
from ctclip_model.errors import ConfigurationError
from ctclip_model.files import whole_file
from tasks.run.records import sha256_of, write_parquet
from tasks.settings import count_workers
from tasks.sources.catalogue import Catalogue, FileFacts, build_catalogue
from tasks.sources.tables import LABELS, METADATA, NO_CHEST, REPORTS

STATS_KEY = "mark"  # key of the fingerprint in `files-*.json`, as older versions wrote it

Name = TypeVar("Name", bound=VolumeName | RadName)


class LocalSource:
    """Reads CT-RATE from a folder.

    The hash of each file is kept with its size and time of change, so that a file is read once.
    """

    requested_revision = None  # a folder has one revision

    def __init__(self, folder: Path, data_root: Path, storage: Storage = "v2") -> None:
        if not (folder / "dataset").is_dir():
            raise ConfigurationError(
                f"{folder} is not in CT-RATE's layout: it has no folder 'dataset' (give its parent as --source)"
            )
        self._open(folder, data_root, storage)

    def _open(self, folder: Path, data_root: Path, storage: str) -> None:
        self.folder = folder.resolve()
        self.storage = storage  # v1 or v2 of CT-RATE, or npz-<axes> of RAD-ChestCT
        self.cache_path = data_root / "raw" / f"files-{compute_fingerprint(str(self.folder))[:8]}.parquet"
        self.seen_path = self.cache_path.with_suffix(".json")
        self.absent: list[str] = []  # files that the tables name and the folder does not have

    @property
    def name(self) -> str:
        return f"file://{self.folder}"

    @property
    def kind(self) -> str:
        """Name of the data set in the warehouse. Phantoms never pass for CT-RATE."""
        return "phantom" if (self.folder / MARKER).is_file() else "ct-rate"

    def read(self) -> tuple[str, Catalogue]:
        """Reads the tables and looks up the files. Returns the revision and its catalogue.

        The revision is a fingerprint of the tables and of the files' hashes. Raises `ConfigurationError` for a table
        that cannot be opened.
        """
        tables = [path for group in (METADATA, REPORTS, LABELS, NO_CHEST) for path in group.values()]
        contents = {path: self._content(path) for path in tables}
        catalogue = build_catalogue(contents, self._facts, "v1" if self.storage == "v1" else "v2")
        hashes = [[path, hashlib.sha256(content or b"-").hexdigest()] for path, content in contents.items()]
        files = [[row["path"], row["sha256"]] for row in catalogue.volumes]
        revision = compute_fingerprint(self.storage, hashes, files)
        self._remember(revision, tables)
        return revision, catalogue

    def find_unchanged_revision(self) -> str | None:
        """The revision that was read last. None: a table or file was added, removed or changed since."""
        try:
            seen = json.loads(self.seen_path.read_text())
        except (OSError, ValueError):
            return None
        is_same = seen[STATS_KEY] == self._fingerprint_stats(seen["tables"], seen["absent"])
        return str(seen["revision"]) if is_same else None

    def _remember(self, revision: str, tables: Sequence[str]) -> None:
        stats = self._fingerprint_stats(tables, self.absent)
        seen = {"revision": revision, "tables": tables, "absent": self.absent, STATS_KEY: stats}
        self.seen_path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(self.seen_path) as file:
            file.write(json.dumps(seen).encode())

    def _fingerprint_stats(self, tables: Sequence[str], absent: Sequence[str]) -> str:
        """Fingerprint of the size and time of change of the tables, the hashed files and the absent files."""
        stats: list[tuple[int, int] | None] = []
        for path in itertools.chain(tables, self._load_cache(), absent):
            try:
                found = os.stat(f"{self.folder}/{path}")  # noqa: PTH116  a Path takes longer to make than the call
            except OSError:
                stats.append(None)
            else:
                stats.append((found.st_size, found.st_mtime_ns))
        return compute_fingerprint(self.storage, stats)

    def _content(self, path: str) -> bytes | None:
        """Bytes of a table, or None for an absent one."""
        try:
            return (self.folder / path).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigurationError(f"{self.folder / path} cannot be read: {error.strerror}") from error

    def _facts(self, names: list[Name]) -> Mapping[Name, FileFacts]:
        """Size and hash of each volume's file. Reads only files that are new or changed, and notes absent ones."""
        cache, self.absent = self._load_cache(), []
        stats: dict[str, tuple[int, int]] = {}
        paths = {}
        for name in names:
            path = str(name.path(self.storage))  # type: ignore[arg-type]
            try:
                found = (self.folder / path).stat()
            except OSError:
                self.absent.append(path)
                continue
            if not S_ISREG(found.st_mode):
                self.absent.append(path)
                continue
            stats[path], paths[name] = (found.st_size, found.st_mtime_ns), path
        unknown = [path for path, known in stats.items() if cache.get(path, (None,))[:2] != known]
        with ThreadPoolExecutor(count_workers()) as pool:
            hashed = dict(zip(unknown, pool.map(self._sha256, unknown), strict=True))
        facts = {path: (*stats[path], hashed.get(path) or str(cache[path][2])) for path in stats}
        if hashed:
            self._save_cache(cache | facts)
        return {name: FileFacts(facts[path][0], facts[path][2]) for name, path in paths.items()}

    def _sha256(self, path: str) -> str:
        return sha256_of(self.folder / path)

    def _load_cache(self) -> dict[str, tuple[int, int, str]]:
        try:
            table = pq.read_table(self.cache_path, filters=[("folder", "==", str(self.folder))])
        except (OSError, pa.ArrowException):
            return {}
        columns = (table[name].to_pylist() for name in ("path", "size_bytes", "modified_ns", "sha256"))
        return {path: (size, modified, sha256) for path, size, modified, sha256 in zip(*columns, strict=True)}

    def _save_cache(self, facts: Mapping[str, tuple[int, int, str]]) -> None:
        self.cache_path.parent.mkdir(parents=True, exist_ok=True)
        sizes, modified, hashes = zip(*facts.values(), strict=True)
        table = pa.table(
            {"folder": [str(self.folder)] * len(facts), "path": list(facts), "size_bytes": sizes,
             "modified_ns": modified, "sha256": hashes}
        )  # fmt: skip
        write_parquet(table, self.cache_path)
