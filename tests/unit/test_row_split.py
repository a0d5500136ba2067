"""The split of rows: by household or by time, near the requested shares, and repeatable."""

from datetime import date, timedelta
from functools import cache
from typing import Any

import polars as pl

from planner.catalogue import sample_catalogue
from planner.rows import assign_split, planner_rows, split_of
from planner.sessions import events_frame
from planner.simulator import simulate
from product.protocol import RowWindow


@cache
def world() -> tuple[pl.DataFrame, dict[str, pl.DataFrame], RowWindow, list[dict[str, Any]]]:
    sample = simulate(sample_catalogue(), seed=5, households=25, weeks=5, end=date(2025, 6, 1))
    events = events_frame(sample.events)
    window = RowWindow(sample.start, sample.end, 28)
    return events, sample.tables, window, planner_rows(events, sample.tables, window).to_dicts()


def test_split_is_by_household_and_near_its_shares() -> None:
    draws = [split_of(f"household-{number}") for number in range(20_000)]
    held_out = sum(held for held, _ in draws) / len(draws)
    validation = sum(checked for held, checked in draws if not held) / sum(not held for held, _ in draws)
    assert abs(held_out - 0.2) < 0.01
    assert abs(validation - 0.1) < 0.01
    assert split_of("h1") == split_of("h1")
    assert [split_of(f"h{number}", "a") for number in range(99)] != [
        split_of(f"h{number}", "b") for number in range(99)
    ]


def test_each_household_is_on_one_side() -> None:
    _, _, _, rows = world()
    sides: dict[str, set[str]] = {}
    for row in rows:
        sides.setdefault(row["input"]["household"]["id"], set()).add(row["metadata"]["split"])
    assert all(len(splits) == 1 for splits in sides.values())
    assert len({*map(tuple, sides.values())}) > 1


def test_replay_is_split_by_time_and_training_by_household_when_a_day_is_set() -> None:
    events, tables, window, _ = world()
    day = (window.start + timedelta(days=21)).date()
    frame = planner_rows(events, tables, window, replay_from=day)
    splits = {(row["metadata"]["timestamp"].date() >= day, row["metadata"]["split"]) for row in frame.to_dicts()}
    assert splits <= {(True, "replay"), (False, "train"), (False, "validation")}
    assert {late for late, _ in splits} == {True, False}
    assert assign_split(planner_rows(events, tables, window), replay_from=day).equals(frame)
