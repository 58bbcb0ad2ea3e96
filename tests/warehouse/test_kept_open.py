"""The warehouse's file stays open between two questions of a process, and no longer."""

import threading
import time
from contextlib import suppress
from pathlib import Path

import duckdb
import pytest
from support.records import volume_row, write_run

from warehouse import kept_open, store
from warehouse.kept_open import KEPT


@pytest.fixture
def data_root(tmp_path):
    write_run(tmp_path, 0, volumes=[volume_row("train_1_a_1")])
    store.publish(tmp_path)
    KEPT.close()
    return tmp_path


def count_opened(call):
    before = KEPT.count_opened
    call()
    return KEPT.count_opened - before


def test_questions_and_publishes_of_nothing_share_one_opened_file(data_root):
    def ask():
        for _ in range(5):
            assert store.query(data_root, "select count(*) from current_volumes") == [(1,)]
            assert not store.publish(data_root).is_changed

    assert count_opened(ask) == 1


def test_each_reader_has_its_own_session(data_root):
    with store.read(data_root) as one, store.read(data_root) as other:
        one.execute("create temp table mine as select 1")
        one.execute("set TimeZone = 'Asia/Tokyo'")
        with pytest.raises(duckdb.CatalogException):
            other.execute("from mine")
    with store.read(data_root) as later:
        assert later.execute("select current_setting('TimeZone')").fetchone() == ("UTC",)


def test_sql_of_a_user_locks_no_settings_of_later_readers(data_root):
    store.query(data_root, "select 1")
    store.run_user_sql(data_root, "select 1")
    with store.read(data_root) as connection:
        connection.execute("set threads = 1")


def test_another_data_root_and_another_publish_are_seen(data_root, tmp_path_factory):
    assert store.query(data_root, "select count(*) from volumes") == [(1,)]
    write_run(data_root, 1, volumes=[volume_row("train_2_a_1")])
    store.publish(data_root)
    assert store.query(data_root, "select count(*) from volumes") == [(2,)]
    other = tmp_path_factory.mktemp("other")
    write_run(other, 0)
    store.publish(other)
    assert store.query(other, "select count(*) from volumes") == [(0,)]


def test_a_replaced_file_is_not_held(data_root):
    store.query(data_root, "select 1")
    write_run(data_root, 1, volumes=[volume_row("train_2_a_1")])
    store.publish(data_root)
    assert not [link for link in list_open_files() if link.endswith("(deleted)") and str(data_root) in link]


def test_an_idle_file_is_closed(data_root, monkeypatch):
    monkeypatch.setattr(kept_open, "IDLE_S", 0.2)
    with store.read(data_root) as connection:
        time.sleep(0.5)
        connection.execute("from volumes")
    deadline = time.monotonic() + 10
    while any(str(data_root) in link for link in list_open_files()):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_threads_read_at_once(data_root):
    counts = []

    def ask():
        for _ in range(20):
            counts.extend(store.query(data_root, "select count(*) from volumes"))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == [(1,)] * 160


def list_open_files():
    links = []
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            links.append(str(link.readlink()))
    return links
