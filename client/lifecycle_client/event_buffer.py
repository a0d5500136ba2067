"""Events in memory, in order, limited in number and bytes."""

import threading
from collections import deque
from collections.abc import Sequence

from lifecycle_client.event_wire import MAX_BATCH, MAX_BATCH_BYTES


class Buffer:
    """Every method is safe to call from any thread, and from a signal handler that interrupts another method."""

    def __init__(self, flush_at: int, flush_every: float, max_events: int, max_bytes: int) -> None:
        """A batch is due with `flush_at` events, or `flush_every` seconds after the first. Full at `max_events` or `max_bytes`."""
        self._flush_at, self._flush_every = flush_at, flush_every
        self._max_events, self._max_bytes = max_events, max_bytes
        # Reentrant, for the signal handler.
        self._lock = threading.RLock()
        self._events: deque[bytes] = deque()
        self._bytes = 0
        self._since = 0.0
        self.taken = 0
        """Number of events that have left the buffer."""
        self.closed = False
        """Whether the buffer refuses new events."""

    def __len__(self) -> int:
        return len(self._events)

    @property
    def arrived(self) -> int:
        """Number of events that ever entered the buffer."""
        with self._lock:
            return self.taken + len(self._events)

    @property
    def crowded(self) -> bool:
        """Whether the buffer is more than half full."""
        return len(self._events) * 2 > self._max_events or self._bytes * 2 > self._max_bytes

    def put(self, event: bytes, now: float) -> int:
        """Add an event. Returns the number of events in the buffer, or 0 if it is full or closed and the event was not added."""
        with self._lock:
            if self.closed or len(self._events) >= self._max_events or self._bytes + len(event) > self._max_bytes:
                return 0
            if not self._events:
                self._since = now
            self._events.append(event)
            self._bytes += len(event)
            return len(self._events)

    def put_back(self, events: Sequence[bytes]) -> None:
        """Undo `take`."""
        with self._lock:
            self._events.extendleft(reversed(events))
            self._bytes += sum(len(event) for event in events)
            self.taken -= len(events)

    def close(self) -> None:
        """Refuse new events; those inside can still be taken."""
        with self._lock:
            self.closed = True

    def take(self) -> list[bytes]:
        """Remove and return the oldest events, as many as fit a batch. A single event may be larger than a batch."""
        events: list[bytes] = []
        size = 0
        with self._lock:
            while (
                self._events
                and len(events) < MAX_BATCH
                and (not events or size + len(self._events[0]) <= MAX_BATCH_BYTES)
            ):
                events.append(self._events.popleft())
                size += len(events[-1])
            self._bytes -= size
            self.taken += len(events)
        return events

    def due_in(self, now: float) -> float | None:
        """Seconds until a batch is due, 0 or less if it is due now; None if the buffer is empty."""
        with self._lock:
            if not self._events:
                return None
            return 0.0 if len(self._events) >= self._flush_at else self._since + self._flush_every - now
