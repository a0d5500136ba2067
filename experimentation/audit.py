"""The record of who changed what, and why. Belongs here: writing it. Does not belong here: deciding anything.

The table is append only: the database refuses to change or remove a row.
"""

from collections.abc import Mapping
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

WRITE = "INSERT INTO exp.audit_log (actor, action, subject, before, after, reason) VALUES (%s, %s, %s, %s, %s, %s)"


def write_audit(
    connection: psycopg.Connection[Any],
    *,
    actor: str,
    action: str,
    subject: str,
    reason: str,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
) -> None:
    """Add a row, in the transaction of the change that it tells of.

    `actor` is an API key's name or an automation, `action` like `experiment.started`, `subject` like `weekly_planner run 2`;
    `before` and `after` hold plain JSON types.
    """
    connection.execute(WRITE, (actor, action, subject, _json(before), _json(after), reason))


def _json(fields: Mapping[str, Any] | None) -> Jsonb | None:
    return None if fields is None else Jsonb(dict(fields))
