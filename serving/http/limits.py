"""Limits of requests a minute, by the `limits` library: for a unit, its events, and an API key.

In memory each process counts for itself; with Redis all instances count together. While Redis is away each counts for itself again.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping

from limits import RateLimitItemPerMinute
from limits.aio.storage import RedisStorage
from limits.errors import ConfigurationError
from limits.storage import Storage

from serving.http.redis_link import NO_ADDRESS, TIMEOUT_SECONDS, RedisLink

MAX_COUNTERS = 100_000


class BoundedMemory(Storage):
    """Fixed windows in at most `most` counters, for one thread.

    The library's own MemoryStorage looks through all its counters from a timer thread, every 10 ms, and holds as many as there are
    units in a minute. When this one is full, its oldest window ends early: that may let a unit through, and never refuses one.
    """

    STORAGE_SCHEME = ["bounded-memory"]  # noqa: RUF012 - as the library has it

    def __init__(
        self,
        uri: str | None = None,
        wrap_exceptions: bool = False,
        most: int = MAX_COUNTERS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Empty."""
        super().__init__(uri, wrap_exceptions)
        self._windows: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self._most, self._clock = most, clock

    @property
    def base_exceptions(self) -> type[Exception]:
        """What `wrap_exceptions` would wrap."""
        return ValueError

    def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        """Count, in a window of `expiry` seconds that begins with the first count."""
        return self.count(key, expiry, amount)

    def count(self, key: str, expiry: float, amount: int = 1, now: float | None = None) -> int:
        """The same, without what the library wraps around `incr` to translate errors, of which there are none here.

        Who counts for many keys may say what time it is `now`.
        """
        now = self._clock() if now is None else now
        windows = self._windows
        window = windows.get(key)
        if window is not None:
            if window[1] > now:
                windows[key] = window[0] + amount, window[1]
                return window[0] + amount
            # Out and in again, so that the order of insertion stays the order in which windows began.
            del windows[key]
        if len(windows) >= self._most:
            windows.popitem(last=False)
        windows[key] = amount, now + expiry
        return amount

    def get(self, key: str) -> int:
        """What the window has counted."""
        count, ends = self._windows.get(key, (0, 0.0))
        return count if ends > self._clock() else 0

    def get_expiry(self, key: str) -> float:
        """When the window ends, in seconds since 1970."""
        return self._windows.get(key, (0, self._clock()))[1]

    def check(self) -> bool:
        """It is always well."""
        return True

    def reset(self) -> int:
        """Forget all; how many counters there were."""
        forgotten = len(self._windows)
        self._windows.clear()
        return forgotten

    def clear(self, key: str) -> None:
        """Forget one."""
        self._windows.pop(key, None)


class Limit:
    """So many requests a minute for each of something."""

    def __init__(self, amount: int, namespace: str, memory: BoundedMemory, shared: RedisStorage | None) -> None:
        """0 switches it off."""
        # The library's key for a name, cut around the name: building it anew costs as much as counting.
        around = RateLimitItemPerMinute(amount, 1, namespace).key_for("{name}")
        self._before, _, self._after = around.partition("{name}")
        self.on = bool(amount)
        self.amount, self._memory, self._shared = amount, memory, shared

    def key(self, name: str) -> str:
        """What counts for `name`; the caller may keep it."""
        return self._before + name + self._after

    def over(self, key: str) -> bool:
        """Count a request in this process; whether it is one too many."""
        return self.on and self._memory.count(key, 60) > self.amount

    def count(self, key: str, more: int) -> int:
        """Count `more` in this process; how many are too many now, of those `more`."""
        return min(more, max(0, self._memory.count(key, 60, more) - self.amount)) if self.on else 0

    def count_all(self, counts: Mapping[str, int]) -> dict[str, int]:
        """The same for several keys, of which those are returned that have too many."""
        if not self.on:
            return {}
        now, count = time.time(), self._memory.count
        totals = {key: count(key, 60, more, now) for key, more in counts.items()}
        return {key: min(counts[key], total - self.amount) for key, total in totals.items() if total > self.amount}

    def wait(self, key: str) -> int:
        """Seconds until the window ends, at least 1."""
        return max(1, round(self._memory.get_expiry(key) - time.time()))

    async def over_shared(self, key: str, link: RedisLink) -> tuple[bool, int] | None:
        """The same among all instances, with the seconds to wait; None while Redis is away."""
        shared = self._shared
        if shared is None or not self.on:
            return False, 0
        count = await link.ask(lambda: shared.incr(key, 60))
        if count is None:
            return None
        if count <= self.amount:
            return False, 0
        ends = await link.ask(lambda: shared.get_expiry(key))
        return True, max(1, round((ends or time.time() + 60) - time.time()))

    async def count_shared(self, key: str, more: int, link: RedisLink) -> int | None:
        """As `count`, among all instances; None while Redis is away."""
        shared = self._shared
        if shared is None or not self.on:
            return 0
        count = await link.ask(lambda: shared.incr(key, 60, amount=more))
        return None if count is None else min(more, max(0, count - self.amount))


class Limits:
    """The limits of a unit's assignments, of its events, and of a key's requests."""

    def __init__(
        self, unit_per_minute: int, key_per_minute: int, link: RedisLink | None, unit_events_per_minute: int = 0
    ) -> None:
        """0 switches a limit off; with a `link` all instances count together. Raises ValueError for an address that is none."""
        shared = None if link is None else _shared(link)
        self._link = link
        # Apart, so that many units do not push the few keys out.
        self.unit = Limit(unit_per_minute, "unit", BoundedMemory(), shared)
        self.api_key = Limit(key_per_minute, "key", BoundedMemory(), shared)
        self.unit_events = Limit(unit_events_per_minute, "events", BoundedMemory(), shared)

    @property
    def shared(self) -> bool:
        """Whether Redis counts, so that `wait_shared` is to be asked."""
        return self._link is not None

    def wait(self, limit: Limit, key: str) -> int:
        """Count a request in this process; the seconds to wait when it is one too many, else 0."""
        return limit.wait(key) if limit.over(key) else 0

    async def wait_shared(self, limit: Limit, key: str) -> int:
        """Count a request among all instances; the seconds to wait when it is one too many, else 0."""
        found = None if self._link is None else await limit.over_shared(key, self._link)
        if found is None:
            return self.wait(limit, key)
        return found[1] if found[0] else 0

    async def too_many(self, limit: Limit, counts: Mapping[str, int]) -> dict[str, int]:
        """Count so many for each key, among all instances; how many of them are too many, for the keys where some are."""
        link = self._link
        if link is None or not limit.on:
            return limit.count_all(counts)
        # Side by side: a batch may hold a thousand units, and each is a round trip.
        replies = await asyncio.gather(*(limit.count_shared(key, more, link) for key, more in counts.items()))
        found = {
            key: limit.count(key, more) if reply is None else reply
            for (key, more), reply in zip(counts.items(), replies, strict=True)
        }
        return {key: over for key, over in found.items() if over}


def _shared(link: RedisLink) -> RedisStorage:
    try:
        return RedisStorage(
            f"async+{link.url.replace('unix://', 'redis+unix://', 1)}",
            implementation="redispy",
            socket_timeout=TIMEOUT_SECONDS,
            socket_connect_timeout=TIMEOUT_SECONDS,
        )
    except ConfigurationError:
        raise ValueError(NO_ADDRESS) from None
