"""What commands that change the platform share: its database, and who the audit log names."""

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
    """A connection to a migrated database, in one transaction. `purpose` names the command, like `lifecycle keys`.

    Who only `reads` changes nothing, not even a schema. Raises MigrationError as `bring_up_to_date` does.
    """
    import psycopg

    current = settings()
    with database(current, purpose):
        bring_up_to_date(current, reads=reads)
        with psycopg.connect(current.platform_url, connect_timeout=10) as connection:
            yield connection


def bring_up_to_date(current: Settings, *, reads: bool = False) -> None:
    """Migrate the embedded database; another one is migrated by `lifecycle db migrate` alone, and nothing is by who only `reads`.

    Raises MigrationError when the schema is not the one that this code knows.
    """
    from foundation.migrate import migrate, require_current

    if current.embedded and not reads:
        migrate(current.platform_url)
    else:
        require_current(current.platform_url, where(current.platform_url))


def by_hand(purpose: str) -> str:
    """Who the audit log names: the command, and the login, or the number of a user who has none, as in a container."""
    return f"{purpose} by {os.environ.get('USER') or f'user {os.getuid()}'}"


def change_by_hand(purpose: str, why: str) -> "Change":
    """The change that a person makes by this command."""
    from foundation.audit import Change

    return Change(by_hand(purpose), why)
