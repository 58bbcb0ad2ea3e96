"""The warehouse's file: publish (lock, copy, load records, check, rename) and read.

`warehouse.duckdb` under the data root is never edited. A publish builds a new file beside it and renames the new file
into place. So readers always open a complete, checked warehouse, and an open reader keeps the file that it opened.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
from filelock import FileLock, LeaseSettingsMismatch, SoftFileLease, Timeout

from ctclip_model.errors import ConfigurationError, MissingInputError, WarehouseError
from ctclip_model.files import fsync
from ctclip_model.lock_files import WatchedFile
from warehouse import fold, schema
from warehouse.kept_open import KEPT, open_alone

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

WAREHOUSE_FILE = "warehouse.duckdb"
LOCK_FILE = "locks/warehouse.lock"
LOCK_TIMEOUT_S = 600.0
POLL_S = 0.1  # seconds between two attempts at the lease
LEASE_EXPIRY_S = 120.0  # seconds without a heartbeat, after which a dead publisher loses its lease
NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}  # file systems without flock
WORK_PREFIX = "warehouse.publish-"
COPY_CHUNK_BYTES = 1 << 30

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PublishResult:
    """Result of a publish: `rows` loaded by table. An unchanged warehouse was not rewritten."""

    rows: dict[str, int]
    count_files: int
    duration_s: float
    is_changed: bool


@dataclass(frozen=True)
class SQLResult:
    """Answer of a query: column names, DuckDB's type names, rows."""

    columns: list[str]
    types: list[str]
    rows: list[tuple[Any, ...]]


def publish(data_root: Path, *, from_scratch: bool = False, lock_timeout_s: float = LOCK_TIMEOUT_S) -> PublishResult:
    """Folds every new record file into a new warehouse, which replaces the old one. Does nothing if nothing is new.

    Raises `CheckFailedError` if the new rows break an invariant. Raises `WarehouseError` for a damaged record file, a
    held lock or a full disk. After an error the old file stays.
    """
    started = time.monotonic()
    target = data_root / WAREHOUSE_FILE
    with _lock(data_root / LOCK_FILE, lock_timeout_s):
        _tidy(data_root)
        is_fresh = from_scratch or not target.exists()
        if not is_fresh and _is_current(data_root):
            return PublishResult({}, 0, time.monotonic() - started, is_changed=False)
        # `whole_file` would make the file first, and DuckDB opens no empty file.
        work = data_root / f"{WORK_PREFIX}{uuid.uuid4().hex[:8]}.duckdb"
        try:
            if not is_fresh:
                _copy(target, work)
            rows, count_files = _build(work, data_root)
            work.chmod(work.stat().st_mode & 0o444)  # as the umask allowed
            fsync(work)
            os.replace(work, target)  # noqa: PTH105
            KEPT.close()  # the old file would take up space
            fsync(data_root)
        except (OSError, duckdb.Error) as error:
            raise WarehouseError(f"{target} was not published, the old one stays: {error}") from error
        finally:
            _tidy(data_root)
    result = PublishResult(rows, count_files, time.monotonic() - started, is_changed=True)
    logger.info("published %d rows of %d files in %.1f s", sum(rows.values()), count_files, result.duration_s)
    return result


@contextmanager
def read(data_root: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """Opens a read-only connection to the published warehouse. Hold it for a query, not for a stage.

    Raises `MissingInputError` if no warehouse has been published yet. Raises `WarehouseError` if the file is newer than
    this code or cannot be opened.
    """
    path = _find(data_root)
    try:
        connection = KEPT.connect(path, schema.pending_migrations)
    except (OSError, duckdb.Error) as error:
        raise WarehouseError(f"{path} cannot be opened: {error}") from error
    try:
        yield connection
    except duckdb.Error:
        KEPT.close()  # an internal error may have made the instance unusable
        raise
    finally:
        KEPT.release(connection)


def _find(data_root: Path) -> Path:
    path = data_root / WAREHOUSE_FILE
    if not path.exists():
        raise MissingInputError(describe_missing(data_root))
    return path


def describe_missing(data_root: Path) -> str:
    """Sentence on a warehouse without a file, with its remedy. Records without a warehouse have lost it."""
    if (data_root / fold.RECORDS_FOLDER).is_dir():
        return f"the warehouse of {data_root} is lost, and its records are there: run `ctclip publish`"
    return f"there is no warehouse in {data_root} yet: run `ctclip ingest`"


def query(
    data_root: Path, sql: str, parameters: Sequence[Any] | Mapping[str, Any] | None = None
) -> list[tuple[Any, ...]]:
    """Rows of one query on the published warehouse. Raises as `read` does."""
    with read(data_root) as connection:
        return connection.execute(sql, parameters).fetchall()


def check(data_root: Path) -> None:
    """Runs every check on all rows of the published warehouse. A publish checks the rows that it loads.

    The checks of a file that an older version published are left to the next publish. Raises `CheckFailedError`, and as
    `read` does.
    """
    with read(data_root) as connection:
        if schema.views_are_current(connection):
            schema.check_all(connection)


def stack_vectors(column: pa.ChunkedArray) -> NDArray[Any]:
    """The vectors of a column of lists, as an array (rows, width). An empty column has width 1.

    Raises `WarehouseError` for a missing vector or vectors of several widths, which would shift the rows after them.
    """
    import pyarrow.compute as pc  # imported late: most readers do without

    widths = set(pc.list_value_length(column).unique().to_pylist())
    if len(widths) > 1 or None in widths:
        found = ", ".join(sorted(map(str, widths)))
        raise WarehouseError(f"the warehouse holds latents of several widths ({found}) for one model")
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    vectors: NDArray[Any] = flat.reshape(len(column), *(widths or {1}))
    return vectors


@cache
def load_sql(package: str, name: str) -> str:
    """Text of `name.sql` beside the modules of a package: `load_sql(__package__, "manifest")`."""
    return resources.files(package).joinpath(f"{name}.sql").read_text(encoding="utf-8")


def run_user_sql(data_root: Path, sql: str, parameters: Sequence[Any] | Mapping[str, Any] | None = None) -> SQLResult:
    """Runs SQL of a user, which can neither write nor read other files.

    `parameters` fill `?` in order, or `$name` by name. Raises `ConfigurationError` for an error in the SQL, otherwise
    as `read` does.
    """
    path = _find(data_root)
    try:
        alone = open_alone(path, schema.pending_migrations)  # its settings are for all readers of an instance
    except duckdb.Error as error:
        raise WarehouseError(f"{path} cannot be opened: {error}") from error
    with alone as connection:
        connection.execute("set enable_external_access = false")
        connection.execute("set lock_configuration = true")
        try:
            answer = connection.execute(sql, parameters)
            description = (answer.description or []) if answer is not None else []
            rows = answer.fetchall() if description else []
        except duckdb.Error as error:
            raise ConfigurationError(f"the SQL failed: {error}") from error
    return SQLResult([column[0] for column in description], [str(column[1]) for column in description], rows)


def list_queries() -> dict[str, str]:
    """Names of the saved queries, each with its grain."""
    files = sorted(_queries_folder().glob("*.sql"))
    return {path.stem: schema.describe_query(path.read_text("utf-8")) for path in files}


def load_query(name: str) -> str:
    """SQL of a saved query, for `run_user_sql`. Raises `ConfigurationError` for an unknown name."""
    if name not in list_queries():
        raise ConfigurationError(f"there is no saved query {name!r}; there are: {', '.join(list_queries())}")
    return (_queries_folder() / f"{name}.sql").read_text("utf-8")


def _queries_folder() -> Path:
    return Path(__file__).parent / "queries"


@contextmanager
def _lock(path: Path, timeout_s: float) -> Iterator[None]:
    """Holds the publish lock. On a file system without locks it is a lease, which a dead publisher loses."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = _acquire(path, timeout_s)
    except Timeout as error:
        raise WarehouseError(
            f"another publish has held {error.lock_file} for {timeout_s:g} s; try again when it ends"
        ) from error
    except OSError as error:
        raise WarehouseError(f"{path} cannot be locked: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()


def _acquire(path: Path, timeout_s: float) -> FileLock | SoftFileLease:
    lock = FileLock(path, timeout=timeout_s, fallback_to_soft=False)
    try:
        lock.acquire()
        return lock
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return _acquire_lease(path.with_suffix(".lease"), timeout_s)


def _acquire_lease(path: Path, timeout_s: float) -> SoftFileLease:
    """Acquires the publish lease. A file without a heartbeat for `LEASE_EXPIRY_S` has no holder, whatever it holds."""
    lease, file = SoftFileLease(path, lease_duration=LEASE_EXPIRY_S), WatchedFile(path)
    deadline, has_waited = time.monotonic() + timeout_s, False
    while True:
        if (file.unchanged_s() or 0.0) >= LEASE_EXPIRY_S:
            file.remove()
        try:
            lease.acquire(blocking=False)
            return lease
        except (Timeout, LeaseSettingsMismatch):
            if time.monotonic() >= deadline:
                raise Timeout(str(path)) from None
        if not has_waited:
            logger.warning("another publish holds %s; waiting for it to end", path)
        has_waited = True
        time.sleep(POLL_S)


def _tidy(data_root: Path) -> None:
    """Removes the files of a dead publish, and moves aside the `.wal` of a read-write connection. Needs the lock."""
    for path in data_root.glob(f"{WORK_PREFIX}*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    wal = data_root / f"{WAREHOUSE_FILE}.wal"
    if wal.exists():
        aside = wal.with_name(f"{wal.name}.stray-{time.strftime('%Y%m%dT%H%M%S')}")
        wal.rename(aside)
        logger.warning("another program opened the warehouse for writing: its log was moved to %s", aside)


def _is_current(data_root: Path) -> bool:
    with read(data_root) as connection:
        return (
            not schema.pending_migrations(connection)
            and schema.views_are_current(connection)
            and not _new_records(connection, data_root)
        )


def _new_records(connection: duckdb.DuckDBPyConnection, data_root: Path) -> list[fold.RecordFile]:
    loaded = {path for (path,) in connection.execute("select path from record_files").fetchall()}
    return [file for file in fold.list_records(data_root) if file.path not in loaded]


def _build(work: Path, data_root: Path) -> tuple[dict[str, int], int]:
    """Migrates a copy of the warehouse, loads the new records into it and checks it."""
    with _without_options(work) as path, duckdb.connect(str(path)) as connection:
        has_migrated = schema.migrate(connection)
        files = _new_records(connection, data_root)
        rows = fold.load_records(connection, data_root, files)
        is_old = not schema.views_are_current(connection)
        if is_old:
            schema.create_views(connection)
        if is_old or not schema.counted_tables().isdisjoint(rows):
            schema.count_stale(connection)
        if is_old or has_migrated:  # its rows have passed other checks, or were changed
            schema.check_all(connection)
        else:
            schema.check_loaded(connection, rows, {file.run_id for file in files})
        connection.execute("checkpoint")
    return rows, len(files)


@contextmanager
def _without_options(work: Path) -> Iterator[Path]:
    """A path without `?`, from where on DuckDB takes the path of a file that it writes for options."""
    if "?" not in str(work):
        yield work
        return
    with tempfile.TemporaryDirectory() as folder:
        stand_in = Path(folder, work.name)
        if work.exists():
            _copy(work, stand_in)
        yield stand_in
        _copy(stand_in, work)


def _copy(source: Path, target: Path) -> None:
    """Copies a file, sharing its blocks if the file system can."""
    with source.open("rb") as reader, target.open("wb") as writer:
        try:
            while os.copy_file_range(reader.fileno(), writer.fileno(), COPY_CHUNK_BYTES):
                pass
        except (AttributeError, OSError):  # a system without this call, or two file systems
            reader.seek(0)
            writer.seek(0)
            writer.truncate()
            shutil.copyfileobj(reader, writer, 1 << 20)
