"""The order of lines for COPY, without a database."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from eventlog.copy_lines import copy_lines
from eventlog.validation import Event

START = datetime(2025, 6, 1, tzinfo=UTC)


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0, 1, 10, 500_000, 500_001, 999_999, 1_000_000]))))
def test_copy_lines_are_in_the_order_of_the_primary_key(keys: list[tuple[int, int]]) -> None:
    events = [
        Event(UUID(int=number), "exposure", "user", "u", [], {}, {}, None, START + timedelta(microseconds=late))
        for number, late in keys
    ]
    lines = copy_lines(events).decode().splitlines()
    line_keys = [(UUID(line.split("\t")[0]).int, datetime.fromisoformat(line.split("\t")[1])) for line in lines]
    assert line_keys == sorted({(event.event_id.int, event.timestamp) for event in events})
