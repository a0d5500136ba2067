"""Migrating a database to this code's schema: forward only, and safe to run again or from several processes at once."""

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
    """The database can't be migrated, or is not; the message says why and what to do."""


def _config() -> Config:
    config = Config()
    # Alembic would read % in the path as the start of a reference.
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    return config


@lru_cache(maxsize=1)
def _revisions() -> tuple[str, ...]:
    """All revisions of this code, newest first."""
    return tuple(script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions())


def migrate(url: str) -> None:
    """Apply the missing revisions in one transaction. `url` is `postgresql://…`, without a driver.

    Raises MigrationError if the database is newer than this code.
    """
    # The driver is explicit, because SQLAlchemy's default for postgresql:// differs between versions.
    address = make_url(url).set(drivername="postgresql+psycopg")
    engine = create_engine(address, poolclass=NullPool, connect_args={"connect_timeout": CONNECT_SECONDS})
    with engine.begin() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": locks.MIGRATIONS})
        version = _version(connection.connection.driver_connection)
        if _state(version) == "newer":
            raise MigrationError(_newer(version))
        # Alembic's version table is in `exp`, so the schema must exist before the first revision.
        connection.execute(text("CREATE SCHEMA IF NOT EXISTS exp"))
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def require_current(url: str, shown: str) -> None:
    """Raise MigrationError unless the database has this code's schema. `shown` names the database in the message."""
    with psycopg.connect(url, connect_timeout=CONNECT_SECONDS) as connection:
        version = _version(connection)
    state = _state(version)
    if state == "newer":
        raise MigrationError(_newer(version))
    if state != "current":
        raise MigrationError(f"The database {shown} is not migrated: run `lifecycle db migrate`.")


def schema_state(connection: psycopg.Connection[Any]) -> SchemaState:
    """The state of the database's schema compared with this code: `missing`, `behind`, `current` or `newer`."""
    return _state(_version(connection))


def _state(version: str | None) -> SchemaState:
    if version is None:
        return "missing"
    if version not in _revisions():
        return "newer"
    return "current" if version == _revisions()[0] else "behind"


def _newer(version: str | None) -> str:
    return (
        f"The database is at schema version {version}, but this installation only knows versions up to {_revisions()[0]}: "
        "upgrade the installation, or use another database."
    )


def _version(connection: psycopg.Connection[Any]) -> str | None:
    with connection.cursor(row_factory=scalar_row) as cursor:
        if cursor.execute("SELECT to_regclass('exp.alembic_version')").fetchone() is None:
            return None
        version: str | None = cursor.execute("SELECT version_num FROM exp.alembic_version").fetchone()
    return version
