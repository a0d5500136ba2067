"""Redis: instances share limits and stored assignments. Without it the API is slower and still answers."""

import asyncio
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import redis
from api_support import Api, make_run, running_api
from conftest import free_port

from serving.http.best_effort_redis import BestEffortRedis
from serving.http.limits import Limits

pytest_plugins = ["api_service"]


INVALID_VALUES: tuple[str | bytes, ...] = (
    "",
    "rubbish",
    "a:b:c",
    "00000000-0000-0000-0000-000000000000:x",
    b"\xff\xfe:\x00",
)


class RedisServer:
    """`redis-server` on a free port."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [
            "redis-server",
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--dir",
            str(self.folder),
        ]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while True:
            try:
                self.client().ping()
                return
            except redis.ConnectionError:
                assert time.monotonic() < deadline, "redis-server did not start"

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url, decode_responses=True)

    def hang(self) -> None:
        """It still accepts connections but no longer answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(20)
            self._process = None


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed (Debian: redis-server)")
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


def test_instances_share_stored_assignments(
    server: RedisServer,
    database_url: str,
    connection: psycopg.Connection[Any],
    make_client: Callable[..., httpx.Client],
) -> None:
    run_id, _ = make_run(connection, "planner")
    settings = {"redis_url": server.url, "experiments_refresh_seconds": 0.5}
    with running_api(database_url, **settings) as one_url, running_api(database_url, **settings) as other_url:
        first = Api(make_client(one_url, "assign"), connection, database_url)
        second = Api(make_client(other_url, "assign"), connection, database_url)
        assignment = first.assigned("h1", "planner")
        key = f"assignment:{run_id}:h1"
        deadline = time.monotonic() + 5
        while (value := server.client().get(key)) is None:
            assert time.monotonic() < deadline
        assert str(value).startswith(assignment["variant_id"])
        assert 3_500_000 < int(str(server.client().pttl(key))) <= 3_600_000
        assert second.assigned("h1", "planner") == assignment
        assert (second.metric("cache_hits_total"), second.metric("cache_misses_total")) == (1, 0)
        # A change of the experiment invalidates the entry.
        connection.execute("UPDATE exp.experiments SET status = 'paused'")
        deadline = time.monotonic() + 5
        while second.metric("cache_misses_total") == 0:
            assert second.assigned("h1", "planner") == assignment
            assert time.monotonic() < deadline


def test_invalid_values_in_redis_are_ignored(
    server: RedisServer,
    database_url: str,
    connection: psycopg.Connection[Any],
    make_client: Callable[..., httpx.Client],
) -> None:
    run_id, _ = make_run(connection, "planner")
    with running_api(database_url, redis_url=server.url) as url:
        api = Api(make_client(url, "assign"), connection, database_url)
        for unit, value in enumerate([*INVALID_VALUES, f"{run_id}:"]):
            server.client().set(f"assignment:{run_id}:h{unit}", value)
            assert api.assigned(f"h{unit}", "planner")["enrolled"] is True
    assert connection.execute("SELECT count(*) FROM exp.assignments").fetchone() == (len(INVALID_VALUES) + 1,)


def test_instances_share_the_limit_of_a_unit(
    server: RedisServer,
    database_url: str,
    connection: psycopg.Connection[Any],
    make_client: Callable[..., httpx.Client],
) -> None:
    body = {"unit_type": "household", "unit_id": "h1", "requested_experiments": []}
    settings = {"redis_url": server.url, "rate_limit_unit_per_minute": 10}
    with running_api(database_url, **settings) as one_url, running_api(database_url, **settings) as other_url:
        clients = [make_client(one_url, "assign"), make_client(other_url, "assign")]
        statuses = [clients[n % 2].post("/api/v1/assignments", json=body).status_code for n in range(14)]
        assert statuses == [200] * 10 + [429] * 4
        refused = clients[0].post("/api/v1/assignments", json=body)
        assert 1 <= refused.json()["retry_after"] <= 60
        assert refused.headers["retry-after"] == str(refused.json()["retry_after"])


@pytest.mark.parametrize("failure", ["stop", "hang"])
def test_api_answers_without_redis(
    failure: str,
    server: RedisServer,
    database_url: str,
    connection: psycopg.Connection[Any],
    make_client: Callable[..., httpx.Client],
) -> None:
    make_run(connection, "planner")
    with running_api(database_url, redis_url=server.url, rate_limit_unit_per_minute=20) as url:
        api = Api(make_client(url, "assign"), connection, database_url)
        assignment = api.assigned("h1", "planner")
        getattr(server, failure)()
        began = time.monotonic()
        assert [api.assigned("h1", "planner") for _ in range(10)] == [assignment] * 10
        assert api.assigned("h2", "planner")["enrolled"] is True
        # Only the first request that notices the failure waits a tenth of a second.
        assert time.monotonic() - began < 3
        # In the meantime each instance counts for itself.
        body = {"unit_type": "household", "unit_id": "h3", "requested_experiments": []}
        assert 429 in {api.client.post("/api/v1/assignments", json=body).status_code for _ in range(40)}
        server.stop()
        server.start()
        deadline = time.monotonic() + 10
        number = 0
        while not server.client().keys("assignment:*"):
            number += 1
            assert api.assigned(f"again-{number}", "planner")["enrolled"] is True
            assert time.monotonic() < deadline


@pytest.mark.parametrize("url", ["localhost:6379", "redis://user:p@ss/word@host:6379/0", "http://cache"])
def test_start_fails_when_the_redis_url_is_invalid(database_url: str, url: str) -> None:
    with pytest.raises(ValueError, match="REDIS_URL") as raised, running_api(database_url, redis_url=url):
        pass
    assert "ss" not in str(raised.value)


def test_instances_share_the_event_limit_of_a_unit(server: RedisServer) -> None:
    async def excess_counts() -> list[dict[str, int]]:
        clients = [BestEffortRedis(server.url), BestEffortRedis(server.url)]
        first, second = (Limits(0, 0, client, 10) for client in clients)
        excess = []
        for limits, count in ((first, 8), (second, 8), (first, 3)):
            excess.append(await limits.too_many(limits.unit_events, {"busy": count, "quiet": 1}))
        server.stop()
        # Without Redis each instance counts for itself.
        excess.append(await first.too_many(first.unit_events, {"busy": 12, "quiet": 1}))
        for client in clients:
            await client.close()
        return excess

    assert asyncio.run(excess_counts()) == [{}, {"busy": 6}, {"busy": 3}, {"busy": 2}]
