"""The schema `planner` in PostgreSQL: storing the domain tables and reading them back as frames.

Every function takes an open connection, and its caller owns the transaction.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import polars as pl
import psycopg
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from planner.tables import DOMAIN_SCHEMAS, KEYS, domain_frame

_JSON_COLUMNS = {"items"}
_AS_FLOAT = {"cost", "budget"}
"""Columns of type numeric: read as float8, since planners calculate with them and exact cents do not matter here."""

_STAGE = "CREATE TEMPORARY TABLE {stage} (LIKE {table} INCLUDING DEFAULTS) ON COMMIT DROP"
_COPY = "COPY {stage} ({columns}) FROM STDIN"
# Sorted by key: two writers with overlapping rows then lock them in the same order, and cannot deadlock.
_MERGE = """
INSERT INTO {table} AS stored ({columns})
SELECT {columns} FROM {stage} ORDER BY {key}
ON CONFLICT ({key}) DO UPDATE SET {assignments} WHERE ({stored}) IS DISTINCT FROM ({excluded})
"""
_DROP = "DROP TABLE {stage}"
_READ = "SELECT {columns} FROM {table} ORDER BY {key}"


def store_tables(connection: psycopg.Connection[Any], tables: Mapping[str, pl.DataFrame]) -> dict[str, int]:
    """Add or update the rows of any of the four domain tables; returns per table how many rows were new or changed.

    Unchanged rows count 0, so storing twice is storing once. Raises KeyError for an unknown table, and
    psycopg.errors.ForeignKeyViolation for constraints or pantries of a household that is not stored.
    """
    unknown = sorted(set(tables) - set(DOMAIN_SCHEMAS))
    if unknown:
        raise KeyError(f"Unknown domain table {unknown[0]}: the tables are {', '.join(DOMAIN_SCHEMAS)}.")
    return {table: _upsert(connection, table, tables[table]) for table in DOMAIN_SCHEMAS if table in tables}


def upsert_recipes(connection: psycopg.Connection[Any], records: Iterable[Mapping[str, Any]]) -> int:
    """Add or update recipes given as records; returns how many were new or changed."""
    return _upsert(connection, "recipes", domain_frame("recipes", records))


def domain_frames(connection: psycopg.Connection[Any]) -> dict[str, pl.DataFrame]:
    """Every domain table by name, ordered by its key, with the columns and types of `tables.DOMAIN_SCHEMAS`."""
    return {table: _read(connection, table) for table in DOMAIN_SCHEMAS}


def _upsert(connection: psycopg.Connection[Any], table: str, frame: pl.DataFrame) -> int:
    if frame.is_empty():
        return 0
    names = list(DOMAIN_SCHEMAS[table])
    rest = [name for name in names if name not in KEYS[table]]
    parts = {
        "table": sql.Identifier("planner", table),
        "stage": sql.Identifier(f"stage_{table}"),
        "columns": _columns(names),
        "key": _columns(KEYS[table]),
        "assignments": sql.SQL(", ").join(sql.SQL("{0} = excluded.{0}").format(sql.Identifier(name)) for name in rest),
        "stored": sql.SQL(", ").join(sql.Identifier("stored", name) for name in rest),
        "excluded": sql.SQL(", ").join(sql.Identifier("excluded", name) for name in rest),
    }
    with connection.cursor() as cursor:
        cursor.execute(sql.SQL(_STAGE).format(**parts))
        with cursor.copy(sql.SQL(_COPY).format(**parts)) as copy:
            for row in frame.select(names).iter_rows(named=True):
                copy.write_row([Jsonb(row[name]) if name in _JSON_COLUMNS else row[name] for name in names])
        changed = cursor.execute(sql.SQL(_MERGE).format(**parts)).rowcount
        cursor.execute(sql.SQL(_DROP).format(**parts))
    return changed


def _read(connection: psycopg.Connection[Any], table: str) -> pl.DataFrame:
    columns = sql.SQL(", ").join(
        sql.SQL("{0}::float8 AS {0}").format(sql.Identifier(name)) if name in _AS_FLOAT else sql.Identifier(name)
        for name in DOMAIN_SCHEMAS[table]
    )
    query = sql.SQL(_READ).format(columns=columns, table=sql.Identifier("planner", table), key=_columns(KEYS[table]))
    with connection.cursor(row_factory=dict_row) as cursor:
        return domain_frame(table, cursor.execute(query).fetchall())


def _columns(names: Iterable[str]) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, names))
