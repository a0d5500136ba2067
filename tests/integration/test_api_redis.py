"""Redis: limits and stored assignments shared by instances; a dead one costs speed, not answers."""

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

from serving.http.limits import Limits
from serving.http.redis_link import RedisLink

pytest_plugins = ["api_service"]


RUBBISH: tuple[str | bytes, ...] = ("", "rubbish", "a:b:c", "00000000-0000-0000-0000-000000000000:x", b"\xff\xfe:\x00")


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
        """It goes on accepting, and answers nobody."""
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


def test_stored_assignments_are_shared(
    server: RedisServer,
    database_url: str,
    connection: psycopg.Connection[Any],
    make_client: Callable[..., httpx.Client],
) -> None:
    run_id, _ = make_run(connection, "planner")
    settings = {"redis_url": server.url, "experiments_refresh_seconds": 0.5}
    with running_api(database_url, **settings) as one, running_api(database_url, **settings) as two:
        first = Api(make_client(one, "assign"), connection, database_url)
        second = Api(make_client(two, "assign"), connection, database_url)
        given = first.assigned("h1", "planner")
        key = f"assignment:{run_id}:h1"
        deadline = time.monotonic() + 5
        while (value := server.client().get(key)) is None:
            assert time.monotonic() < deadline
        assert str(value).startswith(given["variant_id"])
        assert 3_500_000 < int(str(server.client().pttl(key))) <= 3_600_000
        assert second.assigned("h1", "planner") == given
        assert (second.metric("cache_hits_total"), second.metric("cache_misses_total")) == (1, 0)
        # A change of the experiment drops what was kept with it.
        connection.execute("UPDATE exp.experiments SET status = 'paused'")
        deadline = time.monotonic() + 5
        while second.metric("cache_misses_total") == 0:
            assert second.assigned("h1", "planner") == given
            assert time.monotonic() < deadline


def test_rubbish_in_redis_is_not_believed(
    server: RedisServer,
    database_url: str,
    connection: psycopg.Connection[Any],
    make_client: Callable[..., httpx.Client],
) -> None:
    run_id, _ = make_run(connection, "planner")
    with running_api(database_url, redis_url=server.url) as url:
        api = Api(make_client(url, "assign"), connection, database_url)
        for unit, value in enumerate([*RUBBISH, f"{run_id}:"]):
            server.client().set(f"assignment:{run_id}:h{unit}", value)
            assert api.assigned(f"h{unit}", "planner")["enrolled"] is True
    assert connection.execute("SELECT count(*) FROM exp.assignments").fetchone() == (len(RUBBISH) + 1,)


def test_limits_count_together(
    server: RedisServer,
    database_url: str,
    connection: psycopg.Connection[Any],
    make_client: Callable[..., httpx.Client],
) -> None:
    body = {"unit_type": "household", "unit_id": "h1", "requested_experiments": []}
    settings = {"redis_url": server.url, "rate_limit_unit_per_minute": 10}
    with running_api(database_url, **settings) as one, running_api(database_url, **settings) as two:
        clients = [make_client(one, "assign"), make_client(two, "assign")]
        statuses = [clients[n % 2].post("/api/v1/assignments", json=body).status_code for n in range(14)]
        assert statuses == [200] * 10 + [429] * 4
        refused = clients[0].post("/api/v1/assignments", json=body)
        assert 1 <= refused.json()["retry_after"] <= 60
        assert refused.headers["retry-after"] == str(refused.json()["retry_after"])


@pytest.mark.parametrize("away", ["stop", "hang"])
def test_a_dead_redis_costs_speed_and_no_answer(
    away: str,
    server: RedisServer,
    database_url: str,
    connection: psycopg.Connection[Any],
    make_client: Callable[..., httpx.Client],
) -> None:
    make_run(connection, "planner")
    with running_api(database_url, redis_url=server.url, rate_limit_unit_per_minute=20) as url:
        api = Api(make_client(url, "assign"), connection, database_url)
        given = api.assigned("h1", "planner")
        getattr(server, away)()
        began = time.monotonic()
        assert [api.assigned("h1", "planner") for _ in range(10)] == [given] * 10
        assert api.assigned("h2", "planner")["enrolled"] is True
        # A tenth of a second for the first who finds out, not for each.
        assert time.monotonic() - began < 3
        # Each counts for itself meanwhile.
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


@pytest.mark.parametrize("address", ["localhost:6379", "redis://user:p@ss/word@host:6379/0", "http://cache"])
def test_an_address_that_is_none_is_told_at_the_start(database_url: str, address: str) -> None:
    with pytest.raises(ValueError, match="REDIS_URL") as refused, running_api(database_url, redis_url=address):
        pass
    assert "ss" not in str(refused.value).replace("address", "")


def test_a_units_events_are_counted_together(server: RedisServer) -> None:
    async def counted() -> list[dict[str, int]]:
        links = [RedisLink(server.url), RedisLink(server.url)]
        one, other = (Limits(0, 0, link, 10) for link in links)
        found = []
        for limits, count in ((one, 8), (other, 8), (one, 3)):
            found.append(await limits.too_many(limits.unit_events, {"busy": count, "quiet": 1}))
        server.stop()
        # Without Redis each counts for itself again.
        found.append(await one.too_many(one.unit_events, {"busy": 12, "quiet": 1}))
        for link in links:
            await link.close()
        return found

    assert asyncio.run(counted()) == [{}, {"busy": 6}, {"busy": 3}, {"busy": 2}]
