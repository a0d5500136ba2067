"""Stored assignments in the memory of this process."""

import time
from collections import OrderedDict
from collections.abc import Callable

from experimentation.assignments.rules import Decision, ServedRun


class UnitCache:
    """The variants of recently seen units; the least recently used entry goes first.

    Rows never change. An entry counts only for the run fingerprint that it was stored with, so a change of the experiment drops it.
    """

    def __init__(self, entries: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Keeps at most `entries` (0: none), each for `seconds`."""
        self._entries, self._seconds, self._clock = entries, seconds, clock
        # Run fingerprint, variant index, expiry time: only types that Python's garbage collector does not track.
        self._units: OrderedDict[str, tuple[str, int, float]] = OrderedDict()

    def __len__(self) -> int:
        """The number of cached units."""
        return len(self._units)

    def get(self, key: str, run: ServedRun) -> Decision | None:
        """The decision for the unit's row, or None if it must be looked up. `key`: the run's cache key plus the unit's id."""
        entry = self._units.get(key)
        if entry is None:
            return None
        if entry[0] != run.fingerprint or entry[2] < self._clock():
            del self._units[key]
            return None
        self._units.move_to_end(key)
        return run.as_stored[entry[1]]

    def put(self, key: str, run: ServedRun, variant_index: int) -> None:
        """Remember that the unit's row has the run's variant at that index. The row must be committed."""
        if self._entries == 0:
            return
        self._units[key] = run.fingerprint, variant_index, self._clock() + self._seconds
        self._units.move_to_end(key)
        if len(self._units) > self._entries:
            self._units.popitem(last=False)
