"""Every table, view and column says what it means, in the file and in docs/warehouse.md."""

import duckdb
import pytest

from warehouse import document, schema
from warehouse.comments import glossary


@pytest.fixture(scope="module")
def commented():
    with duckdb.connect() as connection:
        schema.migrate(connection)
        schema.create_views(connection)
        yield connection


def test_every_table_view_and_column_has_a_comment(commented):
    for relations, name in (("duckdb_tables()", "table_name"), ("duckdb_views()", "view_name")):
        assert (
            commented.execute(f"select {name} from {relations} where not internal and comment is null").fetchall() == []
        )
    bare = (
        "select distinct table_name || '.' || column_name from duckdb_columns() where not internal and comment is null"
    )
    assert commented.execute(bare).fetchall() == []


def test_glossary_explains_no_column_that_is_gone(commented):
    columns = {name for (name,) in commented.execute("select column_name from duckdb_columns()").fetchall()}
    assert glossary()["columns"].keys() - columns == set()


def test_page_is_current():
    text = document.PAGE.read_text()
    assert document.update_page(text) == text, "run `python -m warehouse.document`"
