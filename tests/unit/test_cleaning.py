"""Cleaning: duplicates are dropped, odd events are flagged, and both are counted by reason."""

import random
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest

from eventlog.archive.cleaning import CLEANED_SCHEMA, clean
from eventlog.archive.files import EVENT_SCHEMA

NOW = datetime(2025, 3, 3, 12, tzinfo=UTC)
RAW = pl.DataFrame(EVENT_SCHEMA.empty_table()).schema


def archived(**fields: Any) -> dict[str, Any]:
    return {
        **dict.fromkeys(RAW),
        "event_id": "e1",
        "event_type": "plan_generated",
        "unit_type": "household",
        "unit_id": "h",
        "experiments": [],
        "context": "{}",
        "metrics": [],
        "payload": '{"plan_id": "p1"}',
        "timestamp": NOW,
        "created_at": fields.get("timestamp") or NOW,
        "flags": [],
        **fields,
    }


def frame(*events: dict[str, Any]) -> pl.DataFrame:
    return pl.DataFrame(list(events), schema=RAW, orient="row")


def test_duplicates_are_dropped_and_events_are_ordered_by_time() -> None:
    events = [archived(event_id=f"e{number}", timestamp=NOW + timedelta(minutes=number)) for number in range(20)]
    again = [*events, *events[:5], archived(event_id="e3", timestamp=NOW + timedelta(hours=9))]
    random.Random(1).shuffle(again)
    cleaned = clean(frame(*again))
    assert cleaned.frame["event_id"].to_list() == [*(f"e{number}" for number in range(20)), "e3"]
    assert cleaned.dropped == {"duplicate": 5}
    assert cleaned.flagged == {}
    assert cleaned.frame.schema == pl.Schema(CLEANED_SCHEMA)


def test_first_stored_version_is_kept_when_an_event_has_two() -> None:
    late = archived(created_at=NOW + timedelta(seconds=5), unit_id="second")
    assert clean(frame(late, archived(unit_id="first"))).frame["unit_id"].to_list() == ["first"]


@pytest.mark.parametrize("name", ["event_id", "event_type", "unit_type", "unit_id", "timestamp"])
def test_an_event_without_its_identity_is_dropped_and_counted(name: str) -> None:
    cleaned = clean(frame(archived(**{name: None}), archived(event_id="whole")))
    assert cleaned.frame["event_id"].to_list() == ["whole"]
    assert cleaned.dropped == {"malformed": 1}


@pytest.mark.parametrize(
    ("fields", "flags"),
    [
        ({}, []),
        ({"flags": ["old_app"]}, ["old_app"]),
        ({"flags": None}, []),
        ({"created_at": NOW - timedelta(minutes=6)}, ["ahead_of_clock"]),
        ({"created_at": NOW + timedelta(days=8)}, ["late"]),
        ({"created_at": NOW + timedelta(days=8), "flags": ["late", "x"]}, ["late", "x"]),
        ({"created_at": NOW + timedelta(days=8), "payload": '{"plan_id": "p", "reconstructed": true}'}, []),
        ({"payload": None}, ["no_plan_id"]),
        ({"payload": '{"plan": 1}'}, ["no_plan_id"]),
        ({"payload": "[1, 2]"}, ["no_plan_id"]),
        ({"payload": None, "event_type": "exposure"}, []),
        (
            {"latency_ms": float("nan"), "metrics": [{"key": "latency_ms", "value": float("nan")}]},
            ["metric_not_a_number"],
        ),
        ({"metrics": [{"key": "own", "value": None}]}, ["metric_not_a_number"]),
        ({"metrics": [{"key": "own", "value": 1.0}]}, []),
    ],
)
def test_odd_events_stay_and_are_flagged(fields: dict[str, Any], flags: list[str]) -> None:
    cleaned = clean(frame(archived(**fields)))
    assert cleaned.frame["flags"].to_list() == [flags]
    assert cleaned.flagged == dict.fromkeys(flags, 1)


def test_metrics_that_are_not_numbers_become_null() -> None:
    infinite = archived(cost_usd=float("inf"), latency_ms=3.0)
    row = clean(frame(infinite)).frame.row(0, named=True)
    assert (row["cost_usd"], row["latency_ms"], row["edit_count"]) == (None, 3.0, None)


def test_reconstructed_events_are_marked() -> None:
    events = [archived(event_id=str(at), payload=payload) for at, payload in
              enumerate(['{"reconstructed": true}', '{"reconstructed": false}', '{"reconstructed": "yes"}', None])]  # fmt: skip
    assert clean(frame(*events)).frame["reconstructed"].to_list() == [True, False, False, False]


def test_cleaned_frame_keeps_its_schema_without_events() -> None:
    cleaned = clean(frame())
    assert (cleaned.frame.schema, cleaned.frame.height) == (pl.Schema(CLEANED_SCHEMA), 0)
    assert (cleaned.dropped, cleaned.flagged) == ({}, {})
