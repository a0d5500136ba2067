"""Stored assignments held in this process."""

import time
from collections import OrderedDict
from collections.abc import Callable

from experimentation.assignments.rules import Decision, ServedRun


class UnitCache:
    """The variants of units seen lately, least recent out first. Rows never change, and an entry is only good for the very picture of its
    run that it was made with, so that a change of the experiment drops its entries."""

    def __init__(self, entries: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """At most `entries` (0: none) for `seconds` each."""
        self._entries, self._seconds, self._clock = entries, seconds, clock
        # The run's fingerprint, the variant's place, and until when: nothing that Python's garbage collector would have to look through.
        self._units: OrderedDict[str, tuple[str, int, float]] = OrderedDict()

    def __len__(self) -> int:
        """How many units are held."""
        return len(self._units)

    def get(self, key: str, run: ServedRun) -> Decision | None:
        """The decision from the unit's row, or None when it has to be looked up. `key`: the run's cache key and the unit's id."""
        found = self._units.get(key)
        if found is None:
            return None
        if found[0] != run.fingerprint or found[2] < self._clock():
            del self._units[key]
            return None
        self._units.move_to_end(key)
        return run.as_stored[found[1]]

    def put(self, key: str, run: ServedRun, place: int) -> None:
        """Remember that the unit's row names the variant at that place of the run. Only what is committed may be put here."""
        if self._entries == 0:
            return
        self._units[key] = run.fingerprint, place, self._clock() + self._seconds
        self._units.move_to_end(key)
        if len(self._units) > self._entries:
            self._units.popitem(last=False)
