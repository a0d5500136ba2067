"""A running API for tests: uvicorn on a free port over a migrated database, and runs created with plain SQL."""

import contextlib
import json
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import httpx
import psycopg
import uvicorn

from foundation.settings import Settings
from serving.app import create_app

Variants = Mapping[str, tuple[str, str, Mapping[str, Any]]]
"""Name → (role, allocation, config), in the order of `position`."""

HALVES: Variants = {"control": ("control", "0.5", {"blue": True}), "treatment": ("treatment", "0.5", {"blue": False})}


@contextlib.contextmanager
def running_api(database_url: str, **settings: Any) -> Iterator[str]:
    """The base URL of a new API. Unless `settings` change it, nothing is cached between requests."""
    # The first day is today: daily partitions for nine weeks would take a second per test.
    # No spool, because it needs a home folder.
    uncached = {
        "experiments_refresh_seconds": 0,
        "api_key_cache_seconds": 0,
        "first_day": datetime.now(UTC).date(),
        "spool_mb": 0,
    }
    app = create_app(Settings(database_url=database_url, **{**uncached, **settings}))
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        deadline = time.monotonic() + 20
        while not server.started:
            if not thread.is_alive() or time.monotonic() > deadline:
                raise RuntimeError("The API did not start.")
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(20)


@dataclass
class Api:
    """A client whose key has every scope, and the database of the API (autocommit)."""

    client: httpx.Client
    connection: psycopg.Connection[Any]
    database_url: str

    def assign(self, unit_id: str, *names: str, unit_type: str = "household", **more: Any) -> dict[str, Any]:
        """The body of the answer. Fails unless the status is 200."""
        body = {"unit_type": unit_type, "unit_id": unit_id, "requested_experiments": list(names), **more}
        response = self.client.post("/api/v1/assignments", json=body)
        assert response.status_code == 200, response.text
        return dict(response.json())

    def skipped(self, unit_id: str, name: str, unit_type: str = "household", **more: Any) -> str:
        """The reason for which the experiment is skipped."""
        answer = self.assign(unit_id, name, unit_type=unit_type, **more)
        assert answer["assignments"] == []
        (skipped,) = answer["skipped_experiments"]
        assert skipped["experiment_name"] == name
        return str(skipped["reason"])

    def assigned(self, unit_id: str, name: str, **more: Any) -> dict[str, Any]:
        """The only assignment of the answer."""
        answer = self.assign(unit_id, name, **more)
        assert answer["skipped_experiments"] == []
        (assignment,) = answer["assignments"]
        return dict(assignment)

    def rows(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """The rows of a query."""
        return self.connection.execute(query, parameters).fetchall()

    def metric(self, line_start: str) -> float:
        """The value of the first metric line that starts with `line_start`, or 0 without one."""
        lines = self.client.get("/metrics").text.splitlines()
        return next((float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(line_start)), 0.0)


def make_run(
    connection: psycopg.Connection[Any],
    name: str,
    status: str = "active",
    variants: Variants = HALVES,
    run: int = 1,
    **columns: Any,
) -> tuple[UUID, dict[str, UUID]]:
    """Create a run with variants and a first epoch. Returns its id and the ids of its variants by name."""
    run_id = uuid4()
    variant_ids = {name: uuid4() for name in variants}
    with connection.transaction():
        connection.execute(
            "INSERT INTO exp.experiments (id, name, run, status, unit_type, start_at, end_at, targeting, layer_id, layer_from, layer_to, "
            "overrides) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
            (
                run_id,
                name,
                run,
                status,
                columns.get("unit_type", "household"),
                *(
                    columns.get(key)
                    for key in ("start_at", "end_at", "targeting", "layer_id", "layer_from", "layer_to")
                ),
                json.dumps(columns.get("overrides", {})),
            ),
        )
        for position, (variant, (role, allocation, config)) in enumerate(variants.items()):
            connection.execute(
                "INSERT INTO exp.variants (id, experiment_id, name, position, role, allocation, config) "
                "VALUES (%s, %s, %s, %s, %s, %s, %s)",
                (variant_ids[variant], run_id, variant, position, role, Decimal(allocation), json.dumps(config)),
            )
        connection.execute(
            "INSERT INTO exp.allocation_epochs (experiment_id, epoch, allocations) VALUES (%s, 1, %s)",
            (run_id, json.dumps({str(variant_ids[name]): row[1] for name, row in variants.items()})),
        )
    return run_id, variant_ids
