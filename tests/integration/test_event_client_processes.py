"""The event client with threads, event loops, signals, forks and multiprocessing, and at the end of a process.

The service here is scripted. With the real one: tests/integration/test_event_client_service.py.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from client_support import KEY, Clock
from event_client_support import EVENTS_URL, EventService, always, make_client, make_delivery, work

from lifecycle_client import AsyncEventClient, EventClient
from lifecycle_client.wire import Unreachable

UNIT = {"unit_type": "user", "unit_id": "u1"}


@pytest.fixture
def service() -> EventService:
    return EventService()


def left_on_disk(folder: Path, url: str = EVENTS_URL) -> list[str]:
    """Take all events for a service from the folder, and return their units."""
    service = EventService()
    work(make_delivery(folder, Clock(), url=url), service)
    return sorted(service.units())


def test_each_event_is_stored_once_when_many_threads_log(service: EventService, tmp_path: Path) -> None:
    client = make_client(EventClient, service, tmp_path, max_buffered=300)

    def log(worker: int) -> list[str]:
        return [client.log("custom.x", unit_type="user", unit_id=f"{worker}-{number}") for number in range(500)]

    with ThreadPoolExecutor(8) as pool:
        ids = [event_id for logged in pool.map(log, range(8)) for event_id in logged]
    client.close()
    stats = client.stats
    stored = sorted(event_id for event_id, _ in service.stored)
    assert stats.logged == 4_000 == len(set(ids)) and len(stored) + stats.dropped == 4_000 and set(stored) <= set(ids)


def test_hanging_request_holds_up_no_caller(service: EventService, tmp_path: Path) -> None:
    """Events logged in the meantime go to disk, memory stays within its limit, and nothing is lost."""
    begun, go = threading.Event(), threading.Event()

    def hangs(events: list[dict[str, Any]]) -> None:
        begun.set()
        assert go.wait(20)

    service.then = hangs
    client = make_client(EventClient, service, tmp_path, flush_at=1, max_buffered=100)
    ids = [client.log("custom.x", **UNIT)]
    assert begun.wait(10)
    while client.stats.spooled < 500:
        # No faster than the disk takes them, or the newest would be dropped.
        if client.stats.buffered < 60:
            ids.append(client.log("custom.x", **UNIT))
    go.set()
    client.close(20)
    assert client.stats.dropped == 0 and sorted(event_id for event_id, _ in service.stored) == sorted(ids)


def test_event_loop_keeps_running_while_the_service_hangs(service: EventService, tmp_path: Path) -> None:
    """The service answers only after the loop has run on, so this ends only if the loop does not wait for the answer."""
    turned = threading.Event()
    service.then = lambda events: None if turned.wait(20) else Unreachable("the loop stood still")

    async def use() -> None:
        async with make_client(AsyncEventClient, service, tmp_path, flush_at=10) as client:
            for _ in range(10):
                client.log("custom.x", **UNIT)
            flush = asyncio.create_task(client.flush(20))
            while not service.batches:
                await asyncio.sleep(0)
            turned.set()
            assert await flush

    asyncio.run(use())
    assert len(service.stored) == 10


def test_last_event_of_a_loop_outlives_the_loop(service: EventService, tmp_path: Path) -> None:
    client = make_client(AsyncEventClient, service, tmp_path)

    async def use() -> None:
        client.log("custom.x", **UNIT)

    asyncio.run(use())
    asyncio.run(client.flush())
    assert service.units() == ["u1"]
    asyncio.run(client.aclose())


def test_signal_handler_may_log_whatever_it_interrupts(service: EventService, tmp_path: Path) -> None:
    client = make_client(EventClient, service, tmp_path, max_buffered=1_000_000)
    interrupted = 0

    def handler(number: int, frame: Any) -> None:
        nonlocal interrupted
        interrupted += 1
        client.log("custom.interrupt", **UNIT)

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    logged = 0
    try:
        while interrupted < 200:
            client.log("custom.x", **UNIT)
            logged += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    client.close(120)
    assert len(service.stored) == logged + interrupted == client.stats.sent


def test_no_event_is_lost_when_no_thread_can_be_started(
    service: EventService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    client = make_client(EventClient, service, tmp_path)
    monkeypatch.setattr(threading.Thread, "start", refuses)
    client.log("custom.x", **UNIT)
    assert not client.flush(0.1)
    client.close()
    assert (client.stats.spooled, client.stats.dropped) == (1, 0)
    assert left_on_disk(tmp_path) == ["u1"]


def in_child(work: Callable[[], None]) -> int:
    """Exit status of a forked child that calls `work`. The child is killed after 20 s."""
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1]


@pytest.mark.parametrize("kind", [EventClient, AsyncEventClient])
def test_forked_child_begins_empty_and_the_parent_sends_its_events(
    kind: Any, service: EventService, tmp_path: Path
) -> None:
    client = make_client(kind, service, tmp_path)
    client.log("custom.x", unit_type="user", unit_id="parent")
    assert client._sender.is_alive()

    def work() -> None:
        assert (client.stats.buffered, client.stats.logged, client._sender) == (0, 0, None)
        client.log("custom.x", unit_type="user", unit_id="child")
        service.then = always(Unreachable("away"))
        client._close(10)
        assert client.stats.spooled == 1

    # Another thread of the parent may hold any lock at the time of the fork.
    delivery = client._delivery
    with contextlib.ExitStack() as held:
        for owner in (client, delivery, delivery._buffer, delivery._spool, delivery.notices, client._exposures):
            held.enter_context(owner._lock)
        held.enter_context(delivery._count_lock)
        status = in_child(work)
    assert status == 0 and client.stats.buffered == 1
    assert client._flush(10)
    client._close(10)
    assert sorted(service.units()) == ["child", "parent"]


AWAY = "http://127.0.0.1:9"
CLIENT = """
import atexit, multiprocessing, os, signal, sys
from lifecycle_client import EventClient

client = EventClient({key!r}, {url!r}, spool_dir={folder!r}, exit_timeout=5.0)

def log(unit_id):
    client.log("custom.x", unit_type="user", unit_id=unit_id)

"""
MULTI = """
if __name__ == "__main__":
    process = multiprocessing.get_context({how!r}).Process(target=log, args=("child",))
    log("parent")
    process.start()
    process.join()
"""


@pytest.mark.parametrize(
    ("code", "units"),
    [
        ("log('last')", ["last"]),
        ("log('last'); sys.exit(3)", ["last"]),
        ("log('last'); raise ValueError('the product fails')", ["last"]),
        ("atexit.register(log, 'at exit'); log('last')", ["at exit", "last"]),
        ("log('parent')\nif os.fork() == 0: log('child'); sys.exit()\nelse: os.wait()", ["child", "parent"]),
        (MULTI.format(how="fork"), ["child", "parent"]),
        (MULTI.format(how="spawn"), ["child", "parent"]),
        ("signal.signal(signal.SIGTERM, lambda *_: sys.exit()); log('last'); os.kill(os.getpid(), 15)", ["last"]),
        ("log('kept'); client.flush(); os.kill(os.getpid(), 9)", ["kept"]),
    ],
    ids=["returns", "exit", "raises", "at exit", "fork", "multiprocessing fork", "multiprocessing spawn", "SIGTERM", "kill -9"],
)  # fmt: skip
def test_process_leaves_its_events_on_disk_when_it_ends(tmp_path: Path, code: str, units: list[str]) -> None:
    script = tmp_path / "script.py"
    script.write_text(CLIENT.format(key=KEY, url=AWAY, folder=str(tmp_path)) + code)
    process = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False, timeout=60)
    assert process.stderr.count("Traceback") == code.count("raise ") and "Exception ignored" not in process.stderr
    assert left_on_disk(tmp_path, AWAY) == units
