"""Events through COPY's text, to PostgreSQL and back."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eventlog.copy_lines import COLUMNS, copy_lines
from eventlog.validation import Event, ExperimentRef

# All that a text may hold, with what means something to COPY, to JSON and to arrays more often than by chance.
TEXT = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]) | st.sampled_from("\\\t\n\r\b'\",{}N."),
    max_size=90,
)
DATA = st.dictionaries(
    TEXT, st.recursive(st.none() | st.booleans() | TEXT, lambda one: st.lists(one) | st.dictionaries(TEXT, one))
)
AT = datetime(2025, 6, 1, tzinfo=UTC)
READ = f"SELECT {', '.join(COLUMNS)} FROM lines ORDER BY id"


def an_event(number: int, **changes: Any) -> Event:
    """An event of its own number."""
    given_fields: dict[str, Any] = {
        "event_type": "custom.x", "unit_type": "user", "unit_id": "u", "experiments": [], "context": {}, "metrics": {},
        "payload": None, "timestamp": AT + timedelta(microseconds=number), "flags": [],
    }  # fmt: skip
    return Event(event_id=UUID(int=number), **{**given_fields, **changes})


def stored(url: str, events: list[Event]) -> list[tuple[Any, ...]]:
    """What PostgreSQL makes of their lines."""
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TEMPORARY TABLE lines AS SELECT * FROM exp.events WITH NO DATA")
        with connection.cursor().copy(f"COPY lines ({', '.join(COLUMNS)}) FROM STDIN") as copy:
            copy.write(copy_lines(events))
        return connection.execute(READ).fetchall()


# What an example writes goes with its connection, so they may share the database.
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(st.tuples(TEXT, TEXT.filter(bool), DATA, st.none() | DATA), min_size=1, max_size=5))
def test_any_text_comes_back(database_url: str, names: list[tuple[str, str, Any, Any]]) -> None:
    events = [
        an_event(number, event_type=f"custom.{kind}", unit_id=unit, context=context, payload=payload)
        for number, (kind, unit, context, payload) in enumerate(names)
    ]
    found = stored(database_url, events)
    assert [(row[2], row[4], row[6], row[8]) for row in found] == [
        (event.event_type, event.unit_id, event.context, event.payload) for event in events
    ]


def test_every_column_comes_back(database_url: str) -> None:
    refs = [ExperimentRef(UUID(int=1), UUID(int=2))]
    metrics = {"a": 0.1, "b": -3, "c": 2**70}
    moment = datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)
    event = an_event(7, timestamp=moment, metrics=metrics, experiments=refs, flags=["late", "unknown_variant"])
    (row,) = stored(database_url, [event])
    assert row == (
        UUID(int=7), moment, "custom.x", "user", "u", [{"experiment_id": str(UUID(int=1)), "variant_id": str(UUID(int=2))}],
        {}, metrics, None, ["late", "unknown_variant"],
    )  # fmt: skip


def test_of_the_same_event_the_first_counts(database_url: str) -> None:
    first, again, later = an_event(1, unit_id="first"), an_event(1, unit_id="again"), an_event(1, timestamp=AT)
    found = stored(database_url, [first, again, later])
    assert sorted((row[1], row[4]) for row in found) == [(AT, "u"), (first.timestamp, "first")]
