"""SHA-256 of a folder's files, kept with size and time of change, so that a file is read once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ctclip_model.files import sha256_of
from tasks.run.records import write_parquet
from tasks.settings import count_workers
from tasks.sources.listing import FoundFile

COLUMNS = ("path", "size_bytes", "modified_ns", "sha256")

Hashes = dict[str, tuple[int, int, str]]  # {path: (size, time of change, SHA-256)}


class FileHashes:
    """Hashes of one folder's files, in a Parquet file of the data root."""

    def __init__(self, folder: Path, cache_path: Path) -> None:
        self.folder, self.cache_path = folder, cache_path

    def look_up(self, files: Iterable[FoundFile]) -> dict[str, str | OSError]:
        """SHA-256 of each file by its path, or the error of one that cannot be read. Reads only changed files."""
        cache = self._load()
        stats = {file.path: (file.size_bytes, file.modified_ns) for file in files}
        unknown = [path for path, known in stats.items() if cache.get(path, (None,))[:2] != known]
        with ThreadPoolExecutor(count_workers()) as pool:
            hashed = dict(zip(unknown, pool.map(self._sha256, unknown), strict=True))
        new = {path: (*stats[path], sha256) for path, sha256 in hashed.items() if isinstance(sha256, str)}
        if new:
            self._save(cache | new)
        return {path: hashed[path] if path in hashed else cache[path][2] for path in stats}

    def _sha256(self, path: str) -> str | OSError:
        try:
            return sha256_of(self.folder / path)
        except OSError as error:
            return error

    def _load(self) -> Hashes:
        try:
            table = pq.read_table(self.cache_path, filters=[("folder", "==", str(self.folder))])
        except (OSError, pa.ArrowException):
            return {}
        columns = (table[name].to_pylist() for name in COLUMNS)
        return {path: (size, modified, sha256) for path, size, modified, sha256 in zip(*columns, strict=True)}

    def _save(self, hashes: Mapping[str, tuple[int, int, str]]) -> None:
        self.cache_path.parent.mkdir(parents=True, exist_ok=True)
        sizes, modified, sha256s = zip(*hashes.values(), strict=True)
        columns = {"path": list(hashes), "size_bytes": sizes, "modified_ns": modified, "sha256": sha256s}
        write_parquet(pa.table({"folder": [str(self.folder)] * len(hashes)} | columns), self.cache_path)
