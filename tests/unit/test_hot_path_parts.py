"""The small parts of the hot path: cache, limits, grouping and metrics."""

import asyncio
import gc
import weakref
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from uuid import uuid4

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from experimentation.assignments.rules import ServedRun, ServedVariant
from serving.assignments.unit_cache import UnitCache
from serving.http.grouping import Grouped, OverloadedError
from serving.http.limits import BoundedMemory, Limits
from serving.http.metrics import AssignmentMetrics

VARIANT = ServedVariant(uuid4(), "control", "control", Decimal(1), {})
RUN = ServedRun(uuid4(), "planner", 1, "active", "user", (VARIANT,), fingerprint="before")
DECISION = RUN.as_stored[0]


def test_unit_cache_drops_entries_beyond_its_size_and_age() -> None:
    now = [0.0]
    units = UnitCache(2, 10, lambda: now[0])
    for unit in "abc":
        units.put(unit, RUN, 0)
    assert [units.get(unit, RUN) for unit in "abc"] == [None, DECISION, DECISION]
    units.get("b", RUN)
    units.put("d", RUN, 0)
    assert [units.get(unit, RUN) for unit in "bcd"] == [DECISION, None, DECISION]
    now[0] = 10.5
    assert units.get("b", RUN) is None
    assert len(units) == 1
    off = UnitCache(0, 10)
    off.put("a", RUN, 0)
    assert len(off) == 0


def test_unit_cache_drops_entries_when_the_run_changes() -> None:
    units = UnitCache(10, 10)
    units.put("a", RUN, 0)
    changed = replace(RUN, status="paused", fingerprint="after")
    assert units.get("a", changed) is None
    assert units.get("a", RUN) is None


def test_window_counts_until_it_expires() -> None:
    now = [1000.0]
    memory = BoundedMemory(clock=lambda: now[0])
    assert [memory.incr("a", 60) for _ in range(3)] == [1, 2, 3]
    assert (memory.get("a"), memory.get_expiry("a"), memory.get("b")) == (3, 1060.0, 0)
    now[0] = 1060.0
    assert (memory.get("a"), memory.incr("a", 60), memory.get_expiry("a")) == (0, 1, 1120.0)
    assert memory.check()
    assert memory.reset() == 1
    assert memory.get("a") == 0


def test_bounded_memory_drops_the_oldest_window_when_full() -> None:
    memory = BoundedMemory(max_counters=2)
    memory.incr("a", 60)
    memory.incr("b", 60)
    memory.incr("a", 60)
    memory.incr("c", 60)
    assert [memory.get(key) for key in "abc"] == [0, 1, 1]
    memory.clear("b")
    assert memory.get("b") == 0


def test_limits_count_separately_and_zero_switches_off() -> None:
    limits = Limits(2, 0, None)
    key = limits.unit.key("user/u1")
    assert [limits.wait(limits.unit, key) > 0 for _ in range(3)] == [False, False, True]
    assert 1 <= limits.wait(limits.unit, key) <= 60
    assert limits.wait(limits.unit, limits.unit.key("user/u2")) == 0
    assert [limits.wait(limits.api_key, limits.api_key.key("k")) for _ in range(50)] == [0] * 50


def test_many_units_do_not_displace_the_counter_of_a_key() -> None:
    limits = Limits(1_000_000, 50, None)
    key = limits.api_key.key("k")
    waits = []
    for number in range(150_000):
        limits.unit.exceeded(limits.unit.key(f"user/{number}"))
        if number % 1_500 == 0:
            waits.append(limits.wait(limits.api_key, key))
    assert [wait > 0 for wait in waits] == [False] * 50 + [True] * 50


def test_request_is_rejected_at_once_when_queue_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.http.grouping.MAX_WAITING", 3)

    async def ask_all() -> list[int | BaseException]:
        release = asyncio.Event()

        async def work(asks: Sequence[int]) -> list[int]:
            await release.wait()
            return list(asks)

        grouped: Grouped[int, int] = Grouped(work, in_flight=1)
        first = asyncio.create_task(grouped.ask(0))
        while not grouped.groups_in_flight:
            await asyncio.sleep(0)
        others = [asyncio.create_task(grouped.ask(n)) for n in range(1, 5)]
        await asyncio.sleep(0)
        release.set()
        return list(await asyncio.gather(first, *others, return_exceptions=True))

    answers = asyncio.run(ask_all())
    assert answers[:4] == [0, 1, 2, 3]
    assert isinstance(answers[4], OverloadedError)


def test_concurrent_items_are_sent_in_few_groups() -> None:
    groups: list[int] = []

    async def work(asks: Sequence[int]) -> list[int]:
        groups.append(len(asks))
        await asyncio.sleep(0)
        return [ask * 2 for ask in asks]

    async def ask_all() -> list[int]:
        grouped: Grouped[int, int] = Grouped(work, size=40)
        alone = await grouped.ask(21)
        assert (alone, groups) == (42, [1])
        return list(await asyncio.gather(*(grouped.ask(n) for n in range(100))))

    assert asyncio.run(ask_all()) == [n * 2 for n in range(100)]
    assert sum(groups) == 101
    assert len(groups) <= 5
    assert max(groups) <= 40


@pytest.mark.parametrize("in_flight", [1, 2])
def test_caller_gets_an_answer_when_it_asks_again_at_once(in_flight: int) -> None:
    """The end of one group wakes all callers, and they ask again before anything else runs. None of them may wait forever."""

    async def work(asks: Sequence[int]) -> list[int]:
        await asyncio.sleep(0)
        return list(asks)

    async def ask_all() -> int:
        grouped: Grouped[int, int] = Grouped(work, in_flight=in_flight)

        async def again_and_again(number: int) -> int:
            return sum([await grouped.ask(number) for _ in range(20)])

        return sum(await asyncio.wait_for(asyncio.gather(*(again_and_again(n) for n in range(8))), 20))

    assert asyncio.run(ask_all()) == 20 * sum(range(8))


def test_failure_reaches_all_callers_of_a_group_and_the_next_group_runs() -> None:
    async def work(asks: Sequence[int]) -> list[int]:
        if 0 in asks:
            raise ValueError("not this one")
        return list(asks)

    async def ask_all() -> list[int | BaseException]:
        grouped: Grouped[int, int] = Grouped(work)
        failed = await asyncio.gather(*(grouped.ask(n) for n in range(3)), return_exceptions=True)
        assert all(isinstance(error, ValueError) for error in failed)
        return list(await asyncio.gather(*(grouped.ask(n) for n in range(1, 4)), return_exceptions=True))

    assert asyncio.run(ask_all()) == [1, 2, 3]


def test_cancelled_caller_does_not_cancel_the_others() -> None:
    started = asyncio.Event()

    async def ask_all() -> tuple[bool, int]:
        release = asyncio.Event()

        async def work(asks: Sequence[int]) -> list[int]:
            started.set()
            await release.wait()
            return list(asks)

        grouped: Grouped[int, int] = Grouped(work, in_flight=1)
        leaving, staying = asyncio.create_task(grouped.ask(1)), asyncio.create_task(grouped.ask(2))
        await started.wait()
        leaving.cancel()
        release.set()
        (left,) = await asyncio.gather(leaving, return_exceptions=True)
        return left != 1, await staying

    assert asyncio.run(ask_all()) == (True, 2)


def test_prometheus_can_read_the_assignment_metrics() -> None:
    metrics = AssignmentMetrics()
    registry = CollectorRegistry()
    registry.register(metrics)
    for seconds in (0.0005, 0.001, 0.03, 9.0):
        metrics.count_request("assigned", "planner")
        metrics.observe_latency("planner", seconds)
    metrics.count_new("planner")
    metrics.hits, metrics.misses = 3, 1
    samples = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
    }
    assert samples["assignment_requests_total", "assigned", "planner"] == 4
    assert samples["new_assignments_total", "planner"] == 1
    assert (samples["cache_hits_total",], samples["cache_misses_total",]) == (3, 1)
    within = {
        end: samples["assignment_latency_seconds_bucket", end, "planner"]
        for end in ("0.001", "0.02", "0.05", "5.0", "+Inf")
    }
    assert within == {"0.001": 2, "0.02": 2, "0.05": 3, "5.0": 3, "+Inf": 4}
    assert samples["assignment_latency_seconds_sum", "planner"] == pytest.approx(9.0315)
    assert samples["assignment_latency_seconds_count", "planner"] == 4


class Large:
    """An item that supports weak references, so that the test can see whether it is freed."""


def test_failed_items_are_not_kept_alive_by_their_exceptions() -> None:
    references: list[weakref.ref[Large]] = []

    async def work(_: Sequence[Large]) -> Sequence[None]:
        raise ValueError

    async def ask(grouped: Grouped[Large, None]) -> None:
        large = Large()
        references.append(weakref.ref(large))
        with pytest.raises(ValueError):
            await grouped.ask(large)

    async def several() -> None:
        grouped: Grouped[Large, None] = Grouped(work, in_flight=1)
        for _ in range(3):
            await asyncio.gather(*(ask(grouped) for _ in range(5)))

    gc.disable()
    try:
        asyncio.run(several())
        assert [reference() for reference in references] == [None] * 15
    finally:
        gc.enable()
