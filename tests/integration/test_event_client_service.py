"""The event client against the real API: every event is stored once, even if the service goes away or processes are killed."""

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from api_support import Api, make_run, running_api
from client_support import Clock, Place, PlaceTransport
from event_client_support import event

from foundation.api_keys import make_api_key
from lifecycle_client import AssignmentClient, AsyncEventClient, EventClient, LostEvent
from lifecycle_client.event_disk import Spool, spool_folders
from lifecycle_client.event_wire import name_of

pytest_plugins = ["api_service"]

ONCE = "SELECT id::text, count(*) FROM exp.events GROUP BY id"


def stored_once(connection: psycopg.Connection[Any]) -> set[str]:
    """Ids of the stored events. Fails if one is stored twice."""
    counts = dict(connection.execute(ONCE).fetchall())
    assert set(counts.values()) <= {1}
    return set(counts)


@pytest.fixture
def key(api: Api) -> str:
    return str(api.client.headers["authorization"]).partition(" ")[2]


@pytest.fixture
def url(api: Api) -> str:
    return str(api.client.base_url).rstrip("/")


def log_many(client: EventClient | AsyncEventClient, count: int) -> set[str]:
    """Log `count` events of different units, and return their ids."""
    return {client.log("custom.x", unit_type="user", unit_id=f"u{number}") for number in range(count)}


def test_events_of_two_outages_are_stored_once(database_url: str, tmp_path: Path) -> None:
    clock, ids = Clock(), set[str]()
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(psycopg.connect(database_url, autocommit=True))
        _, key = make_api_key(connection, f"key {uuid4()}", ["ingest"])
        place = Place("http://127.0.0.1:9")
        options: dict[str, Any] = {
            "clock": clock,
            "jitter": lambda: 0.0,
            "make_transport": lambda: PlaceTransport(place),
        }
        client = stack.enter_context(EventClient(key, "http://events.test", spool_dir=tmp_path, timeout=20, **options))
        for _ in range(2):
            ids |= log_many(client, 250)
            assert not client.flush(20) and client.stats.buffered == 0
            with running_api(database_url) as url:
                place.url = url
                # Not before: the client's thread would try the old address again, and wait longer.
                clock.wait(60)
                ids |= log_many(client, 120)
                assert client.flush(20)
                assert stored_once(connection) == ids
    assert (client.stats.sent, client.stats.dropped, client.stats.disk_bytes) == (740, 0, 0)


def test_service_refuses_single_events_and_stores_the_rest(api: Api, url: str, key: str, tmp_path: Path) -> None:
    lost: list[LostEvent] = []
    with EventClient(key, url, spool_dir=tmp_path, timeout=20, on_error=lost.append) as client:
        good = log_many(client, 3)
        client.log("custom.x", unit_type="user", unit_id="x" * 300)
        client.log("unheard_of", unit_type="user", unit_id="u1")
        client.log("custom.x", unit_type="user", unit_id="u1", metrics={"x": True})
        assert client.flush(20)
        client.log("custom.x", unit_type="planet", unit_id="u1")
        assert client.flush(20)
    assert stored_once(api.connection) == good
    codes = ["invalid_unit_id", "invalid_event_type", "invalid_metric", "invalid_unit_type"]
    assert [loss.code for loss in lost] == codes and client.stats.refused == 4


def test_exposure_counts_for_the_assigned_run_and_variant(api: Api, url: str, key: str, tmp_path: Path) -> None:
    run_id, variants = make_run(api.connection, "planner", unit_type="user")
    with (
        AssignmentClient(key, url, timeout=20) as asking,
        EventClient(key, url, spool_dir=tmp_path, timeout=20) as client,
    ):
        answer = asking.assign("user", "u1", ["planner", "unheard_of"])
        shown = answer.assigned["planner"]
        assert client.log_exposure(shown) and client.log_exposure(shown) is None
        assert client.log_exposure(answer.assigned.get("unheard_of")) is None
        client.log("plan_accepted", unit_type="user", unit_id="u1", experiments=answer, payload={"plan_id": "p"})
    rows = api.rows("SELECT event_type, unit_type, unit_id, experiments FROM exp.events ORDER BY event_type")
    expected = [{"experiment_id": str(run_id), "variant_id": str(variants[shown.variant_name])}]
    assert rows == [("exposure", "user", "u1", expected), ("plan_accepted", "user", "u1", expected)]


def test_async_client_stores_all_events(api: Api, url: str, key: str, tmp_path: Path) -> None:
    async def use() -> set[str]:
        async with AsyncEventClient(key, url, spool_dir=tmp_path, timeout=20) as client:
            ids = log_many(client, 150)
            assert await client.flush(20)
            return ids | log_many(client, 5)

    assert asyncio.run(use()) == stored_once(api.connection)


def test_forked_child_and_its_parent_send_their_own_events(api: Api, url: str, key: str, tmp_path: Path) -> None:
    client = EventClient(key, url, spool_dir=tmp_path, timeout=20, flush_every=60)
    ids = log_many(client, 30)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        try:
            os.write(writing, "\n".join(log_many(client, 40)).encode())
            client.close(20)
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        child_ids = set(pipe.read().decode().split())
    os.waitpid(child, 0)
    assert stored_once(api.connection) == child_ids and len(child_ids) == 40
    client.close(20)
    assert stored_once(api.connection) == ids | child_ids and client.stats.sent == 30


PROCESS = """
import os, sys
from lifecycle_client import EventClient
client = EventClient(sys.argv[1], sys.argv[2], spool_dir=sys.argv[3], timeout=20.0, exit_timeout=20.0)
def log(count):
    for number in range(count):
        print(client.log("custom.x", unit_type="user", unit_id=f"u{number}"), flush=True)
"""


@contextlib.contextmanager
def process(code: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Start a process with its own client; the end of the context waits for the process."""
    command = [sys.executable, "-c", PROCESS + code, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        yield child


def test_process_sends_its_events_when_it_ends(api: Api, url: str, key: str, tmp_path: Path) -> None:
    with process("log(150)", key, url, str(tmp_path)) as child:
        ids = set(child.communicate(timeout=60)[0].split())
    assert len(ids) == 150 and stored_once(api.connection) == ids


def test_next_process_sends_the_events_that_a_killed_process_left(api: Api, url: str, key: str, tmp_path: Path) -> None:
    """The killed process could not send, because its key is wrong, and could not tidy up."""
    with process("log(150); client.flush(20); os.kill(os.getpid(), 9)", "lc_wrong_key", url, str(tmp_path)) as child:
        ids = set(child.communicate(timeout=60)[0].split())
    assert len(ids) == 150 and stored_once(api.connection) == set()
    with EventClient(key, url, spool_dir=tmp_path, timeout=20) as client:
        assert client.flush(20)
    assert stored_once(api.connection) == ids and client.stats.sent == 150 and client.stats.disk_bytes == 0


def test_processes_killed_at_random_lose_no_flushed_event(api: Api, url: str, key: str, tmp_path: Path) -> None:
    """Each process sends what earlier ones left, every other one with a wrong key; each is killed in the middle of it."""
    chance = random.Random(7)
    # Different units: a fast child would otherwise reach the limit of events for one unit.
    code = "while True:\n    ids = [client.log('custom.x', unit_type='user', unit_id=f'u{n}') for n in range(40)]\n"
    code += "    client.flush(20)\n    print(*ids, flush=True)"
    flushed: set[str] = set()
    for number in range(6):
        with process(code, "lc_wrong_key" if number % 2 else key, url, str(tmp_path)) as child:
            assert child.stdout is not None
            for _ in range(chance.randint(2, 8)):
                flushed |= set(child.stdout.readline().split())
            child.kill()
    with EventClient(key, url, spool_dir=tmp_path, timeout=20) as client:
        assert client.flush(20)
    assert flushed <= stored_once(api.connection) and len(flushed) > 400


def test_processes_that_share_a_folder_send_each_event_once(api: Api, url: str, key: str, tmp_path: Path) -> None:
    (folder,) = spool_folders(tmp_path, f"{url}/api/v1/events/batch")
    ids = set()
    for _ in range(40):
        events = [event(f"u{number}") for number in range(50)]
        spool = Spool([folder], 100_000_000)
        spool.append(events)
        spool.close()
        ids |= {name_of(encoded)[0] for encoded in events}
    code = "print('ready', flush=True); sys.stdin.readline(); client.flush(30); print(client.stats.sent)"
    sent = []
    with contextlib.ExitStack() as stack:
        children = [stack.enter_context(process(code, key, url, str(tmp_path))) for _ in range(3)]
        for child in children:
            assert child.stdout is not None and child.stdout.readline() == "ready\n"
        for child in children:
            assert child.stdin is not None
            child.stdin.write("\n")
            child.stdin.flush()
        sent = [int(child.communicate(timeout=60)[0]) for child in children]
    assert stored_once(api.connection) == ids and sum(sent) == 2_000 == len(ids)
    assert not list(folder.glob("*.events"))
