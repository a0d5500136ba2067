"""When the service may be asked: after a failure not before its wait is over, and then by one caller first."""

from collections.abc import Callable

FIRST_WAIT_SECONDS = 1.0
LONGEST_WAIT_SECONDS = 30.0
# A proxy's day-long Retry-After must not silence a client for a day.
LONGEST_RETRY_AFTER_SECONDS = 300.0
# Up to a quarter later than asked for, never earlier, so that many clients do not come back in one instant.
JITTER = 0.25
# A unit has a limit of its own: one noisy unit is held back alone. So many at once mean that it is the key's limit.
MOST_HELD_UNITS = 10

Ticket = int


class Breaker:
    """Counts failures in a row. A ticket names the state that a request began in: what an older request tells is old news."""

    def __init__(self, clock: Callable[[], float], jitter: Callable[[], float]) -> None:
        """`clock` in seconds; `jitter` gives numbers from 0 on and below 1."""
        self._clock, self._jitter = clock, jitter
        self._failures = 0
        self._until = float("-inf")
        self._state: Ticket = 0
        self._probing = False
        self._held: dict[tuple[str, str], float] = {}

    def enter(self, unit: tuple[str, str]) -> Ticket | None:
        """May the service be asked about this unit now? None: no. A ticket is given back by one of the methods below."""
        now = self._clock()
        if self._held.get(unit, now) > now:
            return None
        if self._failures:
            if self._probing or now < self._until:
                return None
            self._probing = True
        return self._state

    def seconds_left(self) -> float:
        """How long nobody may ask about any unit; 0 when the service may be asked."""
        return max(0.0, self._until - self._clock()) if self._failures else 0.0

    def succeeded(self, ticket: Ticket) -> None:
        """The service answered."""
        if ticket == self._state and self._failures:
            self._failures, self._probing = 0, False
            self._state += 1

    def failed(self, ticket: Ticket, retry_after: float | None) -> float | None:
        """The service is away; returns the wait in seconds, None when another request told so before."""
        if ticket != self._state:
            return None
        self._failures += 1
        self._probing = False
        self._state += 1
        wait = self._wait(retry_after)
        self._until = self._clock() + wait
        return wait

    def limited(self, ticket: Ticket, unit: tuple[str, str], retry_after: float | None) -> float | None:
        """The service is there and says: too many requests. Holds the unit back, or everybody when many units are held."""
        now = self._clock()
        self._held = {each: until for each, until in self._held.items() if until > now and each != unit}
        if len(self._held) + 1 >= MOST_HELD_UNITS:
            self._held.clear()
            return self.failed(ticket, retry_after)
        wait = self._wait(retry_after)
        self._held[unit] = now + wait
        self.succeeded(ticket)
        return wait

    def abandoned(self, ticket: Ticket) -> None:
        """The request ended without telling anything about the service."""
        if ticket == self._state:
            self._probing = False

    def forget_probe(self) -> None:
        """After a fork: whoever was asking is in the other process."""
        self._probing = False
        self._state += 1

    def _wait(self, retry_after: float | None) -> float:
        if retry_after is None:
            wait = min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2.0 ** min(max(self._failures - 1, 0), 10))
        else:
            wait = min(retry_after, LONGEST_RETRY_AFTER_SECONDS)
        return wait * (1 + JITTER * self._jitter())
