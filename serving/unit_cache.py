"""Stored assignments held in this process.

Belongs here: bounds in entries and time. Does not belong here: where they come from, what Redis holds (shared_units.py).
"""

import time
from collections import OrderedDict
from collections.abc import Callable

from experimentation.assignments import Decision, ServedRun


class UnitCache:
    """What units seen lately were answered from their rows, least recent out first. Rows never change, and an entry is only good for
    the very picture of its run that it was made with, so that a change of the experiment drops its entries."""

    def __init__(self, entries: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """At most `entries` (0: none) for `seconds` each."""
        self._entries, self._seconds, self._clock = entries, seconds, clock
        self._units: OrderedDict[str, tuple[ServedRun, Decision, float]] = OrderedDict()

    def __len__(self) -> int:
        """How many units are held."""
        return len(self._units)

    def get(self, run: ServedRun, unit_id: str) -> Decision | None:
        """The decision from the unit's row, or None when it has to be looked up."""
        key = run.cache_key + unit_id
        found = self._units.get(key)
        if found is None:
            return None
        if found[0] is not run or found[2] < self._clock():
            del self._units[key]
            return None
        self._units.move_to_end(key)
        return found[1]

    def put(self, run: ServedRun, unit_id: str, decision: Decision) -> None:
        """Remember what a row says. Only what is committed may be put here."""
        if self._entries == 0:
            return
        key = run.cache_key + unit_id
        self._units[key] = run, decision, self._clock() + self._seconds
        self._units.move_to_end(key)
        if len(self._units) > self._entries:
            self._units.popitem(last=False)
