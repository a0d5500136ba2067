"""What commands that change the platform share: its database, and who the audit log names. Does not belong here: any command."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from experimentation.settings import settings
from orchestration.local.databases import database


@contextmanager
def connection_for(purpose: str) -> Iterator[Any]:
    """A connection to a migrated database, in one transaction. `purpose` names the command, like `lifecycle keys`."""
    import psycopg

    from experimentation.migrate import migrate

    current = settings()
    with database(current, purpose):
        migrate(current.platform_url)
        with psycopg.connect(current.platform_url, connect_timeout=10) as connection:
            yield connection


def actor(purpose: str) -> str:
    """Who the audit log names: the command, and the login, or the number of a user who has none, as in a container."""
    return f"{purpose} by {os.environ.get('USER') or f'user {os.getuid()}'}"
