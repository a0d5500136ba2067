"""Fixtures that every kind of test may use: free ports, a real PostgreSQL, a migrated database for each test."""

import os
import socket
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from hypothesis import settings as hypothesis_settings

# The same examples in every run: a failure can be repeated, and a passing suite stays one.
hypothesis_settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis_settings.load_profile("repeatable")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """URL of an embedded PostgreSQL of this test run (database `lifecycle`, empty)."""
    from orchestration.local.postgres import EmbeddedPostgres

    with tempfile.TemporaryDirectory(prefix="lifecycle-pg-") as folder:
        server = EmbeddedPostgres(Path(folder) / "postgres", free_port())
        server.start()
        try:
            yield server.url
        finally:
            server.stop()


def on_server(url: str, database: str) -> str:
    """The same server, another database."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{database}"))


@pytest.fixture(scope="session")
def migrated_template(postgres_server: str) -> str:
    """Name of a database with all migrations applied, to be copied by tests (copying takes 0.1 s, migrating more)."""
    from foundation.migrate import migrate

    name = "template_migrated"
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    migrate(on_server(postgres_server, name))
    return name


@pytest.fixture
def database_url(postgres_server: str, migrated_template: str) -> Iterator[str]:
    """URL of a migrated, empty database that this test alone uses."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {migrated_template}")
    yield on_server(postgres_server, name)
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home folder of this test's own, with no setting leaking in from the environment."""
    from foundation.settings import settings

    for name in list(os.environ):
        if name.startswith("LIFECYCLE_") or name in {"DATABASE_URL", "MLFLOW_TRACKING_URI"}:
            monkeypatch.delenv(name)
    monkeypatch.setenv("LIFECYCLE_HOME", str(tmp_path / "home"))
    settings.cache_clear()
    yield tmp_path / "home"
    settings.cache_clear()


@pytest.fixture(scope="session")
def cooking_history() -> Path:
    """Folder of the real cooking diary; tests that need it are skipped, by name, where it is absent."""
    folder = SHARED_DATA / "cooking_history"
    if not folder.exists():
        pytest.skip(f"the real cooking history is not at {folder}")
    return folder
