"""Prefect's folder and its database, checked without Prefect, whose server fails late and at length without them."""

from __future__ import annotations

import os
import re
import sqlite3
import tempfile
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

DATABASE = "prefect.db"
MIGRATIONS = "server/database/_migrations/versions/sqlite"  # below Prefect's package
REVISION = re.compile(r"^revision\b.*?=\s*[\"'](\w+)[\"']", re.MULTILINE)
ADVICE = "Name a writable folder in PREFECT_HOME, or in HOME"


def expand(path: str) -> Path | None:
    """A path with its `~`, or None where nobody knows the home folder: no HOME, and no entry in passwd."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return None


def find_home() -> Path | None:
    """Prefect's folder, or None without a home folder."""
    return expand(os.environ.get("PREFECT_HOME") or "~/.prefect")


def find_home_fault() -> str | None:
    """Sentence on a folder of Prefect that is unknown or not writable, with the remedy, or None."""
    if (home := find_home()) is None:
        return f"there is no home folder: HOME is not set, and this user has no entry in passwd. {ADVICE}"
    try:
        existing = next(folder for folder in (home, *home.absolute().parents) if os.path.lexists(folder))
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        return f"Prefect's folder {home} is not writable: {error.strerror}. {ADVICE}"
    return None


def find_database_fault() -> str | None:
    """Sentence on a database that Prefect's own server cannot open, with the remedy, or None."""
    home = find_home()
    if home is None or not (file := home / DATABASE).exists():
        return None
    advice = "Move the file away, or name another folder in PREFECT_HOME"
    try:
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=1)) as connection:
            revision = _read_revision(connection)
    except sqlite3.OperationalError as error:
        return None if "locked" in str(error) else f"{file} cannot be opened: {error}. {advice}"
    except sqlite3.DatabaseError as error:
        return f"{file} is damaged: {error}. {advice}"
    if revision is None or revision in (known := _list_revisions()) or not known:
        return None
    return f"{file} was made by a newer Prefect (database revision {revision}). Install that version. {advice}"


def _read_revision(connection: sqlite3.Connection) -> str | None:
    """Revision of Prefect's tables, or None in a database without them."""
    if not connection.execute("select 1 from sqlite_master where name = 'alembic_version'").fetchone():
        return None
    row = connection.execute("select version_num from alembic_version").fetchone()
    return str(row[0]) if row else None


def _list_revisions() -> set[str]:
    """Revisions of the database that the installed Prefect knows, from the texts of its migrations."""
    spec = find_spec("prefect")
    folders = spec.submodule_search_locations if spec else None
    files = Path(next(iter(folders or []), "")).joinpath(MIGRATIONS).glob("*.py")
    return {found[1] for file in files if (found := REVISION.search(file.read_text("utf-8")))}
