"""The real cooking diary, from its two files to training rows, with exact counts.

The literal numbers were counted with the csv module, not with the code under test: records per person, divided by five and
rounded down, without the two recipes of more than 24 hours.
"""

import csv
from collections import Counter
from datetime import UTC, date, datetime
from functools import cache
from pathlib import Path

import psycopg
import pytest

from eventlog.archive.archiving import archive_history
from eventlog.archive.cleaning import clean_history
from eventlog.partitions import ensure_event_partitions
from eventlog.store import store_events
from foundation.object_store import ObjectStore
from planner.catalogue import Catalogue
from planner.history import History, HistoryOptions, read_history
from planner.meal_planner import MealPlanner
from planner.rows import build_rows
from planner.sessions import events_frame
from planner.store import domain_frames, store_tables
from product.protocol import RowWindow

WINDOW = RowWindow(datetime(2001, 1, 1, tzinfo=UTC), datetime(2010, 1, 1, tzinfo=UTC), 366)
STORED = {"recipes": 379, "households": 251, "household_constraints": 0, "pantry_snapshots": 0}


@cache
def read(folder: Path, plan_size: int = 5, max_minutes: int = 1440) -> History:
    return read_history(
        folder / "recipes.csv",
        folder / "interactions_to_2009.csv",
        HistoryOptions(plan_size=plan_size, max_minutes=max_minutes),
    )


def test_every_record_is_counted_or_rejected(cooking_history: Path) -> None:
    history = read(cooking_history)
    assert history.counts == {
        "recipes_read": 381,
        "recipes": 379,
        "records_read": 7721,
        "records": 7677,
        "households": 251,
        "plans": 1427,
        "rated_plans": 1427,
        "records_repeated_in_a_plan": 0,
        "records_of_unfinished_plans": 542,
        "rejected": 46,
    }
    assert history.rejects_by_reason() == {"absurd_minutes": 2, "refused_recipe": 44}
    assert 7677 == 1427 * 5 + 542
    absurd = [reject for reject in history.rejects if reject.reason == "absurd_minutes"]
    assert sorted(reject.detail for reject in absurd) == [
        "1,920 minutes; at most 1,440 are accepted",
        "7,205 minutes; at most 1,440 are accepted",
    ]
    lines = (cooking_history / "recipes.csv").read_text().splitlines()
    assert [lines[reject.line - 1].split(",")[2] for reject in absurd] in (["1920", "7205"], ["7205", "1920"])


def test_plans_match_an_independent_count(cooking_history: Path) -> None:
    history = read(cooking_history)
    with (cooking_history / "recipes.csv").open(newline="") as file:
        minutes = {row["id"]: int(row["minutes"]) for row in csv.DictReader(file)}
    with (cooking_history / "interactions_to_2009.csv").open(newline="") as file:
        records = [row for row in csv.DictReader(file) if minutes[row["recipe_id"]] <= 1440]
    by_person = Counter(row["user_id"] for row in records)
    plans = Counter(event["unit_id"] for event in history.events)
    assert plans == {person: count // 5 for person, count in by_person.items() if count >= 5}
    # Every usable record is in exactly one plan, or in its person's last, unfinished one.
    used = Counter(
        (event["unit_id"], meal["recipe_id"], day)
        for event in history.events
        for meal, day in zip(event["payload"]["meals"], event["payload"]["meal_dates"], strict=True)
    )
    given = Counter((row["user_id"], row["recipe_id"], row["date"]) for row in records)
    assert used <= given
    assert sum((given - used).values()) == 542
    ratings = [float(row["rating"]) for row in records if row["rating"] != "0"]
    rated = sum(event["metrics"]["rating_count"] for event in history.events)
    assert len(ratings) - 542 <= rated <= len(ratings)
    for event in history.events:
        days = event["payload"]["meal_dates"]
        assert days == sorted(days)
        assert f"{event['timestamp']:%Y-%m-%d}" == days[-1]


@pytest.mark.parametrize(
    ("plan_size", "max_minutes", "recipes", "plans"),
    [(5, 10_000, 381, 1435), (7, 10_000, 381, 993), (5, 1440, 379, 1427)],
)
def test_counts_change_with_plan_size_and_max_minutes(
    cooking_history: Path, plan_size: int, max_minutes: int, recipes: int, plans: int
) -> None:
    counts = read(cooking_history, plan_size, max_minutes).counts
    assert (counts["recipes"], counts["plans"]) == (recipes, plans)


def test_rows_are_split_by_time_and_contain_the_previous_plan(cooking_history: Path) -> None:
    history = read(cooking_history)
    dataset = build_rows(events_frame(history.events), history.tables, WINDOW, replay_from=date(2008, 1, 1))
    assert dataset.excluded == {}
    rows = dataset.frame.to_dicts()
    assert len(rows) == 1427
    for row in rows:
        late = row["metadata"]["timestamp"] >= datetime(2008, 1, 1, tzinfo=UTC)
        assert (row["metadata"]["split"] == "replay") == late
        assert row["metadata"]["reconstructed"] and row["metadata"]["proposed_plan"] is None
        eaten = {meal["recipe_id"] for plan in row["input"]["recent_plans"] for meal in plan["meals"]}
        # Nobody in this diary reviews a recipe twice, so this would fail if the history contained the plan itself.
        assert not eaten & {meal["recipe_id"] for meal in row["target"]["accepted_plan"]["meals"]}
    with_history = sum(row["input"]["previous_plan"] is not None for row in rows)
    assert 1000 < with_history < 1427


def test_diary_is_unchanged_after_postgresql_and_the_archive(
    cooking_history: Path, database_url: str, tmp_path: Path
) -> None:
    history, store = read(cooking_history), ObjectStore(str(tmp_path))
    first_day = datetime.now(UTC).date()
    with psycopg.connect(database_url) as connection:
        ensure_event_partitions(connection, first_day)
        assert store_tables(connection, history.tables) == STORED
        assert store_events(connection, history.events) == 1427
        assert store_events(connection, history.events) == 0
        connection.commit()
        months = archive_history(connection, store, first_day)
        assert sum(month.rows for month in months) == 1427
        domain = domain_frames(connection)
    cleaned = clean_history(store)
    assert cleaned.frame.height == 1427
    assert cleaned.dropped == {}
    assert cleaned.frame["reconstructed"].all()
    assert "late" not in cleaned.flagged
    direct = build_rows(events_frame(history.events), history.tables, WINDOW).frame
    assert build_rows(cleaned.frame, domain, WINDOW).frame.equals(direct)
    product = MealPlanner(Catalogue.from_records(domain["recipes"].to_dicts()))
    assert all(product.prompt(row["input"]) for row in direct.head(50).to_dicts())
