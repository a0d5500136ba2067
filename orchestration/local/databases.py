"""The databases of the platform, of Dagster and of MLflow, on the embedded PostgreSQL or an external one."""

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import psycopg

from foundation.errors import LifecycleError
from foundation.settings import Settings
from orchestration.local.home import locked, prepare
from orchestration.local.postgres import EmbeddedPostgres, make_databases


def embedded_server(settings: Settings) -> EmbeddedPostgres:
    """The embedded server of this home."""
    return EmbeddedPostgres(settings.postgres_dir, settings.pg_port)


def ensure_reachable(settings: Settings) -> None:
    """Check that an external DATABASE_URL answers, and create the databases of Dagster and MLflow next to it. Raises LifecycleError.

    The embedded server creates its databases when it starts.
    """
    if not _is_postgres_address(settings.platform_url):
        # The URL is not shown: a URL that can't be parsed can't be shown without its password.
        raise LifecycleError(
            "DATABASE_URL is not a PostgreSQL address: write it as postgresql://user:password@host:port/database."
        )
    siblings = ["dagster"] if settings.mlflow_tracking_uri else ["dagster", "mlflow"]
    try:
        make_databases(settings.platform_url, siblings)
    except psycopg.OperationalError as error:
        raise LifecycleError(
            f"PostgreSQL at {where(settings.platform_url)} can't be reached ({first_line(error)}): start it, or correct DATABASE_URL."
        ) from error
    except psycopg.errors.InsufficientPrivilege as error:
        raise LifecycleError(
            f"The user of DATABASE_URL may not create databases on {where(settings.platform_url)}: "
            f"create {' and '.join(siblings)} there by hand."
        ) from error


def _is_postgres_address(url: str) -> bool:
    try:
        return urlsplit(url).scheme in ("postgresql", "postgres") and urlsplit(url).port != 0
    except ValueError:
        return False


@contextmanager
def database(settings: Settings, purpose: str) -> Iterator[None]:
    """PostgreSQL for the duration of one command. A running server is used and left running; otherwise the embedded one is started
    and stopped."""
    if not settings.embedded:
        ensure_reachable(settings)
        yield
        return
    server = embedded_server(settings)
    if server.running_port() == settings.pg_port:
        yield
        return
    prepare(settings)
    # The lock prevents a `lifecycle up` from using a server that this command is about to stop.
    with locked(settings.home, purpose):
        server.start()
        try:
            yield
        finally:
            server.stop()


def where(url: str) -> str:
    """`host:port/database` of a database URL, which is safe to show: it has no user and password."""
    parts = urlsplit(url)
    return f"{parts.hostname or 'localhost'}:{parts.port or 5432}{parts.path}"


def first_line(error: Exception) -> str:
    """The first line of an error's text, without a full stop."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
