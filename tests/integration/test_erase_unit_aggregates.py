"""Aggregates of an erased unit's events: the next dbt build rebuilds their days, except days that retention dropped."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
from dbt_support import FIRST_DAY, Warehouse, assert_numbers, expected, fill, new_warehouse, ordinary_events

from orchestration.erasure import database
from orchestration.erasure.findings import Unit

UNIT = Unit("household", "h-7")
DAY = timedelta(days=1)
BUILD = ("run", "-s", "+metric_aggregates")


@pytest.fixture
def warehouse(
    postgres_server: str, migrated_template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Warehouse]:
    with new_warehouse(postgres_server, migrated_template, tmp_path_factory.mktemp("dbt")) as warehouse:
        fill(warehouse.url)
        warehouse.store(ordinary_events())
        warehouse.dbt(*BUILD)
        yield warehouse


def erase(warehouse: Warehouse, pseudonym: str | None = None) -> database.Erased:
    with warehouse.connect() as connection:
        return database.erase(connection, UNIT, pseudonym)


def test_removed_events_leave_the_aggregates(warehouse: Warehouse) -> None:
    all_units = expected(warehouse.events, set())
    assert_numbers(warehouse.aggregates(), all_units)
    others = [event for event in warehouse.events if event["unit_id"] != UNIT.unit_id]
    # A day that retention dropped: its aggregates can't be rebuilt, although it is recorded as erased.
    gone = FIRST_DAY + 2 * DAY
    warehouse.rows(f"INSERT INTO exp.erased_days (day, partition) VALUES ('{gone}', 'events_19990101') RETURNING 1")
    warehouse.rows(f"DELETE FROM exp.events WHERE timestamp >= '{gone}' RETURNING 1")
    erased = erase(warehouse)
    assert erased.rows["exp.events"] == sum(
        event["unit_id"] == UNIT.unit_id and event["timestamp"] < gone for event in warehouse.events
    )
    assert erased.days == (FIRST_DAY, FIRST_DAY + DAY)
    warehouse.dbt(*BUILD)
    wanted = {key: numbers for key, numbers in all_units.items() if key[-1] >= gone}
    wanted |= {key: numbers for key, numbers in expected(others, set()).items() if key[-1] < gone}
    assert wanted != all_units
    assert_numbers(warehouse.aggregates(), wanted)


def test_pseudonymised_events_count_as_before(warehouse: Warehouse) -> None:
    before = warehouse.aggregates()
    assert erase(warehouse, "erased-x").rows["exp.events"] > 10
    recompute = {"recompute_from": f"{FIRST_DAY:%Y-%m-%d}", "recompute_to": f"{FIRST_DAY + 2 * DAY:%Y-%m-%d}"}
    warehouse.dbt(*BUILD, variables=recompute)
    assert warehouse.aggregates() == before
