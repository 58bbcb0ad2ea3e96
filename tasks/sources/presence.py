"""The share of a catalogue's volumes that a source holds: told after each ingest, and a failure if it is none."""

from __future__ import annotations

from pathlib import Path

from tasks.sources.catalogue import SPLITS, Catalogue
from tasks.sources.folder_source import FolderSource
from tasks.sources.open_source import Source
from tasks.sources.tables import LABELS, METADATA, NO_CHEST, REPORTS
from warehouse import store

TABLES = (METADATA, REPORTS, LABELS, NO_CHEST)


def describe_presence(source: Source, catalogue: Catalogue) -> list[str]:
    """Sentences about volumes that are there, splits that are not, and files that a person should know of."""
    there, count = catalogue.count_files()
    parts = {split: catalogue.count_files(split) for split in SPLITS}
    by_split = ", ".join(f"{split} {found} of {listed}" for split, (found, listed) in parts.items() if listed)
    detail = f" ({by_split})" if "," in by_split and there < count else ""
    storage = f", stored as {source.storage}" if source.storage != "v2" else ""
    lines = [f"{there} of {count} volumes are there{detail}{storage}"]
    known = [split for split, (_, listed) in parts.items() if listed]
    lines += [f"no {split} split" for split in SPLITS if known and split not in known]
    paths = [table[split] for split in known for table in TABLES]
    if absent := [path.rpartition("/")[2] for path in paths if path in catalogue.absent]:
        lines.append(f"not there: {', '.join(absent)}")
    return lines + catalogue.notes


def count_recorded(data_root: Path, source: str) -> tuple[int, int]:
    """Number of volumes with a file, and number of all volumes, that the last ingest of a source recorded."""
    sql = "select count(size_bytes), count(*) from current_volumes where source = ?"
    ((there, count),) = store.query(data_root, sql, [source])
    return there, count


def find_shortfall(source: Source, catalogue: Catalogue) -> str:
    """One line about a source without a single volume of its tables: what was looked for, and what is there."""
    there, count = catalogue.count_files()
    if there:
        return ""
    contents = f". There: {source.describe_contents(catalogue)}" if isinstance(source, FolderSource) else ""
    if not count:
        absent = [path for path in METADATA.values() if path in catalogue.absent]
        missing = f": {' and '.join(absent)} are not there" if absent else ""
        return f"no table names a volume of {source.name}{missing}{contents}"
    path = catalogue.volumes[0]["path"]
    place = f"{path}, and for {path.rpartition('/')[2]} in every other folder" if contents else path
    return f"0 of {count} volumes of the tables are in {source.name}. Looked for {place}{contents}"
