"""Bringing a database to the schema this code knows: forward only, safe to run twice, safe to run by two processes at once."""

from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import psycopg
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from psycopg.rows import scalar_row
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.pool import NullPool

from foundation import locks
from foundation.errors import LifecycleError

CONNECT_SECONDS = 10
SchemaState = Literal["missing", "behind", "current", "newer"]


class MigrationError(LifecycleError):
    """The database can't be migrated; the message says why and what to do."""


def _config() -> Config:
    config = Config()
    # Alembic reads % as the start of a reference, also in a path.
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    return config


@lru_cache(maxsize=1)
def _revisions() -> tuple[str, ...]:
    """Every revision this code knows, newest first."""
    return tuple(script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions())


def migrate(url: str) -> None:
    """Apply what is missing, in one transaction. `url` is `postgresql://…`, without a driver.

    Raises MigrationError when the database is newer than this code.
    """
    # The driver is named: SQLAlchemy's default for postgresql:// differs between its versions.
    address = make_url(url).set(drivername="postgresql+psycopg")
    engine = create_engine(address, poolclass=NullPool, connect_args={"connect_timeout": CONNECT_SECONDS})
    with engine.begin() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": locks.MIGRATIONS})
        found = _version(connection.connection.driver_connection)  # type: ignore[arg-type]
        if _state(found) == "newer":
            raise MigrationError(_newer(found))
        # Alembic's version table lives in `exp`, so the schema is there before the first revision.
        connection.execute(text("CREATE SCHEMA IF NOT EXISTS exp"))
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def require_current(url: str, shown: str) -> None:
    """Change nothing. Raises MigrationError unless the database, which is `shown` so, has the schema that this code knows."""
    with psycopg.connect(url, connect_timeout=CONNECT_SECONDS) as connection:
        found = _version(connection)
    state = _state(found)
    if state == "newer":
        raise MigrationError(_newer(found))
    if state != "current":
        raise MigrationError(f"The database {shown} is not migrated: run `lifecycle db migrate`.")


def schema_state(connection: psycopg.Connection[Any]) -> SchemaState:
    """How the database's schema stands to this code: `missing`, `behind`, `current` or `newer`."""
    return _state(_version(connection))


def _state(version: str | None) -> SchemaState:
    if version is None:
        return "missing"
    if version not in _revisions():
        return "newer"
    return "current" if version == _revisions()[0] else "behind"


def _newer(found: str | None) -> str:
    return (
        f"The database is at schema version {found}, and this installation knows up to {_revisions()[0]}: "
        "upgrade the installation, or use another database."
    )


def _version(connection: psycopg.Connection[Any]) -> str | None:
    with connection.cursor(row_factory=scalar_row) as cursor:
        if cursor.execute("SELECT to_regclass('exp.alembic_version')").fetchone() is None:
            return None
        version: str | None = cursor.execute("SELECT version_num FROM exp.alembic_version").fetchone()
    return version
