"""Ids for events that have none."""

import secrets
import time
from uuid import UUID

_RANDOM_BITS = 74


def new_event_id() -> UUID:
    """A UUID of version 7 (RFC 9562, section 5.7): 48 bits of milliseconds since 1970, the rest random.

    Ids of the same time are neighbours in the primary key's index, so that inserts touch few of its pages.
    """
    random = secrets.randbits(_RANDOM_BITS)
    milliseconds = time.time_ns() // 1_000_000
    return UUID(int=milliseconds << 80 | 0x7 << 76 | (random >> 62) << 64 | 0x2 << 62 | random & (1 << 62) - 1)
