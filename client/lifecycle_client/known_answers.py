"""Keeps known answers, fresh and stale; drops the least recently used first."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

from lifecycle_client.wire import Known


class Key(NamedTuple):
    """What an answer depends on. `context` is the fingerprint of the context, empty if there is none."""

    unit_type: str
    unit_id: str
    experiment: str
    context: bytes
    enroll: bool


@dataclass(frozen=True, slots=True)
class Entry:
    """An answer, and the times (the clock's seconds) until which it is fresh and until which it may be used at all."""

    answer: Known
    fresh_until: float
    known_until: float


class KnownAnswers:
    """At most `max_entries` answers."""

    def __init__(self, max_entries: int) -> None:
        self._max_entries = max_entries
        self._entries: OrderedDict[Key, Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Key, now: float) -> Entry | None:
        """The answer, fresh or stale; None if there is none that may still be used."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if now >= entry.known_until:
            del self._entries[key]
            return None
        self._entries.move_to_end(key)
        return entry

    def put(self, key: Key, entry: Entry) -> None:
        """Keep an answer. Drops the least recently used one if there are too many."""
        self._entries[key] = entry
        self._entries.move_to_end(key)
        while len(self._entries) > self._max_entries:
            self._entries.popitem(last=False)

    def drop(self, key: Key) -> None:
        """Forget an answer, if there is one."""
        self._entries.pop(key, None)
