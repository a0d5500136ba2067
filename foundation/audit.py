"""The record of who changed what, and why.

The table is append only: the database refuses to change or remove a row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

WRITE = "INSERT INTO exp.audit_log (actor, action, subject, before, after, reason) VALUES (%s, %s, %s, %s, %s, %s)"
LATEST = "SELECT at, actor, action, subject, reason FROM exp.audit_log WHERE subject = ANY (%s::text[]) ORDER BY id DESC LIMIT %s"


@dataclass(frozen=True)
class Change:
    """Who changes something, and why. `by` is an API key's name, a command with its user, or an automation."""

    by: str
    why: str


@dataclass(frozen=True)
class AuditRow:
    """Who did what to which thing, when and why."""

    at: datetime
    actor: str
    action: str
    subject: str
    reason: str


def write_audit(
    connection: psycopg.Connection[Any],
    *,
    change: Change,
    action: str,
    subject: str,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
) -> None:
    """Add a row, in the transaction of the change.

    `action` is like `experiment.started`, `subject` like `weekly_planner run 2`; `before` and `after` hold plain JSON types.
    """
    connection.execute(WRITE, (change.by, action, subject, _json(before), _json(after), change.why))


def latest_audit(connection: psycopg.Connection[Any], subjects: Sequence[str], most: int) -> list[AuditRow]:
    """The latest rows about any of the subjects, the latest one first."""
    with connection.cursor(row_factory=class_row(AuditRow)) as cursor:
        return cursor.execute(LATEST, (list(subjects), most)).fetchall()


def _json(fields: Mapping[str, Any] | None) -> Jsonb | None:
    return None if fields is None else Jsonb(dict(fields))
