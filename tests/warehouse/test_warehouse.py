from __future__ import annotations

import errno
import fcntl
import itertools
import os
import shutil
import stat
from pathlib import Path

import duckdb
import pytest
from filelock import FileLock
from support.records import RUNS, volume_row, write_run

from ctclip_model.errors import CheckFailedError, ConfigurationError, MissingInputError, WarehouseError
from tasks.run.records import RecordWriter
from warehouse import fold, schema, store
from warehouse.store import query
from warehouse.tables import TABLES

SCORED = {
    "model_id": "m", "dataset": "d", "split": "valid", "protocol": "p", "unit": "scan", "abnormality": "Emphysema",
}  # fmt: skip


def dump(connection: duckdb.DuckDBPyConnection) -> dict[str, list[str]]:
    """Every table's rows, in an order of their own."""
    tables = [*(table.name for table in TABLES), "record_files", "migrations", "published_results", "stale_counts"]
    return {table: sorted(map(str, connection.execute(f"from {table}").fetchall())) for table in tables}


def identity(data_root: Path) -> tuple[int, int]:
    """Changes whenever the published file is replaced or rewritten."""
    status = (data_root / store.WAREHOUSE_FILE).stat()
    return status.st_ino, status.st_mtime_ns


def dump_published(data_root: Path) -> dict[str, list[str]]:
    with store.read(data_root) as connection:
        return dump(connection)


def test_reading_before_the_first_publish_raises(tmp_path):
    with pytest.raises(MissingInputError, match="ctclip"), store.read(tmp_path):
        pass


def test_publish_without_records_gives_an_empty_warehouse_and_a_second_rewrites_nothing(tmp_path):
    assert store.publish(tmp_path).is_changed
    before = identity(tmp_path)
    result = store.publish(tmp_path)
    assert (result.rows, result.count_files, result.is_changed) == ({}, 0, False)
    assert identity(tmp_path) == before
    assert (tmp_path / store.WAREHOUSE_FILE).stat().st_mode & 0o777 == 0o444


def test_publish_counts_the_rows_and_files_that_it_loads(tmp_path):
    write_run(tmp_path, 0, volumes=[volume_row("train_1_a_1"), volume_row("train_1_a_2")])
    result = store.publish(tmp_path)
    assert result.rows == {"volumes": 2, "runs": 2}
    assert result.count_files == 3
    assert [path.name for path in tmp_path.glob("warehouse*")] == [store.WAREHOUSE_FILE]


def test_columns_left_out_are_null_and_metadata_stays_a_map(tmp_path):
    write_run(tmp_path, 0, volumes=[volume_row("train_1_a_1", metadata={"Rows": "512"})])
    store.publish(tmp_path)
    assert query(tmp_path, "select metadata['Rows'], manufacturer, is_withdrawn from volumes") == [("512", None, None)]


def test_newer_run_supersedes_and_a_value_that_returns_is_current_again(tmp_path):
    for run, fingerprint in enumerate("ABA"):
        write_run(tmp_path, run, volumes=[volume_row("train_1_a_1", fingerprint)])
        store.publish(tmp_path)
    history = query(tmp_path, "select fingerprint, superseded_by_run from volumes order by run_id")
    assert history == [("A", RUNS[1]), ("B", RUNS[2]), ("A", None)]
    assert query(tmp_path, "select fingerprint, run_id from current_volumes") == [("A", RUNS[2])]


def test_run_replaces_its_whole_group_and_nothing_of_another(tmp_path):
    labels = [
        {"scan_id": "train_1_a", "abnormality": name, "labeller_id": "x"} for name in ("Emphysema", "Atelectasis")
    ]
    write_run(tmp_path, 0, labels=[*labels, {**labels[0], "labeller_id": "y"}])
    write_run(tmp_path, 1, labels=labels[:1])
    store.publish(tmp_path)
    current = query(tmp_path, "select labeller_id, abnormality, run_id from current_labels order by 1")
    assert current == [("x", "Emphysema", RUNS[1]), ("y", "Emphysema", RUNS[0])]


def test_rows_of_one_run_never_supersede_each_other_however_many_files_hold_them(tmp_path):
    row = {"model_id": "m", "step": 1, "phase": "train"}
    writer = RecordWriter(tmp_path, RUNS[0])
    write_run(tmp_path, 0, status=None)
    store.publish(tmp_path)
    for step in (1, 2):
        writer.write("training_steps", [row | {"step": step}])
        store.publish(tmp_path)
    assert query(tmp_path, "select step from current_training_steps order by 1") == [(1,), (2,)]


def test_withdrawn_row_supersedes_and_is_not_current(tmp_path):
    write_run(tmp_path, 0, volumes=[volume_row("train_1_a_1"), volume_row("train_2_a_1")])
    write_run(tmp_path, 1, volumes=[volume_row("train_1_a_1", is_withdrawn=True)])
    store.publish(tmp_path)
    assert query(tmp_path, "select volume_name from current_volumes") == [("train_2_a_1",)]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_fold_is_the_same_in_whatever_order_the_runs_arrive(tmp_path, order):
    for run in range(3):
        rows = [volume_row(f"train_{patient}_a_1", f"{run}") for patient in range(1, 4 - run)]
        write_run(tmp_path, run, volumes=rows, wanted=[{"stage": "convert", "variant": None, "item": "x"}])
    files = fold.list_records(tmp_path)
    folds = []
    for batches in ([range(3)], [[run] for run in order]):
        with duckdb.connect() as connection:
            schema.migrate(connection)
            for batch in batches:
                mine = [file for file in files if file.run_id in [RUNS[run] for run in batch]]
                fold.load_records(connection, tmp_path, mine)
            folds.append(dump(connection))
    assert folds[0] == folds[1]


def test_publish_from_scratch_equals_the_incremental_one_row_for_row(tmp_path):
    for run in (0, 2, 1):  # run 1 arrives late
        write_run(
            tmp_path, run, "ingest", variant=None,
            volumes=[volume_row("train_1_a_1", f"{run}", metadata={"Rows": "512"})],
            latents=[{"model_id": "m", "kind": "volume", "item": "train_1_a_1", "latent": [0.6, 0.8]}],
        )  # fmt: skip
        store.publish(tmp_path)
    incremental = dump_published(tmp_path)
    assert query(tmp_path, "select run_id, superseded_by_run from volumes order by 1") == [
        (RUNS[0], RUNS[1]), (RUNS[1], RUNS[2]), (RUNS[2], None),
    ]  # fmt: skip
    assert store.publish(tmp_path, from_scratch=True).is_changed
    assert dump_published(tmp_path) == incremental


def test_reader_keeps_its_file_through_a_publish_and_the_next_reader_sees_the_new_one(tmp_path):
    write_run(tmp_path, 0, volumes=[volume_row("train_1_a_1")])
    store.publish(tmp_path)
    plain = duckdb.connect(str(tmp_path / store.WAREHOUSE_FILE), read_only=True)
    with plain, store.read(tmp_path) as early:
        before = identity(tmp_path)
        write_run(tmp_path, 1, volumes=[volume_row("train_2_a_1")])
        store.publish(tmp_path)
        assert identity(tmp_path)[0] != before[0], "edited in place under its readers"
        with store.read(tmp_path) as late:
            counts = [reader.execute("select count(*) from volumes").fetchall() for reader in (plain, early, late)]
    assert counts == [[(1,)], [(1,)], [(2,)]]


OUTSIDE = {"model_id": "m", "ci_low": 0.2, "ci_high": 0.3, "ci_method": "score"}


@pytest.mark.parametrize(
    ("check", "tables"),
    [
        ("unique_volumes", {"volumes": [volume_row("train_1_a_1"), volume_row("train_1_a_1")]}),
        ("probability_range", {"labels": [{"scan_id": "train_1_a", "abnormality": "Emphysema", "probability": 1.5}]}),
        ("metric_range", {"metrics": [{"model_id": "m", "metric": "auroc", "n": 5, "n_positive": 6}]}),
        ("metric_range", {"metrics": [{"model_id": "m", "metric": "auroc", "value": 1.01}]}),
        ("metric_range", {"metrics": [OUTSIDE | {"metric": "calibration_error", "value": 0.1}]}),
        ("metric_range", {"metrics": [OUTSIDE | {"metric": "auroc", "value": None}]}),
        ("comparison_range", {"comparisons": [OUTSIDE | {"other_model_id": "o", "difference": 0.1}]}),
        (
            "metric_counts",
            {
                "metrics": [
                    {"model_id": "m", "abnormality": "x", "metric": name, "n": n}
                    for name, n in (("f1", 5), ("auroc", 6))
                ]
            },
        ),
        (
            "metric_counts",
            {
                "metrics": [SCORED | {"label_source": "published", "metric": "auroc", "n": 2}],
                "predictions": [SCORED | {"item": "valid_1_a", "probability": 0.5}],
            },
        ),
        ("comparison_range", {"comparisons": [{"model_id": "m", "other_model_id": "m"}]}),
        ("comparison_range", {"comparisons": [{"model_id": "m", "other_model_id": "o", "difference": 1.5}]}),
        (
            "comparison_range",
            {"comparisons": [{"model_id": "m", "other_model_id": "o", "p_value": 0.2, "p_value_holm": 0.1}]},
        ),
        ("hand_report_ids", {"predictions": [SCORED | {"unit": "report", "item": "train_1", "probability": 0.5}]}),
        (
            "patient_in_two_splits",
            {
                "volumes": [
                    volume_row(f"train_1_a_{n}", patient_id="train_1", split=split)
                    for n, split in ((1, "train"), (2, "valid"))
                ]
            },
        ),
        ("latent_norm", {"latents": [{"model_id": "m", "item": "x", "latent": [0.6, 0.9]}]}),
        ("latent_norm", {"latents": [{"model_id": "m", "item": str(n), "latent": [1.0] + [0.0] * n} for n in (1, 2)]}),
        ("patient_overlap", {"model_samples": [{"model_id": "m", "sample_id": "valid_1_a_1", "split": "valid"}]}),
        (
            "patient_overlap",
            {
                "model_samples": [{"model_id": "m", "sample_id": "train_1_a_1", "split": "train"}],
                "predictions": [{"model_id": "m", "split": "valid", "item": "train_1_a", "probability": 0.5}],
            },
        ),
    ],
)
def test_failed_check_is_named_and_keeps_the_old_warehouse(tmp_path, check, tables):
    write_run(tmp_path, 0, volumes=[volume_row("train_9_a_1")])
    store.publish(tmp_path)
    before = identity(tmp_path)
    write_run(tmp_path, 1, **tables)
    with pytest.raises(CheckFailedError, match=f"{check} failed.*such as: {{"):
        store.publish(tmp_path)
    assert identity(tmp_path) == before
    assert [path.name for path in tmp_path.glob("warehouse*")] == [store.WAREHOUSE_FILE]


def test_records_of_a_run_that_never_began_are_refused(tmp_path):
    RecordWriter(tmp_path, RUNS[0]).write("volumes", [volume_row("train_1_a_1")])
    with pytest.raises(CheckFailedError, match=f"unknown_run.*volumes.*{RUNS[0]}"):
        store.publish(tmp_path)


def test_records_of_a_run_that_never_began_are_found_in_every_table():
    with duckdb.connect() as connection:
        schema.migrate(connection)
        for table in TABLES:
            connection.execute(f"insert into {table.name} (run_id) values (?)", [RUNS[0]])
        schema.create_views(connection)
        schema.choose_rows(connection, None)
        found = connection.execute(schema.check_definitions()["unknown_run"]).fetchall()
    assert sorted(found) == sorted((table.name, RUNS[0]) for table in TABLES if table.name != "runs")


def test_truncated_record_file_is_named(tmp_path):
    write_run(tmp_path, 0, volumes=[volume_row("train_1_a_1")])
    path = next((tmp_path / "records" / "volumes").iterdir())
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(WarehouseError, match=f"{path.name} is damaged"):
        store.publish(tmp_path)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"volume_name": "x", "colour": "red"}, "'colour', which table volumes lacks"),
        ({"volume_name": "x", "reconstruction": "first"}, "cannot be loaded into volumes"),
        ({"volume_name": "x", "run_id": RUNS[7]}, "holds a row of another run"),
    ],
)
def test_record_file_that_does_not_fit_its_table_is_named(tmp_path, row, problem):
    write_run(tmp_path, 0, volumes=[volume_row("train_1_a_1")])
    write_run(tmp_path, 1, volumes=[row])
    with pytest.raises(WarehouseError, match=f"{RUNS[1]}-000001.parquet .*{problem}"):
        store.publish(tmp_path)


def test_records_of_no_table_are_refused_and_unfinished_files_are_left_alone(tmp_path):
    write_run(tmp_path, 0, volumes=[volume_row("train_1_a_1")])
    (tmp_path / "records" / "volumes" / f".{RUNS[1]}-000001.parquet.12.tmp").write_bytes(b"half")
    store.publish(tmp_path)
    write_run(tmp_path, 1, colours=[{"item": "x"}])
    with pytest.raises(WarehouseError, match="colours is not a folder of records"):
        store.publish(tmp_path)


def test_held_lock_is_reported_after_the_timeout(tmp_path):
    (tmp_path / "locks").mkdir()
    with FileLock(tmp_path / store.LOCK_FILE), pytest.raises(WarehouseError, match="another publish"):
        store.publish(tmp_path, lock_timeout_s=0.05)


def refuse_flock(monkeypatch, code: int) -> None:
    def refuse(_descriptor, _operation):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_locks_publishes_under_a_lease(tmp_path, monkeypatch, code):
    refuse_flock(monkeypatch, code)
    write_run(tmp_path, 0, volumes=[volume_row("train_1_a_1")])
    store.publish(tmp_path)
    assert query(tmp_path, "select count(*) from volumes") == [(1,)]
    held = store._acquire(tmp_path / store.LOCK_FILE, 1)
    with pytest.raises(WarehouseError, match="another publish"):
        store.publish(tmp_path, lock_timeout_s=0.05)
    held.release()
    assert not store.publish(tmp_path).is_changed


@pytest.mark.parametrize(
    "left", ["", "1\n", "filelock/2\npid=", "no marker at all\n" * 200], ids=["empty", "old", "cut", "other"]
)
def test_a_lease_file_that_nobody_touches_is_taken_over_where_flock_is_missing(tmp_path, monkeypatch, left):
    refuse_flock(monkeypatch, errno.ENOSYS)
    monkeypatch.setattr(store, "LEASE_EXPIRY_S", 0.2)
    monkeypatch.setattr(store, "POLL_S", 0.01)
    write_run(tmp_path, 0, volumes=[volume_row("train_1_a_1")])
    lease = (tmp_path / store.LOCK_FILE).with_suffix(".lease")
    lease.parent.mkdir()
    lease.write_text(left)
    assert store.publish(tmp_path).is_changed


def test_a_lease_file_of_another_machine_is_named_after_the_wait(tmp_path, monkeypatch, caplog):
    refuse_flock(monkeypatch, errno.ENOSYS)
    write_run(tmp_path, 0, volumes=[volume_row("train_1_a_1")])
    lease = (tmp_path / store.LOCK_FILE).with_suffix(".lease")
    lease.parent.mkdir()
    lease.write_text("7\nanother-machine\n")
    with pytest.raises(WarehouseError, match=r"another publish has held .*warehouse\.lease for"):
        store.publish(tmp_path, lock_timeout_s=0.05)
    assert "waiting for it to end" in caplog.text
    assert lease.exists()


def test_a_lock_that_fails_otherwise_is_named_with_its_cause(tmp_path, monkeypatch):
    refuse_flock(monkeypatch, errno.EIO)
    with pytest.raises(WarehouseError, match=r"warehouse\.lock cannot be locked: Input/output error"):
        store.publish(tmp_path)


def test_stray_log_is_moved_aside_with_a_warning(tmp_path, caplog):
    store.publish(tmp_path)
    (tmp_path / f"{store.WAREHOUSE_FILE}.wal").write_bytes(b"left by a careless open")
    store.publish(tmp_path)
    assert not (tmp_path / f"{store.WAREHOUSE_FILE}.wal").exists()
    assert len(list(tmp_path.glob("*.wal.stray-*"))) == 1
    assert "moved to" in caplog.text


def test_damaged_warehouse_is_reported_and_can_be_made_again(tmp_path):
    write_run(tmp_path, 0, volumes=[volume_row("train_1_a_1")])
    (tmp_path / store.WAREHOUSE_FILE).write_bytes(b"no database at all")
    with pytest.raises(WarehouseError, match="cannot be opened"):
        store.publish(tmp_path)
    store.publish(tmp_path, from_scratch=True)
    assert query(tmp_path, "select count(*) from volumes") == [(1,)]


@pytest.fixture
def migrations(tmp_path) -> Path:
    return Path(shutil.copytree(Path(schema.__file__).parent / "migrations", tmp_path / "migrations"))


def test_migrations_apply_once_and_new_ones_in_order(migrations):
    with duckdb.connect() as connection:
        schema.migrate(connection, migrations)
        (migrations / "9998_colours.sql").write_text("create table colours (name varchar);")
        (migrations / "9999_red.sql").write_text("insert into colours values ('red');")
        schema.migrate(connection, migrations)
        schema.migrate(connection, migrations)
        assert connection.execute("from colours").fetchall() == [("red",)]


def test_failed_migration_leaves_nothing_behind(migrations):
    (migrations / "9998_colours.sql").write_text("create table colours (name varchar); insert into nowhere values (1);")
    with duckdb.connect() as connection:
        with pytest.raises(WarehouseError, match=r"9998_colours\.sql failed"):
            schema.migrate(connection, migrations)
        assert list(schema.pending_migrations(connection, migrations)) == [9998]
        assert not connection.execute("from duckdb_tables() where table_name = 'colours'").fetchall()


def test_migration_changed_since_it_was_applied_is_refused(migrations):
    with duckdb.connect() as connection:
        schema.migrate(connection, migrations)
        path = migrations / "0001_tables.sql"
        path.write_text(path.read_text() + "\n-- edited")
        with pytest.raises(WarehouseError, match=r"0001_tables\.sql has changed"):
            schema.migrate(connection, migrations)


def test_warehouse_newer_than_the_code_is_refused(migrations):
    with duckdb.connect() as connection:
        schema.migrate(connection, migrations)
        (migrations / "0005_evaluation.sql").unlink()
        with pytest.raises(WarehouseError, match="newer than this code"):
            schema.migrate(connection, migrations)


def test_tables_agree_with_the_schema():
    with duckdb.connect() as connection:
        schema.migrate(connection)
        for table in TABLES:
            columns = {row[0] for row in connection.execute(f"describe {table.name}").fetchall()}
            assert {*table.key, *table.group, "run_id"} <= columns
            assert table.has_withdrawn == ("is_withdrawn" in columns)
            assert bool(table.group) == ("superseded_by_run" in columns)


@pytest.mark.parametrize(
    "sql",
    [
        "delete from volumes",
        "create table mine (x integer)",
        "from read_csv('{file}')",
        "from read_text('{file}')",
        "from glob('{folder}/*')",
        "copy (select 1) to '{folder}/out.csv'",
        "attach '{folder}/other.duckdb'",
        "from '/etc/passwd'",
        "from read_csv('/etc/passwd')",
        "install httpfs",
        "load httpfs",
        "export database '{folder}/all'",
        "set enable_external_access = true",
        "from sql",  # a Python variable of ours
    ],
)
def test_user_sql_can_neither_write_nor_reach_files(tmp_path, sql):
    store.publish(tmp_path)
    (tmp_path / "secret.csv").write_text("a,b\n1,2\n")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ConfigurationError, match="SQL failed"):
        store.run_user_sql(tmp_path, sql.format(file=tmp_path / "secret.csv", folder=tmp_path))
    assert sorted(tmp_path.iterdir()) == before


def test_user_sql_returns_names_types_and_rows(tmp_path):
    store.publish(tmp_path)
    result = store.run_user_sql(tmp_path, "select $a as a, 2 * $b::integer as b", {"a": "x", "b": "3"})
    assert (result.columns, result.types, result.rows) == (["a", "b"], ["VARCHAR", "INTEGER"], [("x", 6)])


@pytest.mark.parametrize("name", ["data[1]", "data*", "da?a", "it's {x}"])
def test_data_root_is_never_a_pattern(tmp_path, name):
    for folder, count in (("data1", 2), ("data", 3), (name, 1)):
        (tmp_path / folder).mkdir()
        write_run(tmp_path / folder, count, volumes=[volume_row(f"valid_{count}_a_1")])
    store.publish(tmp_path / name)
    assert store.query(tmp_path / name, "select volume_name from volumes") == [("valid_1_a_1",)]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o444), (0o027, 0o440), (0o077, 0o400)])
def test_warehouse_is_readable_by_whom_the_umask_allows(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        store.publish(tmp_path)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / store.WAREHOUSE_FILE).stat().st_mode) == mode
