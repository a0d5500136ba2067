"""Ids of events: of version 7, in order of time, never twice."""

import time
from datetime import UTC, datetime

from eventlog.event_ids import new_event_id


def test_an_id_tells_its_time_and_says_what_it_is() -> None:
    before = time.time_ns() // 1_000_000
    made = new_event_id()
    after = time.time_ns() // 1_000_000
    # RFC 9562: 48 bits of milliseconds, the version in the next four, the variant 0b10 in the two after bit 64.
    assert before <= made.int >> 80 <= after
    assert (made.version, made.variant) == (7, "specified in RFC 4122")
    assert abs(datetime.fromtimestamp((made.int >> 80) / 1000, UTC) - datetime.now(UTC)).total_seconds() < 60


def test_ids_differ_and_follow_each_other() -> None:
    ids = [new_event_id() for _ in range(20_000)]
    assert len(set(ids)) == len(ids)
    assert [one.int >> 80 for one in ids] == sorted(one.int >> 80 for one in ids)
    # Both parts that are random really are: 12 bits and 62 bits.
    assert len({(one.int >> 64) & 0xFFF for one in ids}) > 4000
    assert sum(one.int & 1 for one in ids) in range(9_000, 11_000) and sum(one.int >> 61 & 1 for one in ids) in range(
        9_000, 11_000
    )
