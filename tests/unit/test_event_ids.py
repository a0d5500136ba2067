"""Event ids: UUIDs of version 7, unique and in order of time."""

import time
from datetime import UTC, datetime

from eventlog.event_ids import new_event_id


def test_event_id_holds_its_time_and_version() -> None:
    before = time.time_ns() // 1_000_000
    event_id = new_event_id()
    after = time.time_ns() // 1_000_000
    # RFC 9562: 48 bits of milliseconds, the version in the next four, the variant 0b10 in the two after bit 64.
    assert before <= event_id.int >> 80 <= after
    assert (event_id.version, event_id.variant) == (7, "specified in RFC 4122")
    assert abs(datetime.fromtimestamp((event_id.int >> 80) / 1000, UTC) - datetime.now(UTC)).total_seconds() < 60


def test_event_ids_are_unique_and_in_order_of_time() -> None:
    ids = [new_event_id() for _ in range(20_000)]
    assert len(set(ids)) == len(ids)
    numbers = [event_id.int for event_id in ids]
    assert [number >> 80 for number in numbers] == sorted(number >> 80 for number in numbers)
    # Both random parts, of 12 and 62 bits, really are random.
    assert len({(number >> 64) & 0xFFF for number in numbers}) > 4000
    assert sum(number & 1 for number in numbers) in range(9_000, 11_000)
    assert sum(number >> 61 & 1 for number in numbers) in range(9_000, 11_000)
