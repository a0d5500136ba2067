"""Decides when the service may be asked. After a failure everybody waits; then one caller tries first."""

from collections.abc import Callable

FIRST_WAIT_SECONDS = 1.0
LONGEST_WAIT_SECONDS = 30.0
# A proxy's day-long Retry-After must not silence a client for a day.
LONGEST_RETRY_AFTER_SECONDS = 300.0
# Wait up to a quarter longer, never shorter, so that many clients do not come back at the same instant.
JITTER = 0.25
# Each unit has its own limit, so one noisy unit is held back alone. This many at once mean that the limit of the key is reached.
MOST_HELD_UNITS = 10

Ticket = int


class Breaker:
    """Counts failures in a row. A ticket names the state in which a request began, so that the result of an older request is ignored."""

    def __init__(self, clock: Callable[[], float], jitter: Callable[[], float]) -> None:
        """`clock` returns seconds; `jitter` returns numbers from 0 up to, but not including, 1."""
        self._clock, self._jitter = clock, jitter
        self._failures = 0
        self._until = float("-inf")
        self._state: Ticket = 0
        self._probing = False
        self._held: dict[tuple[str, str], float] = {}

    def enter(self, unit: tuple[str, str]) -> Ticket | None:
        """A ticket if the service may be asked about this unit now, else None. Return the ticket with one of the methods below."""
        now = self._clock()
        if self._held.get(unit, now) > now:
            return None
        if self._failures:
            if self._probing or now < self._until:
                return None
            self._probing = True
        return self._state

    def seconds_left(self) -> float:
        """Seconds until the service may be asked about any unit; 0 if it may be asked now."""
        return max(0.0, self._until - self._clock()) if self._failures else 0.0

    def succeeded(self, ticket: Ticket) -> None:
        """The service answered."""
        if ticket == self._state and self._failures:
            self._failures, self._probing = 0, False
            self._state += 1

    def failed(self, ticket: Ticket, retry_after: float | None) -> float | None:
        """The service is away. Returns the wait in seconds, or None if another request reported this failure already."""
        if ticket != self._state:
            return None
        self._failures += 1
        self._probing = False
        self._state += 1
        wait = self._wait(retry_after)
        self._until = self._clock() + wait
        return wait

    def limited(self, ticket: Ticket, unit: tuple[str, str], retry_after: float | None) -> float | None:
        """The service reports too many requests. Holds the unit back, or all units if many are held back already."""
        now = self._clock()
        self._held = {other: until for other, until in self._held.items() if until > now and other != unit}
        if len(self._held) + 1 >= MOST_HELD_UNITS:
            self._held.clear()
            return self.failed(ticket, retry_after)
        wait = self._wait(retry_after)
        self._held[unit] = now + wait
        self.succeeded(ticket)
        return wait

    def abandoned(self, ticket: Ticket) -> None:
        """The request ended without a result that says anything about the service."""
        if ticket == self._state:
            self._probing = False

    def forget_probe(self) -> None:
        """After a fork: the caller that was probing the service lives in the other process."""
        self._probing = False
        self._state += 1

    def _wait(self, retry_after: float | None) -> float:
        if retry_after is None:
            wait = min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2.0 ** min(max(self._failures - 1, 0), 10))
        else:
            wait = min(retry_after, LONGEST_RETRY_AFTER_SECONDS)
        return wait * (1 + JITTER * self._jitter())
