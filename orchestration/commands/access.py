"""Shared by commands that change the platform: its database, and the actor that the audit log records."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from foundation.settings import Settings, settings
from orchestration.local.databases import database, where

if TYPE_CHECKING:
    from foundation.audit import Change


@contextmanager
def connection_for(purpose: str, *, reads: bool = False) -> Iterator[Any]:
    """A connection to a migrated database, in one transaction. `purpose` names the command, such as `lifecycle keys`.

    With `reads`, the database is not migrated. Raises MigrationError as `bring_up_to_date` does.
    """
    import psycopg

    current = settings()
    with database(current, purpose):
        bring_up_to_date(current, reads=reads)
        with psycopg.connect(current.platform_url, connect_timeout=10) as connection:
            yield connection


def bring_up_to_date(current: Settings, *, reads: bool = False) -> None:
    """Migrate the embedded database, unless the command only `reads`. Only `lifecycle db migrate` migrates any other database.

    Raises MigrationError if the schema is not the version that this code expects.
    """
    from foundation.migrate import migrate, require_current

    if current.embedded and not reads:
        migrate(current.platform_url)
    else:
        require_current(current.platform_url, where(current.platform_url))


def by_hand(purpose: str) -> str:
    """The actor for the audit log: the command, and the login name, or the user's number where there is no name, as in a container."""
    return f"{purpose} by {os.environ.get('USER') or f'user {os.getuid()}'}"


def change_by_hand(purpose: str, why: str) -> "Change":
    """A change that a person makes with this command, for the audit log."""
    from foundation.audit import Change

    return Change(by_hand(purpose), why)
