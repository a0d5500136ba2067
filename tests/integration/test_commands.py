"""Commands against a real PostgreSQL: the embedded server's lifecycle, repeated migrations, API keys."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import psycopg
import pytest
from local_support import unused_ports

from foundation.settings import settings
from orchestration.local.databases import embedded_server


def lifecycle(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "orchestration.cli", *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True,
        env={**os.environ, **environment}, check=False, timeout=120,
    )  # fmt: skip


@pytest.fixture
def embedded(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home whose embedded PostgreSQL uses a free port; it is stopped at the end."""
    monkeypatch.setenv("LIFECYCLE_PG_PORT", str(unused_ports(1)[0]))
    settings.cache_clear()
    yield home
    embedded_server(settings()).stop()


def test_the_embedded_server_starts_once_and_stops(embedded: Path) -> None:
    assert lifecycle("db", "url").returncode == 1, "there is no password before the first start"
    assert lifecycle("db", "start").returncode == 0
    assert "already running" in lifecycle("db", "start").stdout
    url = lifecycle("db", "url").stdout.strip()
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT current_database()").fetchone() == ("lifecycle",)
    assert lifecycle("db", "stop").returncode == 0
    assert lifecycle("db", "stop").stdout == "PostgreSQL is not running.\n"


def test_migrate_again_changes_nothing_and_leaves_the_server_stopped(embedded: Path) -> None:
    first, second = lifecycle("db", "migrate"), lifecycle("db", "migrate")
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert first.stdout == second.stdout
    assert embedded_server(settings()).process() is None, "the server started for the command is still running"


def test_only_commands_that_write_migrate_the_embedded_database(embedded: Path) -> None:
    before = lifecycle("keys", "list")
    assert before.returncode == 1 and before.stderr.endswith("is not migrated: run `lifecycle db migrate`.\n")
    created = lifecycle("keys", "make", "shop")
    assert created.returncode == 0, created.stderr
    assert "shop" in lifecycle("keys", "list").stdout


def test_an_external_database_is_neither_started_nor_stopped(home: Path, database_url: str) -> None:
    for verb in ("start", "stop"):
        refused = lifecycle("db", verb, DATABASE_URL=database_url)
        assert refused.returncode == 1 and "neither starts nor stops" in refused.stderr
        assert (
            "password" not in refused.stderr
            and str(psycopg.conninfo.conninfo_to_dict(database_url)["password"]) not in refused.stderr
        )


def test_an_unreachable_database_is_a_one_line_error(home: Path) -> None:
    port = unused_ports(1)[0]
    failed = lifecycle("db", "migrate", DATABASE_URL=f"postgresql://me:secret@127.0.0.1:{port}/x")
    assert failed.returncode == 1 and failed.stderr.count("\n") == 1
    assert f"PostgreSQL at 127.0.0.1:{port}/x can't be reached" in failed.stderr and "secret" not in failed.stderr


@pytest.mark.parametrize(
    "url", ["nonsense", "mysql://a:secret@b/c", "postgresql://u:secret@[bad", "postgresql://u:secret@h:x/d"]
)
def test_an_invalid_database_url_is_a_one_line_error_without_its_password(home: Path, url: str) -> None:
    failed = lifecycle("keys", "list", DATABASE_URL=url)
    assert failed.returncode == 1 and failed.stderr.count("\n") == 1
    assert "DATABASE_URL is not a PostgreSQL address" in failed.stderr and "secret" not in failed.stderr


def test_key_is_created_listed_and_revoked(home: Path, database_url: str) -> None:
    created = lifecycle("keys", "make", "shop", "--scope", "assign", DATABASE_URL=database_url)
    assert created.returncode == 0 and created.stdout.startswith("lc_") and created.stdout.count("\n") == 1
    again = lifecycle("keys", "make", "shop", DATABASE_URL=database_url)
    assert again.returncode == 1 and "already" in again.stderr
    listed = lifecycle("keys", "list", DATABASE_URL=database_url).stdout
    assert "shop" in listed and created.stdout.strip() not in listed
    assert lifecycle("keys", "revoke", "shop", DATABASE_URL=database_url).returncode == 0
    repeated = lifecycle("keys", "revoke", "shop", DATABASE_URL=database_url)
    assert (repeated.returncode, repeated.stderr) == (
        1,
        "lifecycle: There is no valid key named shop: `lifecycle keys list` shows all keys.\n",
    )


def test_sync_shows_applies_and_is_idempotent(home: Path, database_url: str, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    tracking = f"sqlite:///{tmp_path}/mlflow.db"
    environment = {"DATABASE_URL": database_url, "MLFLOW_TRACKING_URI": tracking}

    refused = lifecycle("sync", **environment)
    assert refused.returncode == 1 and "policies.yml:" in refused.stderr and "planner_model" in refused.stderr
    assert "Traceback" not in refused.stderr

    client = MlflowClient(tracking_uri=tracking)
    client.create_registered_model("planner_model")
    client.create_model_version("planner_model", source=str(tmp_path))
    would = lifecycle("sync", "--check", **environment)
    assert would.returncode == 1 and "planner_policy" in would.stdout
    applied = lifecycle("sync", **environment)
    assert applied.returncode == 0, applied.stderr
    assert applied.stdout == would.stdout
    assert lifecycle("sync", "--check", **environment).returncode == 0
    again = lifecycle("sync", **environment)
    assert again.returncode == 0 and again.stdout.startswith("Files and database agree.")


@pytest.mark.parametrize("body", ['{"status": "ok"}', "[]", "hello"])
def test_status_shows_an_api_that_lifecycle_did_not_start(home: Path, body: str) -> None:
    class Health(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body.encode())

    with ThreadingHTTPServer(("127.0.0.1", 0), Health) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        port = str(server.server_address[1])
        table = lifecycle("status", LIFECYCLE_API_PORT=port, COLUMNS="200").stdout
        listed = json.loads(lifecycle("status", "--json", LIFECYCLE_API_PORT=port).stdout)["services"]
        server.shutdown()
    ours = body.startswith("{")
    (api,) = (row for row in listed if row["name"] == "api")
    assert (api["state"], api["url"]) == (("external", f"http://127.0.0.1:{port}/docs") if ours else ("stopped", None))
    assert (f"answers on {port}, not started by lifecycle" in table) == ours
