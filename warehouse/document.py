"""`docs/warehouse.md`: every table and view with its columns, from the comments of an empty warehouse.

`python -m warehouse.document` writes the generated part of the page anew; a test holds it current.
"""

from __future__ import annotations

from pathlib import Path

import duckdb

from warehouse import schema

PAGE = Path(__file__).parent.parent / "docs" / "warehouse.md"
MARK = "<!-- What follows is made by `python -m warehouse.document`. -->\n"


def document() -> str:
    """The generated part of the page: every table and view of a new warehouse, its grain and its columns."""
    with duckdb.connect() as connection:
        schema.migrate(connection)
        schema.create_views(connection)
        tables = connection.execute(
            "select table_name, comment from duckdb_tables() where not internal order by table_name"
        ).fetchall()
        views = connection.execute(
            "select view_name, comment from duckdb_views() where not internal order by view_name"
        ).fetchall()
        columns = connection.execute(
            "select table_name, column_name, lower(data_type), comment from duckdb_columns() where not internal "
            "order by table_name, column_index"
        ).fetchall()
    shown = [(name, grain) for name, grain in views if not name.startswith(("current_", "pending_"))]
    parts = [MARK]
    for heading, relations in (("Tables", tables), ("Views", shown)):
        parts.append(f"\n## {heading}\n")
        for name, grain in relations:
            parts.append(f"\n### `{name}`\n\nA row: {grain}.\n\n| column | type | |\n|---|---|---|\n")
            parts += [f"| `{column}` | {kind} | {text} |\n" for table, column, kind, text in columns if table == name]
    return "".join(parts)


def update_page(text: str) -> str:
    """The page with its generated part made anew."""
    return text.partition(MARK)[0] + document()


if __name__ == "__main__":
    PAGE.write_text(update_page(PAGE.read_text()))
