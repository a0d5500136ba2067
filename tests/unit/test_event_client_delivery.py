"""What the event client does with events after each answer of the service: it loses only refused events, and no event blocks the others.

Tests take the steps and set the clock. What a product calls: test_event_client.py. Files: test_event_client_disk.py.
"""

from pathlib import Path
from typing import Any

import pytest
from client_support import Clock
from event_client_support import EventService, always, event, make_delivery, make_reply, work
from hypothesis import given, settings
from hypothesis import strategies as st

from lifecycle_client import LostEvent
from lifecycle_client.wire import Reply, Unreachable

AWAY: dict[str, Reply | Unreachable] = {
    "no connection": Unreachable("ConnectError"),
    "429": make_reply(429, {"error": "rate_limited"}),
    "500": make_reply(500, {"error": "internal_error", "message": "Something went wrong."}),
    "502": make_reply(502, "<html>"),
    "503": make_reply(503, {"error": "service_unavailable", "message": "Later."}),
    "401": make_reply(401, {"error": "unauthorized", "message": "Send a valid API key."}),
    "403": make_reply(403, {"error": "forbidden", "message": "This API key lacks the scope `ingest`."}),
    "404": make_reply(404, "no such page"),
    "another program's 400": make_reply(400, "<html>"),
    "another program's 200": make_reply(200, "<html>please log in"),
    "a 200 that counts others": make_reply(200, {"accepted": 1_001, "rejected": 0}),
    "a redirect": make_reply(307),
}


@pytest.fixture
def service() -> EventService:
    return EventService()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_batch_is_sent_when_it_is_large_enough_or_a_second_old(
    tmp_path: Path, service: EventService, clock: Clock
) -> None:
    delivery = make_delivery(tmp_path, clock)
    for number in range(99):
        delivery.put(event(f"u{number}"))
    work(delivery, service, everything=False)
    assert service.batches == [] and delivery.due_in() == 1.0
    delivery.put(event("u99"))
    work(delivery, service, everything=False)
    assert [len(batch) for batch in service.batches] == [100]
    delivery.put(event("late"))
    clock.wait(1)
    work(delivery, service, everything=False)
    assert service.units() == [f"u{number}" for number in range(100)] + ["late"]


def test_batch_is_never_larger_than_the_service_accepts(tmp_path: Path, service: EventService, clock: Clock) -> None:
    delivery = make_delivery(tmp_path, clock)
    for number in range(2_100):
        delivery.put(event(f"u{number}"))
    for number in range(5):
        delivery.put(event(f"large{number}", 400_000))
    work(delivery, service)
    assert [len(batch) for batch in service.batches] == [1000, 1000, 102, 2, 1]
    assert delivery.stats().sent == len(service.stored) == 2_105


@pytest.mark.parametrize("on_disk", [True, False], ids=["disk", "memory"])
@pytest.mark.parametrize("reply", AWAY.values(), ids=AWAY.keys())
def test_outage_of_any_kind_loses_no_event(
    tmp_path: Path, service: EventService, clock: Clock, reply: Reply | Unreachable, on_disk: bool
) -> None:
    lost: list[LostEvent] = []
    delivery = make_delivery(tmp_path, clock, lost, max_spool_bytes=1_000_000 if on_disk else 0)
    units = [f"u{number}" for number in range(5)]
    for unit in units:
        delivery.put(event(unit))
    service.then = always(reply)
    work(delivery, service)
    assert len(service.batches) == 1 and lost == []
    work(delivery, service)
    assert len(service.batches) == 1 and delivery.due_in() <= 1.0
    stats = delivery.stats()
    assert (stats.buffered, stats.spooled, stats.disk_bytes > 0) == ((0, 5, True) if on_disk else (5, 0, False))
    service.then = lambda events: None
    clock.wait(1)
    work(delivery, service)
    assert service.units() == units and lost == []
    stats = delivery.stats()
    assert (stats.logged, stats.sent, stats.buffered, stats.disk_bytes) == (5, 5, 0, 0)


def test_waits_grow_and_follow_retry_after(tmp_path: Path, service: EventService, clock: Clock) -> None:
    delivery = make_delivery(tmp_path, clock)
    waits = []
    replies: list[Reply | Unreachable] = [Unreachable("away")] * 6
    for reply in (*replies, make_reply(503, retry_after="7"), make_reply(429, retry_after="86400")):
        delivery.put(event("u1"))
        service.then = always(reply)
        work(delivery, service)
        waits.append(delivery._breaker.seconds_left())
        clock.wait(waits[-1])
    assert waits == [1, 2, 4, 8, 16, 30, 7, 300] and len(service.batches) == len(waits)


@pytest.mark.parametrize("from_disk", [False, True], ids=["memory", "disk"])
def test_refused_events_are_reported_and_the_others_stored(
    tmp_path: Path, service: EventService, clock: Clock, from_disk: bool
) -> None:
    lost: list[LostEvent] = []
    delivery = make_delivery(tmp_path, clock, lost)
    service.bad = {"bad": "invalid_unit_id"}
    for unit in ("u1", "bad", "u2", "bad"):
        delivery.put(event(unit))
    if from_disk:
        service.then = always(Unreachable("away"))
        work(delivery, service)
        service.then = lambda events: None
        clock.wait(1)
    work(delivery, service)
    assert service.units() == ["u1", "u2"]
    assert [(loss.event_type, loss.code) for loss in lost] == [("custom.test", "invalid_unit_id")] * 2
    bad_ids = {sent["event_id"] for sent in service.batches[0] if sent["unit_id"] == "bad"}
    assert {loss.event_id for loss in lost} == bad_ids
    delivery.put(event("bad"))
    work(delivery, service)
    assert len(lost) == 3 and delivery.stats().refused == 3 and delivery.stats().disk_bytes == 0
    assert delivery.is_done(delivery._buffer.arrived)


@pytest.mark.parametrize("on_disk", [True, False], ids=["disk", "memory"])
def test_rate_limited_unit_waits_and_the_others_do_not(
    tmp_path: Path, service: EventService, clock: Clock, on_disk: bool
) -> None:
    lost: list[LostEvent] = []
    delivery = make_delivery(tmp_path, clock, lost, max_spool_bytes=100_000 if on_disk else 0)
    service.bad = {"noisy": "rate_limited"}
    for unit in ("u1", "noisy", "u2", "noisy"):
        delivery.put(event(unit))
    work(delivery, service)
    assert service.units() == ["u1", "u2"] and len(service.batches) == 1 and lost == []
    assert not delivery.is_done(delivery._buffer.arrived)
    assert 0 < delivery.due_in() <= 30
    clock.wait(30)
    service.bad.clear()
    work(delivery, service)
    assert service.units() == ["u1", "u2", "noisy", "noisy"] and delivery.is_done(delivery._buffer.arrived)
    assert (delivery.stats().sent, delivery.stats().refused, lost) == (4, 0, [])


def poison(service: EventService, reply: Reply) -> None:
    """Give this reply to every batch that contains the unit `poison`."""
    service.then = lambda events: reply if any(sent["unit_id"] == "poison" for sent in events) else None


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (make_reply(400, {"error": "validation_error", "message": "No.", "details": [{"field": "x", "error": "invalid_x"}]}), "invalid_x"),
        (make_reply(413, "<html>"), "payload_too_large"),
    ],
    ids=["400", "413"],
)  # fmt: skip
def test_event_is_singled_out_when_the_whole_batch_is_refused_because_of_it(
    tmp_path: Path, service: EventService, clock: Clock, reply: Reply, code: str
) -> None:
    lost: list[LostEvent] = []
    delivery = make_delivery(tmp_path, clock, lost)
    units = [f"u{number}" for number in range(100)]
    for unit in (*units[:37], "poison", *units[37:]):
        delivery.put(event(unit))
    poison(service, reply)
    work(delivery, service)
    assert service.units() == units and [loss.code for loss in lost] == [code]
    assert delivery.stats().buffered == 0 and len(service.batches) < 20


def test_event_that_crashes_the_service_holds_up_no_other(tmp_path: Path, service: EventService, clock: Clock) -> None:
    lost: list[LostEvent] = []
    delivery = make_delivery(tmp_path, clock, lost)
    units = [f"u{number}" for number in range(20)]
    for unit in (*units[:7], "poison", *units[7:]):
        delivery.put(event(unit))
    poison(service, make_reply(500, {"error": "internal_error", "message": "A defect."}))
    for _ in range(20):
        work(delivery, service)
        clock.wait(30)
    assert sorted(service.units()) == sorted(units) and lost == []
    service.then = lambda events: None
    clock.wait(30)
    work(delivery, service)
    assert service.units()[-1] == "poison" and delivery.stats().disk_bytes == 0


def test_new_events_do_not_wait_for_those_on_disk(tmp_path: Path, service: EventService, clock: Clock) -> None:
    delivery = make_delivery(tmp_path, clock)
    service.then = always(Unreachable("away"))
    for number in range(3_000):
        delivery.put(event(f"old{number}"))
    work(delivery, service)
    clock.wait(1)
    service.then = lambda events: None
    for number in range(200):
        delivery.put(event(f"new{number}"))
    service.batches.clear()
    for _ in range(2):
        delivery.step(service.take)
    assert {batch[0]["unit_id"][:3] for batch in service.batches} == {"old", "new"}
    work(delivery, service)
    assert [unit for unit in service.units() if unit.startswith("old")] == [f"old{number}" for number in range(3_000)]


def test_memory_is_limited_and_spills_to_disk_before_it_is_full(
    tmp_path: Path, service: EventService, clock: Clock
) -> None:
    lost: list[LostEvent] = []
    delivery = make_delivery(tmp_path, clock, lost, max_buffered=50)
    for number in range(200):
        delivery.put(event(f"u{number}"))
        if delivery.crowded:
            delivery.spill()
    assert lost == [] and delivery.stats().buffered <= 50
    work(delivery, service)
    assert len(service.stored) == 200

    for limit in ({"max_buffered": 50}, {"max_buffered_bytes": 50 * len(event("u1"))}):
        without_disk = make_delivery(tmp_path, clock, lost, max_spool_bytes=0, **limit)
        for number in range(60):
            without_disk.put(event(f"u{number % 10}"))
        assert [loss.code for loss in lost] == ["buffer_full"] * 10 and not without_disk.crowded
        assert (without_disk.stats().buffered, without_disk.stats().dropped) == (50, 10)
        lost.clear()


def test_memory_keeps_the_oldest_and_drops_the_newest_when_the_disk_is_full(
    tmp_path: Path, service: EventService, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    lost: list[LostEvent] = []
    delivery = make_delivery(tmp_path, clock, lost, max_spool_bytes=10, max_buffered=5)
    service.then = always(Unreachable("away"))
    for number in range(3):
        delivery.put(event(f"u{number}"))
    work(delivery, service)
    for number in range(3, 12):
        delivery.put(event(f"u{number}"))
        delivery.spill()
    work(delivery, service)
    assert len(lost) == 4 and {loss.code for loss in lost} == {"buffer_full"}
    assert len([line for line in caplog.messages if "cannot be written to disk" in line]) == 1
    service.then = lambda events: None
    clock.wait(30)
    work(delivery, service)
    assert service.units() == [f"u{number}" for number in range(8)]


def test_rescue_writes_memory_and_events_in_flight_to_disk(tmp_path: Path, service: EventService, clock: Clock) -> None:
    delivery = make_delivery(tmp_path, clock)
    for number in range(3):
        delivery.put(event(f"u{number}"))

    def ends_meanwhile(events: list[dict[str, Any]]) -> Reply | Unreachable | None:
        delivery.put(event("u3"))
        delivery.rescue()
        return None

    service.then = ends_meanwhile
    work(delivery, service)
    assert (delivery.put(event("too late")), delivery.stats().dropped, delivery.stats().spooled) == (0, 1, 4)
    service.then = lambda events: None
    work(make_delivery(tmp_path, clock), service)
    assert service.units() == ["u0", "u1", "u2", "u3"] and len(service.batches) == 2


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.sampled_from(["ok", "poison", "limited", *AWAY])), max_size=12),
    st.sampled_from([0, 900, 1_000_000]),
)
def test_each_event_is_stored_once_or_reported_as_lost(
    tmp_path_factory: pytest.TempPathFactory, rounds: list[tuple[int, str]], max_spool_bytes: int
) -> None:
    """Whatever the service answers: no event is both stored and lost, and together they are all that were logged."""
    clock, service, lost, logged = Clock(), EventService(), list[LostEvent](), 0
    delivery = make_delivery(
        tmp_path_factory.mktemp("spool"), clock, lost, max_spool_bytes=max_spool_bytes, max_buffered=6
    )
    for count, answer in rounds:
        service.bad = {"bad": "invalid_unit_id"} | ({"u2": "rate_limited"} if answer == "limited" else {})
        if answer == "poison":
            poison(service, make_reply(413))
        else:
            service.then = always(AWAY[answer]) if answer in AWAY else lambda events: None
        for number in range(count):
            delivery.put(event(["u1", "bad", "poison", "u2"][number]))
            logged += 1
        work(delivery, service)
        clock.wait(3)
    service.then, service.bad = lambda events: None, {"bad": "invalid_unit_id"}
    for _ in range(12):
        clock.wait(30)
        work(delivery, service)
    stored, reported = {event_id for event_id, _ in service.stored}, {loss.event_id for loss in lost}
    assert not (stored & reported) and len(stored) + len(reported) == logged == delivery.stats().logged
    stats = delivery.stats()
    assert (stats.sent, stats.refused + stats.dropped) == (len(stored), len(reported))
    assert (stats.buffered, stats.disk_bytes) == (0, 0)
