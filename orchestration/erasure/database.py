"""A unit in PostgreSQL: one transaction records it as erased, and removes or pseudonymises its events, assignments and overrides."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg
from psycopg import sql
from psycopg.rows import scalar_row, tuple_row

from eventlog.archive.hours import hold_archive
from eventlog.erased_units import record_erased_unit
from eventlog.partitions import LEAVING, LeavingDay, leaving_days
from orchestration.erasure.findings import Unit

PSEUDONYM = "erased-{}"

_HASH = """
SELECT encode(sha256(salt || convert_to(%(type)s || ':' || %(id)s, 'UTF8')), 'hex') FROM exp.erasure_salt
"""
_DRAW = """
UPDATE exp.erased_units SET pseudonym = coalesce(pseudonym, gen_random_uuid()) WHERE unit_hash = decode(%s, 'hex') RETURNING pseudonym
"""
_FORGET = "UPDATE exp.erased_units SET pseudonym = NULL WHERE unit_hash = decode(%s, 'hex')"

_MINE = "unit_type = %(type)s AND unit_id = %(id)s"
# Overrides, current and past, have the unit type of their run.
_OF_ITS_TYPE = "experiment_id IN (SELECT id FROM exp.experiments WHERE unit_type = %(type)s) AND unit_id = %(id)s"
_OVERRIDING = "unit_type = %(type)s AND overrides ? %(id)s"

_COUNTS = {
    "exp.assignments": f"SELECT count(*) FROM exp.assignments WHERE {_MINE}",
    "exp.overridden_units": f"SELECT count(*) FROM exp.overridden_units WHERE {_OF_ITS_TYPE}",
    "exp.experiments, overrides": f"SELECT count(*) FROM exp.experiments WHERE {_OVERRIDING}",
}
_REMOVE = {
    "exp.assignments": f"DELETE FROM exp.assignments WHERE {_MINE}",
    "exp.overridden_units": f"DELETE FROM exp.overridden_units WHERE {_OF_ITS_TYPE}",
}
_RENAME = {
    "exp.assignments": f"UPDATE exp.assignments SET unit_id = %(pseudonym)s WHERE {_MINE}",
    "exp.overridden_units": f"UPDATE exp.overridden_units SET unit_id = %(pseudonym)s WHERE {_OF_ITS_TYPE}",
}
# An override of an erased unit has no effect any more.
_NO_OVERRIDE = f"UPDATE exp.experiments SET overrides = overrides - %(id)s WHERE {_OVERRIDING}"
_EVENTS = sql.Identifier("exp", "events")
_COUNT_EVENTS = f"SELECT count(*) FROM {{table}} WHERE {_MINE}"
_REMOVE_EVENTS = sql.SQL("DELETE FROM {table}"), sql.SQL(f" WHERE {_MINE}")
# Only the parts of context and payload that aggregates use are kept.
_RENAME_EVENTS = (
    sql.SQL("UPDATE {table}"),
    sql.SQL(f"""
SET unit_id = %(pseudonym)s,
    context = CASE WHEN jsonb_typeof(context -> 'policy_version_id') = 'string'
        THEN jsonb_build_object('policy_version_id', context -> 'policy_version_id') ELSE '{{}}' END,
    payload = CASE WHEN payload @> '{{"reconstructed": true}}' THEN '{{"reconstructed": true}}'::jsonb END
WHERE {_MINE}
"""),
)
_BY_DAY = """
WITH changed AS ({change} RETURNING "timestamp", tableoid)
SELECT date_trunc('day', changed."timestamp", 'UTC'), pg_class.relname, count(*)
FROM changed JOIN pg_class ON pg_class.oid = changed.tableoid GROUP BY 1, 2
"""
_RECORD_DAY = """
INSERT INTO exp.erased_days (day, partition) VALUES (%s, %s)
ON CONFLICT (day) DO UPDATE SET partition = excluded.partition, erased_at = excluded.erased_at
"""
_AUDITED = """
SELECT count(*) FROM exp.audit_log
WHERE (before ->> 'unit_type' = %(type)s AND before -> 'overrides' ? %(id)s)
   OR (after ->> 'unit_type' = %(type)s AND after -> 'overrides' ? %(id)s)
"""


@dataclass(frozen=True)
class Erased:
    """What was changed in PostgreSQL: rows by table, the days (UTC midnights) of the unit's events, how many of them dbt will rebuild."""

    rows: dict[str, int]
    days: tuple[datetime, ...]
    days_to_rebuild: int


def hash_of(connection: psycopg.Connection[Any], unit: Unit) -> str:
    """The salted hash of `exp.erased_units`, in hexadecimal, which identifies the unit in the audit log."""
    with connection.cursor(row_factory=scalar_row) as cursor:
        return str(cursor.execute(_HASH, _names(unit)).fetchone())


def draw_pseudonym(connection: psycopg.Connection[Any], unit: Unit) -> str:
    """Record the unit as erased and return the pseudonym of this erasure, the same after a kill. Uses the caller's transaction."""
    record_erased_unit(connection, unit.unit_type, unit.unit_id)
    with connection.cursor(row_factory=scalar_row) as cursor:
        drawn: UUID | None = cursor.execute(_DRAW, (hash_of(connection, unit),)).fetchone()
    return PSEUDONYM.format(drawn)


def forget_pseudonym(connection: psycopg.Connection[Any], unit: Unit) -> None:
    """Delete the link between the unit and its pseudonym. Uses the caller's transaction."""
    connection.execute(_FORGET, (hash_of(connection, unit),))


def counts(connection: psycopg.Connection[Any], unit: Unit) -> dict[str, int]:
    """How many rows of the unit each table holds; days that retention is dropping are included in the events."""
    names = _names(unit)
    with connection.transaction(), connection.cursor(row_factory=scalar_row) as cursor:
        tables = [_EVENTS, *(leaving.table for leaving in _hold_unseen(connection))]
        queries = [sql.SQL(_COUNT_EVENTS).format(table=table) for table in tables]
        events = sum(int(cursor.execute(query, names).fetchone() or 0) for query in queries)
        others = {table: int(cursor.execute(query, names).fetchone() or 0) for table, query in _COUNTS.items()}
    return {"exp.events": events, **others}


def erase(connection: psycopg.Connection[Any], unit: Unit, pseudonym: str | None) -> Erased:
    """Record the unit as erased and remove it from every table, in the caller's transaction; with a pseudonym, its rows are renamed.

    Days that retention is about to drop are changed as well. The other days of removed events are recorded, so that dbt rebuilds their
    aggregates.
    """
    # Wait for running drops of such days before this transaction locks anything that the archive may wait for.
    _hold_unseen(connection)
    record_erased_unit(connection, unit.unit_type, unit.unit_id)
    names = _names(unit, pseudonym)
    # Overrides first: a trigger records every unit in them as overridden.
    rows = {"exp.experiments, overrides": connection.execute(_NO_OVERRIDE, names).rowcount}
    for table, change in (_RENAME if pseudonym else _REMOVE).items():
        rows[table] = connection.execute(change, names).rowcount
    with connection.cursor(row_factory=tuple_row) as cursor:
        events = cursor.execute(_by_day(_EVENTS, pseudonym), names).fetchall()
        # Listed only now: this transaction uses exp.events, so no attached day can be detached meanwhile.
        for leaving in _hold_unseen(connection):
            events += cursor.execute(_by_day(leaving.table, pseudonym), names).fetchall()
        # dbt no longer sees a day that is being dropped, or soon won't, and would rebuild its aggregates as empty.
        gone = {day for day, partition, _ in events if partition.endswith(LEAVING)}
        to_rebuild = [] if pseudonym else [(day, partition) for day, partition, _ in events if day not in gone]
        cursor.executemany(_RECORD_DAY, to_rebuild)
    rows["exp.events"] = sum(count for _, _, count in events)
    return Erased(
        {"exp.events": rows["exp.events"], **{table: rows[table] for table in _COUNTS}},
        tuple(sorted({day for day, _, _ in events})),
        len(to_rebuild),
    )


def _by_day(table: sql.Identifier, pseudonym: str | None) -> sql.Composed:
    head, tail = _RENAME_EVENTS if pseudonym else _REMOVE_EVENTS
    return sql.SQL(_BY_DAY).format(change=head.format(table=table) + tail)


def _hold_unseen(connection: psycopg.Connection[Any]) -> list[LeavingDay]:
    """Lock and return the days that retention is dropping and `exp.events` no longer shows.

    Nothing archives or drops them until the caller's transaction ends.
    """
    before = leaving_days(connection)
    hold_archive(connection, (leaving.day for leaving in before))
    # Days that were dropped while this waited are in the archive.
    locked = {leaving.name for leaving in before}
    return [day for day in leaving_days(connection) if day.name in locked and (day.pending or not day.attached)]


def audited(connection: psycopg.Connection[Any], unit: Unit) -> int:
    """Rows of the audit log that show an override of the unit. They can't be changed."""
    with connection.cursor(row_factory=scalar_row) as cursor:
        return int(cursor.execute(_AUDITED, _names(unit)).fetchone() or 0)


def _names(unit: Unit, pseudonym: str | None = None) -> Mapping[str, str | None]:
    return {"type": unit.unit_type, "id": unit.unit_id, "pseudonym": pseudonym}
