"""Events written to PostgreSQL as COPY text and read back."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eventlog.copy_lines import COLUMNS, copy_lines
from eventlog.validation import Event, ExperimentRef

# Any text, with more of the characters that are special in COPY, JSON and arrays.
TEXT = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]) | st.sampled_from("\\\t\n\r\b'\",{}N."),
    max_size=90,
)
DATA = st.dictionaries(
    TEXT, st.recursive(st.none() | st.booleans() | TEXT, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner))
)
AT = datetime(2025, 6, 1, tzinfo=UTC)
READ = f"SELECT {', '.join(COLUMNS)} FROM lines ORDER BY id"


def an_event(number: int, **changes: Any) -> Event:
    """An event with this number as its id."""
    fields: dict[str, Any] = {
        "event_type": "custom.x", "unit_type": "user", "unit_id": "u", "experiments": [], "context": {}, "metrics": {},
        "payload": None, "timestamp": AT + timedelta(microseconds=number), "flags": [],
    }  # fmt: skip
    return Event(event_id=UUID(int=number), **{**fields, **changes})


def stored(url: str, events: list[Event]) -> list[tuple[Any, ...]]:
    """The rows that PostgreSQL stores for the events."""
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TEMPORARY TABLE lines AS SELECT * FROM exp.events WITH NO DATA")
        with connection.cursor().copy(f"COPY lines ({', '.join(COLUMNS)}) FROM STDIN") as copy:
            copy.write(copy_lines(events))
        return connection.execute(READ).fetchall()


# Examples write to a temporary table that ends with their connection, so they can share the database.
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.data_too_large, HealthCheck.too_slow],
)
@given(names=st.lists(st.tuples(TEXT, TEXT.filter(bool), DATA, st.none() | DATA), min_size=1, max_size=5))
def test_copied_events_keep_any_text(database_url: str, names: list[tuple[str, str, Any, Any]]) -> None:
    events = [
        an_event(number, event_type=f"custom.{kind}", unit_id=unit, context=context, payload=payload)
        for number, (kind, unit, context, payload) in enumerate(names)
    ]
    rows = stored(database_url, events)
    assert [(row[2], row[4], row[6], row[8]) for row in rows] == [
        (event.event_type, event.unit_id, event.context, event.payload) for event in events
    ]


def test_copied_events_keep_every_column(database_url: str) -> None:
    refs = [ExperimentRef(UUID(int=1), UUID(int=2))]
    metrics = {"a": 0.1, "b": -3, "c": 2**70}
    moment = datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)
    event = an_event(7, timestamp=moment, metrics=metrics, experiments=refs, flags=["late", "unknown_variant"])
    (row,) = stored(database_url, [event])
    assert row == (
        UUID(int=7), moment, "custom.x", "user", "u", [{"experiment_id": str(UUID(int=1)), "variant_id": str(UUID(int=2))}],
        {}, metrics, None, ["late", "unknown_variant"],
    )  # fmt: skip


def test_copy_writes_only_the_first_of_equal_events(database_url: str) -> None:
    first, again, later = an_event(1, unit_id="first"), an_event(1, unit_id="again"), an_event(1, timestamp=AT)
    rows = stored(database_url, [first, again, later])
    assert sorted((row[1], row[4]) for row in rows) == [(AT, "u"), (first.timestamp, "first")]
