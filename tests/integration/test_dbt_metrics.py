"""`exp.metric_aggregates` on a real database: every number is compared with one computed here, also after incremental builds.

One database goes through several steps (empty, filled, built again, late events, a backfill, an override). Each test looks at snapshots of
the aggregates after these steps.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from dbt_support import (
    CONTROL,
    DAYS,
    FIRST_DAY,
    OTHER,
    OTHER_RUN,
    PERCENTILES,
    RATES,
    RUN,
    TREATMENT,
    Event,
    Key,
    Warehouse,
    assert_numbers,
    event,
    expected,
    fill,
    moments_of,
    new_warehouse,
    odd_events,
    ordinary_events,
)  # fmt: skip


@dataclass
class Story:
    """Snapshots of the aggregates and dbt's own results after each step."""

    warehouse: Warehouse
    pictures: dict[str, dict[Key, dict[str, Any]]] = field(default_factory=dict)
    statuses: dict[str, dict[str, str]] = field(default_factory=dict)
    events: dict[str, list[Event]] = field(default_factory=dict)
    overridden: dict[str, set[tuple[str, str]]] = field(default_factory=dict)
    late: Event = field(default_factory=dict)

    def build(self, step: str, *arguments: str, **variables: str) -> None:
        self.statuses[step] = self.warehouse.dbt(*(arguments or ("build",)), variables=variables)
        self.pictures[step] = self.warehouse.aggregates()
        self.events[step] = list(self.warehouse.events)
        self.overridden[step] = set(self.warehouse.overridden)


@pytest.fixture(scope="module")
def story(postgres_server: str, migrated_template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    with new_warehouse(postgres_server, migrated_template, tmp_path_factory.mktemp("dbt")) as warehouse:
        yield build_all(warehouse)


def build_all(warehouse: Warehouse) -> Story:
    story = Story(warehouse)
    story.build("empty")

    fill(warehouse.url)
    warehouse.override(RUN, "qa")
    warehouse.store(ordinary_events() + odd_events())
    story.build("filled")
    story.build("again")

    # A late event on the first day, and one on the third day whose transaction began before the last build and committed after it.
    now = datetime.now(UTC)
    story.late = event(
        "plan_generated", FIRST_DAY + timedelta(hours=3), [CONTROL], metrics={"latency_ms": 9999.5}, created_at=now
    )
    committed_late = event(
        "plan_generated",
        FIRST_DAY + timedelta(days=2, hours=3),
        [TREATMENT],
        metrics={"latency_ms": 5},
        created_at=now - timedelta(minutes=30),
    )
    warehouse.store([story.late, committed_late])
    warehouse.remove([event for event in warehouse.events if "custom_score" in event["metrics"]])
    story.build("late", "run", "--select", "metric_aggregates")

    # Nothing is stored here, so no build can know that the events of the second day are gone.
    second_day = (FIRST_DAY + timedelta(days=1)).date()
    warehouse.remove([event for event in warehouse.events if event["timestamp"].date() == second_day])
    story.build("unnoticed", "run", "--select", "metric_aggregates")
    story.build("backfilled", "build", recompute_from="2026-03-08", recompute_to="2026-03-08")

    # This unit has events on days for which nothing was stored recently.
    warehouse.override(RUN, "h-1")
    story.build("overridden", "run", "--select", "metric_aggregates")
    return story


def unexpected(statuses: Mapping[str, str], *expected: str) -> dict[str, str]:
    return {name: status for name, status in statuses.items() if status not in expected}


def test_an_empty_database_builds_without_aggregates(story: Story) -> None:
    assert not unexpected(story.statuses["empty"], "success", "pass", "no-op")
    assert story.pictures["empty"] == {}


def test_a_filled_database_builds_without_failures(story: Story) -> None:
    for step in ("filled", "again"):
        assert not unexpected(story.statuses[step], "success", "pass", "no-op")


@pytest.mark.parametrize("step", ["filled", "late", "backfilled", "overridden"])
def test_every_number_matches_its_events(story: Story, step: str) -> None:
    assert_numbers(story.pictures[step], expected(story.events[step], story.overridden[step]))


def test_all_metrics_of_the_specification_exist(story: Story) -> None:
    metrics = {metric for _, variant, metric, _, _ in story.pictures["filled"] if variant == CONTROL}
    named = {"latency_ms", "token_count", "cost_usd", "edit_count", *PERCENTILES, *RATES, "cost_per_plan"}
    assert metrics == named | {"custom_score"}


def test_daily_rows_are_the_merge_of_their_hours(story: Story) -> None:
    picture = story.pictures["filled"]
    merged = 0
    for (run, variant, metric, kind, day), row in picture.items():
        if kind != "daily" or metric in PERCENTILES:
            continue
        hours = [
            other for (a, b, c, hourly, start), other in picture.items()
            if (a, b, c, hourly) == (run, variant, metric, "hourly") and day <= start < day + timedelta(days=1)
        ]  # fmt: skip
        assert row["count"] == sum(hour["count"] for hour in hours)
        if row["sum"] is not None:
            assert row["sum"] == pytest.approx(
                math.fsum(hour["sum"] for hour in hours if hour["sum"] is not None), rel=1e-12
            )
        # The hourly means of the offset metric are rounded to whole numbers: the day is exact, merging the hours' doubles is not.
        if row["stddev"] is not None and metric != "offset_metric":
            within = math.fsum((hour["stddev"] or 0.0) ** 2 * (hour["count"] - 1) for hour in hours)
            between = math.fsum(hour["count"] * (hour["mean"] - row["mean"]) ** 2 for hour in hours)
            assert row["stddev"] == pytest.approx(math.sqrt((within + between) / (row["count"] - 1)), rel=1e-9)
            merged += 1
    assert merged > 10


def test_aggregates_are_exact_when_values_have_a_large_offset(story: Story) -> None:
    row = story.pictures["filled"][OTHER_RUN, OTHER, "offset_metric", "daily", FIRST_DAY]
    assert row["stddev"] == pytest.approx(np.std([1, 2, 4], ddof=1), rel=1e-12)
    assert row["sum"] == 3e15 + 7


def test_a_rate_without_a_denominator_is_null(story: Story) -> None:
    hour = FIRST_DAY + timedelta(days=DAYS, hours=1)
    picture = story.pictures["filled"]
    assert moments_of(picture[RUN, TREATMENT, "acceptance_rate", "hourly", hour]) == (0, 1, None, None, None, None)
    assert picture[RUN, TREATMENT, "cost_per_plan", "hourly", hour]["mean"] is None
    assert picture[RUN, TREATMENT, "avg_edits_per_plan", "hourly", hour]["mean"] == 1


def test_a_second_build_changes_nothing(story: Story) -> None:
    assert story.pictures["again"] == story.pictures["filled"]


def test_a_late_event_changes_only_its_day(story: Story) -> None:
    before, after = story.pictures["again"], story.pictures["late"]
    changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    hour = story.late["timestamp"]
    assert (RUN, CONTROL, "latency_p99", "daily", FIRST_DAY) in changed
    assert (RUN, CONTROL, "latency_ms", "hourly", hour) in changed
    assert {key[4].date() for key in changed} == {FIRST_DAY.date(), (FIRST_DAY + timedelta(days=2)).date()}
    # Unchanged rows are not touched, not even those of the same day.
    assert (RUN, TREATMENT, "latency_ms", "daily", FIRST_DAY) not in changed
    assert (
        after[RUN, CONTROL, "latency_ms", "daily", FIRST_DAY]["created_at"]
        > before[RUN, CONTROL, "latency_ms", "daily", FIRST_DAY]["created_at"]
    )


def test_rows_of_a_metric_are_removed_when_its_events_are_gone(story: Story) -> None:
    assert any(key[2] == "custom_score" for key in story.pictures["again"])
    assert not any(key[2] == "custom_score" for key in story.pictures["late"])


def test_a_backfill_removes_rows_of_deleted_events(story: Story) -> None:
    second = FIRST_DAY + timedelta(days=1)
    assert story.pictures["unnoticed"] == story.pictures["late"]
    left = {key for key in story.pictures["backfilled"] if second <= key[4] < second + timedelta(days=1)}
    assert left == set()
    others = {
        key: row for key, row in story.pictures["late"].items() if not second <= key[4] < second + timedelta(days=1)
    }
    assert story.pictures["backfilled"] == others


def test_unit_no_longer_counts_on_any_day_when_it_is_overridden_late(story: Story) -> None:
    last_hour = (RUN, TREATMENT, "acceptance_rate", "hourly", FIRST_DAY + timedelta(days=DAYS, hours=1))
    assert last_hour in story.pictures["backfilled"]
    assert last_hour not in story.pictures["overridden"]


def test_an_override_does_not_affect_other_runs(story: Story) -> None:
    noon = FIRST_DAY + timedelta(hours=12)
    assert story.pictures["filled"][OTHER_RUN, OTHER, "latency_ms", "hourly", noon]["max"] == 1e6
    assert story.pictures["filled"][RUN, TREATMENT, "latency_ms", "hourly", noon]["max"] < 1e6
