"""The event client as a product sees it: ids at once, no exceptions, copied arguments, each exposure once, a timely end.

What is sent when: test_event_client_delivery.py. Processes, threads, forks, signals: test_event_client_processes.py.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from client_support import KEY, Clock
from event_client_support import EVENTS_URL, EventService, always, assignment, make_client

from lifecycle_client import Assignments, AsyncEventClient, ClientSetupError, EventClient, LostEvent
from lifecycle_client.event_wire import new_event_id
from lifecycle_client.wire import Unreachable

UNIT: dict[str, Any] = {"unit_type": "user", "unit_id": "u1"}
Make = Callable[..., EventClient]


@pytest.fixture
def service() -> EventService:
    return EventService()


@pytest.fixture
def lost() -> list[LostEvent]:
    return []


@pytest.fixture
def make(service: EventService, lost: list[LostEvent], tmp_path: Path) -> Iterator[Make]:
    """Makes clients, which are closed after the test."""
    clients: list[EventClient] = []

    def new(**options: Any) -> EventClient:
        clients.append(make_client(EventClient, service, tmp_path, **{"on_error": lost.append, **options}))
        return clients[-1]

    yield new
    service.then = lambda events: None
    for client in clients:
        client.close()


def test_event_contains_what_the_caller_passed(make: Make, service: EventService) -> None:
    client = make()
    before = datetime.now(UTC)
    full_id = client.log(
        "plan_accepted", **UNIT, context={"app_version": "2"}, metrics={"edit_count": 3}, payload={"plan_id": "p", "meals": ["m"]},
        experiments=assignment(), timestamp=datetime(2026, 1, 5, 18, tzinfo=timezone(timedelta(hours=1))),
    )  # fmt: skip
    short_id = client.log("custom.short", **UNIT)
    assert client.flush()
    full, short = service.stored.values()
    assert full == {
        "event_id": full_id, "event_type": "plan_accepted", **UNIT, "timestamp": "2026-01-05T18:00:00+01:00",
        "experiments": [{"experiment_id": assignment().experiment_id, "variant_id": assignment().variant_id}],
        "context": {"app_version": "2"}, "metrics": {"edit_count": 3}, "payload": {"plan_id": "p", "meals": ["m"]},
    }  # fmt: skip
    assert sorted(short) == ["event_id", "event_type", "timestamp", "unit_id", "unit_type"]
    assert short["event_id"] == short_id
    assert before <= datetime.fromisoformat(short["timestamp"]) <= datetime.now(UTC)


def test_event_ids_are_growing_uuids_of_version_7() -> None:
    ids = [new_event_id() for _ in range(2_000)]
    assert len(set(ids)) == 2_000
    assert {(UUID(text).version, UUID(text).variant) for text in ids} == {(7, "specified in RFC 4122")}
    # The order holds to a quarter of a microsecond; ids of the same quarter are unordered.
    assert [text[:18] for text in ids] == sorted(text[:18] for text in ids)
    assert abs((UUID(ids[0]).int >> 80) / 1000 - datetime.now(UTC).timestamp()) < 60


@pytest.mark.parametrize(
    "experiments",
    [
        assignment(),
        [assignment()],
        Assignments({"planner": assignment()}, {}),
        iter([assignment()]),
        [{"experiment_id": assignment().experiment_id, "variant_id": assignment().variant_id}],
    ],
    ids=["one", "a list", "an answer", "an iterator", "ids"],
)
def test_event_accepts_experiments_in_every_form(make: Make, service: EventService, experiments: Any) -> None:
    client = make()
    client.log("custom.x", **UNIT, experiments=experiments)
    client.flush()
    (stored,) = service.stored.values()
    assert stored["experiments"] == [
        {"experiment_id": assignment().experiment_id, "variant_id": assignment().variant_id}
    ]


def test_event_does_not_change_when_the_caller_changes_its_payload_later(make: Make, service: EventService) -> None:
    client = make()
    payload: dict[str, Any] = {"meals": ["a"]}
    client.log("custom.x", **UNIT, payload=payload)
    payload["meals"].append("b")
    client.flush()
    assert [event["payload"] for event in service.stored.values()] == [{"meals": ["a"]}]


def test_event_accepts_numbers_and_mappings_of_other_libraries(make: Make, service: EventService) -> None:
    client = make()
    numbers = {"a": Decimal("0.5"), "b": np.float32(1.5), "c": np.int64(7), "d": np.float64(0.25)}
    client.log("custom.x", **UNIT, metrics=numbers, context=MappingProxyType({"x": np.int32(1)}))
    client.flush()
    (stored,) = service.stored.values()
    assert stored["metrics"] == {"a": 0.5, "b": 1.5, "c": 7, "d": 0.25} and stored["context"] == {"x": 1}


class Hostile:
    """Raises in every method."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("no")

    def __repr__(self) -> str:
        raise RuntimeError("no")

    __str__ = __iter__ = __len__ = __float__ = __repr__


def cyclic() -> dict[str, Any]:
    """A dictionary that contains itself."""
    value: dict[str, Any] = {}
    value["me"] = [value]
    return value


def deep() -> Any:
    """A list nested too deeply to be encoded."""
    value: Any = []
    for _ in range(100_000):
        value = [value]
    return value


HOSTILE: dict[str, dict[str, Any]] = {
    "NaN": {"metrics": {"x": float("nan")}},
    "infinite": {"metrics": {"x": -float("inf")}},
    "Decimal NaN": {"metrics": {"x": Decimal("NaN")}},
    "metric not a number": {"metrics": {"x": "fast"}},
    "metrics not an object": {"metrics": [1]},
    "an integer beyond doubles": {"metrics": {"x": 10**400}},
    "cyclic": {"payload": cyclic()},
    "deep": {"payload": {"x": deep()}},
    "object": {"payload": {"x": object()}},
    "hostile object": {"payload": {"x": Hostile()}},
    "hostile experiments": {"experiments": Hostile()},
    "experiments a string": {"experiments": "planner"},
    "lone surrogate": {"unit_id": "\ud800"},
    "bytes key": {"context": {(1, 2): 3}},
    "no offset": {"timestamp": datetime(2026, 1, 1)},
    "hostile type": {"event_type": Hostile()},
    "huge": {"payload": {"x": "y" * 2_000_000}},
}


@pytest.mark.parametrize("given", HOSTILE.values(), ids=HOSTILE.keys())
def test_invalid_event_is_reported_and_breaks_nothing(
    make: Make, service: EventService, lost: list[LostEvent], caplog: pytest.LogCaptureFixture, given: dict[str, Any]
) -> None:
    client = make()
    for _ in range(3):
        event_id = client.log(**{"event_type": "custom.x", **UNIT, **given})
        assert UUID(event_id)
    client.log("custom.good", **UNIT)
    assert client.flush()
    assert [event["event_type"] for event in service.stored.values()] == ["custom.good"]
    stats = client.stats
    assert (stats.logged, stats.sent, stats.refused, stats.dropped) == (4, 1, 3, 0)
    assert len(caplog.messages) == 1 and "is lost" in caplog.messages[0]
    assert {loss.code for loss in lost} <= {"not_sendable", "payload_too_large"} and len(lost) == 3


def test_on_error_may_raise_or_log_again(make: Make, service: EventService) -> None:
    calls: list[str] = []

    def raises(loss: LostEvent) -> None:
        calls.append(loss.code)
        raise RuntimeError("a defect of the product")

    service.bad = {"bad": "invalid_unit_id"}
    client = make(on_error=raises)
    client.log("custom.x", **UNIT, payload=cyclic())
    client.log("custom.x", unit_type="user", unit_id="bad")
    assert client.flush() and calls == ["not_sendable", "invalid_unit_id"]

    logging_again: EventClient = make(on_error=lambda loss: logging_again.log("custom.x", **UNIT, payload=cyclic()))
    logging_again.log("custom.x", **UNIT, payload=cyclic())
    logging_again.log("custom.good", **UNIT)
    assert logging_again.flush() and "u1" in service.units()


def test_exposure_is_logged_once_a_day_for_a_unit_and_variant(make: Make, service: EventService) -> None:
    clock = Clock()
    client = make(clock=clock, max_exposures=2)
    shown = assignment()
    assert client.log_exposure(shown, context={"platform": "ios"}) is not None
    assert [client.log_exposure(shown), client.log_exposure(None)] == [None, None]
    assert (
        client.log_exposure(assignment("u2")) is not None and client.log_exposure(assignment(variant="3")) is not None
    )
    # One more than the client remembers, so it has forgotten the first.
    assert client.log_exposure(shown) is not None
    clock.wait(86_399)
    assert client.log_exposure(shown) is None
    clock.wait(1)
    assert client.log_exposure(shown) is not None
    client.flush()
    first = next(iter(service.stored.values()))
    assert (first["event_type"], first["unit_id"], first["context"]) == ("exposure", "u1", {"platform": "ios"})
    assert first["experiments"] == [{"experiment_id": shown.experiment_id, "variant_id": shown.variant_id}]
    assert len(service.stored) == 5


def test_exposure_is_not_remembered_when_it_could_not_be_logged(make: Make, lost: list[LostEvent]) -> None:
    client = make()
    for _ in range(2):
        assert client.log_exposure(assignment(), context=cyclic()) is not None
    assert client.log_exposure(assignment()) is not None and client.log_exposure(assignment()) is None
    wrong: Any = "not an assignment"
    assert client.log_exposure(wrong) is not None
    assert [loss.code for loss in lost] == ["not_sendable"] * 3
    always_logs = make(exposure_every=0)
    assert always_logs.log_exposure(assignment()) and always_logs.log_exposure(assignment())


def test_flush_returns_false_and_keeps_events_while_the_service_is_away(make: Make, service: EventService) -> None:
    clock = Clock()
    client = make(clock=clock)
    service.then = always(Unreachable("away"))
    client.log("custom.x", **UNIT)
    assert not client.flush() and client.stats.spooled == 1
    service.then = lambda events: None
    clock.wait(1)
    assert client.flush() and service.units() == ["u1"] and client.stats.disk_bytes == 0


@pytest.mark.parametrize("kind", [EventClient, AsyncEventClient])
def test_close_sends_all_events_and_ends_the_thread(kind: Any, service: EventService, tmp_path: Path) -> None:
    lost: list[LostEvent] = []
    client = make_client(kind, service, tmp_path, on_error=lost.append)

    def close() -> None:
        asyncio.run(client.aclose()) if kind is AsyncEventClient else client.close()

    client.log("custom.x", **UNIT)
    close()
    assert service.units() == ["u1"]
    assert UUID(client.log("custom.x", **UNIT)) and [loss.code for loss in lost] == ["closed"]
    close()
    client._sender.join(10)
    assert not client._sender.is_alive() and client.stats.dropped == 1


def test_context_managers_send_the_last_events(service: EventService, tmp_path: Path) -> None:
    async def use() -> None:
        async with make_client(AsyncEventClient, service, tmp_path) as client:
            client.log("custom.x", unit_type="user", unit_id="async")
            assert await client.flush()

    with make_client(EventClient, service, tmp_path) as client:
        client.log("custom.x", unit_type="user", unit_id="sync")
    asyncio.run(use())
    assert service.units() == ["sync", "async"]


def test_no_thread_or_folder_exists_before_the_first_event(service: EventService, tmp_path: Path) -> None:
    before = threading.active_count()
    with make_client(EventClient, service, tmp_path / "spool") as client:
        assert client.log_exposure(None) is None and client.stats.logged == 0
        assert threading.active_count() == before
    assert not (tmp_path / "spool").exists()


@pytest.mark.parametrize("kind", [EventClient, AsyncEventClient])
def test_settings_come_from_the_environment_and_are_checked(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIFECYCLE_API_KEY", raising=False)
    monkeypatch.delenv("EVENT_SERVICE_URL", raising=False)
    with pytest.raises(ClientSetupError, match="No API key"):
        kind()
    assert kind(KEY)._options.url == "http://127.0.0.1:8000/api/v1/events/batch"
    monkeypatch.setenv("LIFECYCLE_API_KEY", KEY)
    monkeypatch.setenv("EVENT_SERVICE_URL", f"{EVENTS_URL}/base/")
    assert kind()._options.url == f"{EVENTS_URL}/base/api/v1/events/batch" and KEY not in repr(kind()._options)
    wrong: list[dict[str, Any]] = [
        {"timeout": 0}, {"flush_at": 0}, {"flush_every": -1}, {"max_buffered": 0}, {"max_spool_bytes": -1},
        {"exposure_every": float("nan")},
    ]  # fmt: skip
    for given in wrong:
        with pytest.raises(ClientSetupError):
            kind(**given)
