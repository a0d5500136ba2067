"""The assignment client with threads, tasks, event loops and forks, and what it imports.

Caching and outages: test_client.py. Settings and closing: test_client_setup.py.
"""

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from client_support import DRIVERS, KEY, URL, AsyncDriver, Clock, Service, SyncDriver

from lifecycle_client import (
    AssignmentClient,
    AsyncAssignmentClient,
    KeyRefusedError,
    RequestRefusedError,
)
from lifecycle_client.options import DEFAULT_TIMEOUT

CALLERS = 8


@pytest.fixture
def service() -> Service:
    return Service()


class Arrival(threading.Event):
    """An event that releases `arrived` when a caller begins to wait for it."""

    arrived = threading.Semaphore(0)

    def wait(self, timeout: float | None = None) -> bool:
        self.arrived.release()
        return super().wait(10)


def in_threads(service: Service, *first: Any) -> list[Any]:
    """The results of many threads that ask the same question; the request goes on once all others wait for it."""
    requests: list[httpx.Request] = []

    def held(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        for _ in range(CALLERS - 1):
            assert Arrival.arrived.acquire(timeout=10)
        if first and len(requests) == 1:
            return httpx.Response(*first)
        return service.answer(request)

    service.then = held
    driver = SyncDriver(service, clock=Clock())
    driver.client._core._make_waiter = Arrival

    def call() -> Any:
        try:
            answer = driver.assign("u1", "a")
        except KeyRefusedError as error:
            return error
        return answer.assigned.get("a") or answer.skipped["a"]

    with ThreadPoolExecutor(CALLERS) as pool:
        return [future.result(20) for future in [pool.submit(call) for _ in range(CALLERS)]]


def in_tasks(service: Service, *first: Any) -> list[Any]:
    """The results of many tasks that ask the same question; each runs as far as it can before the request goes on."""

    async def run() -> list[Any]:
        async def held(request: httpx.Request) -> httpx.Response:
            for _ in range(CALLERS):
                await asyncio.sleep(0)
            answer = service(request)
            return httpx.Response(*first) if first and len(service.requests) == 1 else answer

        transport = httpx.MockTransport(held)
        async with AsyncAssignmentClient(KEY, URL, clock=Clock(), make_transport=lambda: transport) as client:
            calls = [client.assign("user", "u1", ["a"]) for _ in range(CALLERS)]
            answers = await asyncio.gather(*calls, return_exceptions=True)
        return [
            answer if isinstance(answer, BaseException) else answer.assigned.get("a") or answer.skipped["a"]
            for answer in answers
        ]

    return asyncio.run(run())


@pytest.mark.parametrize("many", [in_threads, in_tasks])
def test_concurrent_identical_questions_send_one_request(many: Callable[..., list[Any]], service: Service) -> None:
    answers = many(service)
    assert [(answer.variant_name, answer.source) for answer in answers] == [("v1", "service")] * CALLERS
    assert len(service.requests) == 1


@pytest.mark.parametrize("many", [in_threads, in_tasks])
def test_waiting_callers_share_a_failure(many: Callable[..., list[Any]], service: Service) -> None:
    assert [answer.source for answer in many(service, 503)] == ["default"] * CALLERS
    assert len(service.requests) == 1


@pytest.mark.parametrize("many", [in_threads, in_tasks])
def test_each_waiting_caller_gets_its_own_error_when_the_key_is_refused(
    many: Callable[..., list[Any]], service: Service
) -> None:
    errors = many(service, 401)
    assert {type(error) for error in errors} == {KeyRefusedError} and len({id(error) for error in errors}) == CALLERS
    assert len(service.requests) == 1


def test_caller_waits_for_names_in_flight_and_asks_for_the_rest(service: Service) -> None:
    async def run() -> None:
        async def held(request: httpx.Request) -> httpx.Response:
            await asyncio.sleep(0)
            return service(request)

        transport = httpx.MockTransport(held)
        async with AsyncAssignmentClient(KEY, URL, make_transport=lambda: transport) as client:
            first, second = await asyncio.gather(
                client.assign("user", "u1", ["a", "b"]), client.assign("user", "u1", ["c", "b"])
            )
        assert list(first.assigned) == ["a", "b"] and list(second.assigned) == ["c", "b"]

    asyncio.run(run())
    assert service.names() == [["a", "b"], ["c"]]


def test_question_is_not_refused_for_another_callers_mistake(service: Service) -> None:
    async def run() -> None:
        async def held(request: httpx.Request) -> httpx.Response:
            await asyncio.sleep(0)
            answer = service(request)
            if len(service.requests) == 1:
                return httpx.Response(400, json={"error": "validation_error", "message": "bad name"})
            return answer

        transport = httpx.MockTransport(held)
        async with AsyncAssignmentClient(KEY, URL, make_transport=lambda: transport) as client:
            first, second = await asyncio.gather(
                client.assign("user", "u1", ["a", "bad"]), client.assign("user", "u1", ["a"]), return_exceptions=True
            )
        assert isinstance(first, RequestRefusedError)
        assert not isinstance(second, BaseException) and second.assigned["a"].source == "service"

    asyncio.run(run())


def test_waiting_caller_asks_again_when_the_sending_caller_is_cancelled(service: Service) -> None:
    async def run() -> None:
        begun = asyncio.Event()

        async def held(request: httpx.Request) -> httpx.Response:
            answer = service(request)
            if len(service.requests) == 1:
                begun.set()
                await asyncio.Event().wait()
            return answer

        transport = httpx.MockTransport(held)
        async with AsyncAssignmentClient(KEY, URL, timeout=20, make_transport=lambda: transport) as client:
            leader = asyncio.create_task(client.assign("user", "u1", ["a"]))
            await begun.wait()
            follower = asyncio.create_task(client.assign("user", "u1", ["a"]))
            await asyncio.sleep(0)
            leader.cancel()
            answer = await follower
            assert leader.cancelled() and answer.assigned["a"].variant_name == "v2"
            assert client._core._flights == {}

    asyncio.run(run())


def test_one_caller_probes_after_an_outage_and_the_others_do_not_wait(service: Service) -> None:
    async def run() -> None:
        clock, begun, go = Clock(), asyncio.Event(), asyncio.Event()

        async def held(request: httpx.Request) -> httpx.Response:
            answer = service(request)
            if len(service.requests) == 2:
                begun.set()
                await go.wait()
            return answer

        transport = httpx.MockTransport(held)
        options: dict[str, Any] = {"clock": clock, "jitter": lambda: 0.0, "make_transport": lambda: transport}
        async with AsyncAssignmentClient(KEY, URL, timeout=20, **options) as client:
            service.then = httpx.ConnectError("away")
            await client.variant("user", "u1", "a", "control")
            clock.wait(1)
            service.then = None
            probe = asyncio.create_task(client.variant("user", "u1", "a", "control"))
            await begun.wait()
            assert await client.variant("user", "u2", "a", "control") == "control"
            go.set()
            assert await probe == "v2"
            assert await client.variant("user", "u2", "a", "control") == "v3"

    asyncio.run(run())


def test_simultaneous_failures_count_as_one(service: Service) -> None:
    async def run() -> None:
        async def dies(request: httpx.Request) -> httpx.Response:
            await asyncio.sleep(0)
            return service(request)

        clock, transport = Clock(), httpx.MockTransport(dies)
        options: dict[str, Any] = {"clock": clock, "jitter": lambda: 0.0, "make_transport": lambda: transport}
        async with AsyncAssignmentClient(KEY, URL, **options) as client:
            service.then = httpx.ConnectError("away")
            await asyncio.gather(*(client.variant("user", f"u{n}", "a", "control") for n in range(6)))
            clock.wait(1)
            service.then = None
            assert await client.variant("user", "u1", "a", "control") == "v7"

    asyncio.run(run())


def test_slow_or_hanging_service_costs_no_more_than_the_timeout() -> None:
    clock = Clock()

    def drips() -> Iterator[bytes]:
        while True:
            clock.wait(0.3)
            yield b" "

    service = Service()
    service.then = lambda request: httpx.Response(200, content=drips())
    driver = SyncDriver(service, clock=clock)
    assert driver.variant("u1", "a", "control") == "control" and clock.now < 1000 + DEFAULT_TIMEOUT + 0.3

    async def hangs(request: httpx.Request) -> httpx.Response:
        await asyncio.Event().wait()
        raise AssertionError("nothing sets this event")

    hanging = AsyncDriver(hangs, timeout=0.01)
    assert hanging.variant("u1", "a", "control") == "control"
    hanging.close()


def test_another_loop_opens_new_connections_and_keeps_known_answers(service: Service) -> None:
    transports: list[httpx.MockTransport] = []

    def make_transport() -> httpx.MockTransport:
        transports.append(httpx.MockTransport(service))
        return transports[-1]

    client = AsyncAssignmentClient(KEY, URL, make_transport=make_transport)
    answers = [asyncio.run(client.variant("user", unit, "a", "control")) for unit in ("u1", "u1", "u2")]
    assert answers == ["v1", "v1", "v2"] and len(transports) == 2


def in_child(work: Callable[[], str]) -> str:
    """What `work` returns in a forked child. The child is killed after 10 s."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(10)
        try:
            os.write(writing, work().encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        result = pipe.read().decode()
    os.waitpid(child, 0)
    return result


@pytest.mark.parametrize("kind", sorted(DRIVERS))
def test_forked_child_has_its_own_connections_and_locks(kind: str, service: Service) -> None:
    transports: list[httpx.MockTransport] = []
    driver = DRIVERS[kind](service, clock=Clock())

    def make_transport() -> httpx.MockTransport:
        transports.append(httpx.MockTransport(service))
        return transports[-1]

    driver.client._make_transport = make_transport
    driver.assign("u1", "a")

    def work() -> str:
        known, new = driver.assign("u1", "a").assigned["a"], driver.assign("u2", "a").assigned["a"]
        return f"{known.variant_name} {known.source} {new.variant_name} {new.source} {len(transports)}"

    # Another thread of the parent may be anywhere: inside the lock, or with a request in flight.
    core = driver.client._core
    flight = core.plan(_question("u2")).own
    with core._lock:
        result = in_child(work)
    assert result == "v1 cache v2 service 2"
    assert len(transports) == 1 and flight is not None and core._flights
    with core.flying(flight):
        pass
    assert driver.assign("u2", "a").assigned["a"].source == "service" and len(transports) == 1
    driver.close()


def _question(unit_id: str) -> Any:
    from lifecycle_client.core import ask

    return ask("user", unit_id, ["a"], None, True)


def test_deleted_client_is_not_kept_alive_for_forks() -> None:
    from lifecycle_client.forks import _all

    gc.collect()
    before = len(_all)
    clients = [AssignmentClient(KEY, URL) for _ in range(3)]
    assert len(_all) == before + 3
    clients.clear()
    gc.collect()
    assert len(_all) == before


def test_client_imports_only_httpx_and_msgspec() -> None:
    code = (
        "import sys, httpx, msgspec; before = set(sys.modules); import lifecycle_client; new = set(sys.modules) - before;"
        "print(*sorted(name for name in new if name.partition('.')[0] not in sys.stdlib_module_names))"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = process.stdout.split()
    assert "lifecycle_client.core" in loaded
    assert [name for name in loaded if not name.startswith("lifecycle_client")] == []


def test_assignment_client_starts_no_thread(service: Service) -> None:
    before = threading.active_count()
    with AssignmentClient(KEY, URL, make_transport=lambda: httpx.MockTransport(service)) as client:
        client.variant("user", "u1", "a", "control")
        assert threading.active_count() == before
