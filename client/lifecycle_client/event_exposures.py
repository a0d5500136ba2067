"""Remembers recently logged exposures, so that showing the same variant again logs nothing."""

import hashlib
import threading
from collections import OrderedDict

from lifecycle_client.answers import Assignment


class RecentExposures:
    """The last `max_exposures`, each for `every` seconds; 0 remembers none. Safe to call from any thread and from a signal handler."""

    def __init__(self, every: float, max_exposures: int) -> None:
        self._every, self._max = every, max_exposures
        self._lock = threading.RLock()
        self._until: OrderedDict[bytes, float] = OrderedDict()

    def add(self, assignment: Assignment, now: float) -> bytes | None:
        """Remember that this unit sees this variant of this run now. Returns a key for `forget`, or None if it is already known."""
        seen = (assignment.unit_type, assignment.unit_id, assignment.experiment_id, assignment.variant_id)
        key = hashlib.blake2b("\0".join(seen).encode(), digest_size=16).digest()
        with self._lock:
            if self._until.get(key, now) > now:
                return None
            self._until[key] = now + self._every
            self._until.move_to_end(key)
            while len(self._until) > self._max:
                self._until.popitem(last=False)
        return key

    def forget(self, key: bytes) -> None:
        """Undo `add`, because the exposure could not be logged."""
        with self._lock:
            self._until.pop(key, None)

    def after_fork(self) -> None:
        """In the forked child: take a new lock, and keep what the parent logged."""
        self._lock = threading.RLock()
