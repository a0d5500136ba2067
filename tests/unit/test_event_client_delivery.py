"""What the event client does with events by the service's answers: nothing is lost but what is refused, and nothing waits behind it.

Steps are taken by hand on a clock set by hand. What a product calls: test_event_client.py. Files: test_event_client_disk.py.
"""

from pathlib import Path
from typing import Any

import pytest
from client_support import Clock
from event_client_support import EventService, always, event, make_delivery, said, work
from hypothesis import given, settings
from hypothesis import strategies as st

from lifecycle_client import LostEvent
from lifecycle_client.wire import Reply, Unreachable

AWAY: dict[str, Reply | Unreachable] = {
    "no connection": Unreachable("ConnectError"),
    "429": said(429, {"error": "rate_limited"}),
    "500": said(500, {"error": "internal_error", "message": "Something went wrong."}),
    "502": said(502, "<html>"),
    "503": said(503, {"error": "service_unavailable", "message": "Later."}),
    "401": said(401, {"error": "unauthorized", "message": "Send a valid API key."}),
    "403": said(403, {"error": "forbidden", "message": "This API key lacks the scope `ingest`."}),
    "404": said(404, "no such page"),
    "another program's 400": said(400, "<html>"),
    "another program's 200": said(200, "<html>please log in"),
    "a 200 that counts others": said(200, {"accepted": 1_001, "rejected": 0}),
    "a redirect": said(307),
}


@pytest.fixture
def service() -> EventService:
    return EventService()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_batch_goes_with_its_size_or_its_second(tmp_path: Path, service: EventService, clock: Clock) -> None:
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


def test_no_batch_is_larger_than_the_service_takes(tmp_path: Path, service: EventService, clock: Clock) -> None:
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
def test_whatever_keeps_the_service_from_storing_loses_nothing(
    tmp_path: Path, service: EventService, clock: Clock, reply: Reply | Unreachable, on_disk: bool
) -> None:
    lost: list[LostEvent] = []
    delivery = make_delivery(tmp_path, clock, lost, max_spool_bytes=1_000_000 if on_disk else 0)
    sent = [f"u{number}" for number in range(5)]
    for unit in sent:
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
    assert service.units() == sent and lost == []
    stats = delivery.stats()
    assert (stats.logged, stats.sent, stats.buffered, stats.disk_bytes) == (5, 5, 0, 0)


def test_retry_after_is_kept_and_waits_grow(tmp_path: Path, service: EventService, clock: Clock) -> None:
    delivery = make_delivery(tmp_path, clock)
    waits = []
    replies: list[Reply | Unreachable] = [Unreachable("away")] * 6
    for reply in (*replies, said(503, retry_after="7"), said(429, retry_after="86400")):
        delivery.put(event("u1"))
        service.then = always(reply)
        work(delivery, service)
        waits.append(delivery._breaker.seconds_left())
        clock.wait(waits[-1])
    assert waits == [1, 2, 4, 8, 16, 30, 7, 300] and len(service.batches) == len(waits)


@pytest.mark.parametrize("from_disk", [False, True], ids=["memory", "disk"])
def test_refused_events_are_told_and_the_others_stored(
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
    assert [(one.event_type, one.code) for one in lost] == [("custom.test", "invalid_unit_id")] * 2
    assert {one.event_id for one in lost} == {one["event_id"] for one in service.batches[0] if one["unit_id"] == "bad"}
    delivery.put(event("bad"))
    work(delivery, service)
    assert len(lost) == 3 and delivery.stats().refused == 3 and delivery.stats().disk_bytes == 0
    assert delivery.is_done(delivery._buffer.arrived)


@pytest.mark.parametrize("on_disk", [True, False], ids=["disk", "memory"])
def test_a_unit_over_its_limit_waits_and_the_others_do_not(
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
    """Any batch with the unit `poison` in it is answered so."""
    service.then = lambda events: reply if any(one["unit_id"] == "poison" for one in events) else None


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (said(400, {"error": "validation_error", "message": "Wrong.", "details": [{"field": "x", "error": "invalid_x"}]}), "invalid_x"),
        (said(413, "<html>"), "payload_too_large"),
    ],
    ids=["400", "413"],
)  # fmt: skip
def test_one_event_for_which_all_are_refused_is_singled_out(
    tmp_path: Path, service: EventService, clock: Clock, reply: Reply, code: str
) -> None:
    lost: list[LostEvent] = []
    delivery = make_delivery(tmp_path, clock, lost)
    units = [f"u{number}" for number in range(100)]
    for unit in (*units[:37], "poison", *units[37:]):
        delivery.put(event(unit))
    poison(service, reply)
    work(delivery, service)
    assert service.units() == units and [one.code for one in lost] == [code]
    assert delivery.stats().buffered == 0 and len(service.batches) < 20


def test_an_event_that_the_service_fails_on_holds_up_nobody(
    tmp_path: Path, service: EventService, clock: Clock
) -> None:
    lost: list[LostEvent] = []
    delivery = make_delivery(tmp_path, clock, lost)
    units = [f"u{number}" for number in range(20)]
    for unit in (*units[:7], "poison", *units[7:]):
        delivery.put(event(unit))
    poison(service, said(500, {"error": "internal_error", "message": "A defect."}))
    for _ in range(20):
        work(delivery, service)
        clock.wait(30)
    assert sorted(service.units()) == sorted(units) and lost == []
    service.then = lambda events: None
    clock.wait(30)
    work(delivery, service)
    assert service.units()[-1] == "poison" and delivery.stats().disk_bytes == 0


def test_new_events_do_not_wait_for_the_old_ones(tmp_path: Path, service: EventService, clock: Clock) -> None:
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


def test_memory_is_bounded_and_goes_to_disk_before_it_is_full(
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

    for bound in ({"max_buffered": 50}, {"max_buffered_bytes": 50 * len(event("u1"))}):
        without = make_delivery(tmp_path, clock, lost, max_spool_bytes=0, **bound)
        for number in range(60):
            without.put(event(f"u{number % 10}"))
        assert [one.code for one in lost] == ["buffer_full"] * 10 and not without.crowded
        assert (without.stats().buffered, without.stats().dropped) == (50, 10)
        lost.clear()


def test_a_full_disk_keeps_the_oldest_in_memory_and_drops_the_newest(
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
    assert len(lost) == 4 and {one.code for one in lost} == {"buffer_full"}
    assert len([line for line in caplog.messages if "can't go to disk" in line]) == 1
    service.then = lambda events: None
    clock.wait(30)
    work(delivery, service)
    assert service.units() == [f"u{number}" for number in range(8)]


def test_at_the_end_memory_and_what_is_on_its_way_go_to_disk(
    tmp_path: Path, service: EventService, clock: Clock
) -> None:
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
def test_each_event_is_stored_once_or_told_as_lost(
    tmp_path_factory: pytest.TempPathFactory, rounds: list[tuple[int, str]], max_spool_bytes: int
) -> None:
    """Whatever the service answers, in whatever order: stored and lost are disjoint, and together what was logged."""
    clock, service, lost, logged = Clock(), EventService(), list[LostEvent](), 0
    delivery = make_delivery(
        tmp_path_factory.mktemp("spool"), clock, lost, max_spool_bytes=max_spool_bytes, max_buffered=6
    )
    for count, answer in rounds:
        service.bad = {"bad": "invalid_unit_id"} | ({"u2": "rate_limited"} if answer == "limited" else {})
        if answer == "poison":
            poison(service, said(413))
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
    stored, told = {event_id for event_id, _ in service.stored}, {one.event_id for one in lost}
    assert not (stored & told) and len(stored) + len(told) == logged == delivery.stats().logged
    stats = delivery.stats()
    assert (stats.sent, stats.refused + stats.dropped) == (len(stored), len(told))
    assert (stats.buffered, stats.disk_bytes) == (0, 0)
