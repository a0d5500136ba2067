"""Limits per minute, with the `limits` library: requests of a unit, events of a unit, and requests of an API key.

Each process counts in memory. With Redis, all instances share their counts; while Redis is unavailable, each counts for itself.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping

from limits import RateLimitItemPerMinute
from limits.aio.storage import RedisStorage
from limits.errors import ConfigurationError
from limits.storage import Storage

from serving.http.best_effort_redis import INVALID_URL, TIMEOUT_SECONDS, BestEffortRedis

MAX_COUNTERS = 100_000


class BoundedMemory(Storage):
    """Fixed windows in at most `max_counters` counters, for one thread.

    The library's own MemoryStorage is unbounded, and its timer thread scans all counters every 10 ms. When this one is full, its oldest
    window ends early, which may allow too many requests and never too few.
    """

    STORAGE_SCHEME = ["bounded-memory"]  # noqa: RUF012 - the library's declaration

    def __init__(
        self,
        uri: str | None = None,
        wrap_exceptions: bool = False,
        max_counters: int = MAX_COUNTERS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Has no counters yet."""
        super().__init__(uri, wrap_exceptions)
        self._windows: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self._max_counters, self._clock = max_counters, clock

    @property
    def base_exceptions(self) -> type[Exception]:
        """The exceptions that `wrap_exceptions` wraps."""
        return ValueError

    def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        """Add to the counter and return its value. The window of `expiry` seconds begins with the first count."""
        return self.count(key, expiry, amount)

    def count(self, key: str, expiry: float, amount: int = 1, now: float | None = None) -> int:
        """Like `incr`, without the library's wrapper that translates errors, because there are none here.

        A caller that counts many keys can pass the time as `now`.
        """
        now = self._clock() if now is None else now
        windows = self._windows
        window = windows.get(key)
        if window is not None:
            if window[1] > now:
                windows[key] = window[0] + amount, window[1]
                return window[0] + amount
            # Remove and insert, so that the insertion order stays the order in which windows began.
            del windows[key]
        if len(windows) >= self._max_counters:
            windows.popitem(last=False)
        windows[key] = amount, now + expiry
        return amount

    def get(self, key: str) -> int:
        """The counter's value in the current window."""
        count, ends = self._windows.get(key, (0, 0.0))
        return count if ends > self._clock() else 0

    def get_expiry(self, key: str) -> float:
        """The end of the window, in seconds since 1970."""
        return self._windows.get(key, (0, self._clock()))[1]

    def check(self) -> bool:
        """Always healthy."""
        return True

    def reset(self) -> int:
        """Remove all counters. Returns how many there were."""
        count = len(self._windows)
        self._windows.clear()
        return count

    def clear(self, key: str) -> None:
        """Remove one counter."""
        self._windows.pop(key, None)


class Limit:
    """A maximum per minute for each key."""

    def __init__(self, amount: int, namespace: str, memory: BoundedMemory, shared: RedisStorage | None) -> None:
        """An `amount` of 0 switches the limit off."""
        # The parts of the library's key around the name. Building the whole key each time costs as much as counting.
        template = RateLimitItemPerMinute(amount, 1, namespace).key_for("{name}")
        self._before, _, self._after = template.partition("{name}")
        self.on = bool(amount)
        self.amount, self._memory, self._shared = amount, memory, shared

    def key(self, name: str) -> str:
        """The counter's key for `name`. The caller may cache it."""
        return self._before + name + self._after

    def exceeded(self, key: str) -> bool:
        """Count a request in this process. Returns whether it exceeds the limit."""
        return self.on and self._memory.count(key, 60) > self.amount

    def count(self, key: str, more: int) -> int:
        """Count `more` in this process. Returns how many of them exceed the limit."""
        return min(more, max(0, self._memory.count(key, 60, more) - self.amount)) if self.on else 0

    def count_all(self, counts: Mapping[str, int]) -> dict[str, int]:
        """Like `count`, for several keys. Returns only the keys that exceed the limit."""
        if not self.on:
            return {}
        now, count = time.time(), self._memory.count
        totals = {key: count(key, 60, more, now) for key, more in counts.items()}
        return {key: min(counts[key], total - self.amount) for key, total in totals.items() if total > self.amount}

    def wait(self, key: str) -> int:
        """Seconds until the window ends, at least 1."""
        return max(1, round(self._memory.get_expiry(key) - time.time()))

    async def wait_shared(self, key: str, redis: BestEffortRedis) -> int | None:
        """Count a request of any instance. Returns the seconds to wait if it exceeds the limit, else 0; None while Redis is unavailable."""
        shared = self._shared
        if shared is None or not self.on:
            return 0
        count = await redis.attempt(lambda: shared.incr(key, 60))
        if count is None:
            return None
        if count <= self.amount:
            return 0
        expires_at = await redis.attempt(lambda: shared.get_expiry(key))
        return max(1, round((expires_at or time.time() + 60) - time.time()))

    async def count_shared(self, key: str, more: int, redis: BestEffortRedis) -> int | None:
        """Like `count`, for all instances together; None while Redis is unavailable."""
        shared = self._shared
        if shared is None or not self.on:
            return 0
        count = await redis.attempt(lambda: shared.incr(key, 60, amount=more))
        return None if count is None else min(more, max(0, count - self.amount))


class Limits:
    """The limits of a unit's requests, of a unit's events, and of an API key's requests."""

    def __init__(
        self, unit_per_minute: int, key_per_minute: int, redis: BestEffortRedis | None, unit_events_per_minute: int = 0
    ) -> None:
        """0 switches a limit off. With `redis`, all instances count together. Raises ValueError if its URL is not valid."""
        shared = None if redis is None else _shared(redis)
        self._redis = redis
        # Separate memories, so that many units do not displace the few keys.
        self.unit = Limit(unit_per_minute, "unit", BoundedMemory(), shared)
        self.api_key = Limit(key_per_minute, "key", BoundedMemory(), shared)
        self.unit_events = Limit(unit_events_per_minute, "events", BoundedMemory(), shared)

    @property
    def shared(self) -> bool:
        """Whether Redis counts, so that callers must use `wait_shared` instead of `wait`."""
        return self._redis is not None

    def wait(self, limit: Limit, key: str) -> int:
        """Count a request in this process. Returns the seconds to wait if it exceeds the limit, else 0."""
        return limit.wait(key) if limit.exceeded(key) else 0

    async def wait_shared(self, limit: Limit, key: str) -> int:
        """Like `wait`, for all instances together."""
        seconds = None if self._redis is None else await limit.wait_shared(key, self._redis)
        return self.wait(limit, key) if seconds is None else seconds

    async def too_many(self, limit: Limit, counts: Mapping[str, int]) -> dict[str, int]:
        """Add `counts` to the keys, for all instances together. Returns how many exceed the limit, for the keys that exceed it."""
        redis = self._redis
        if redis is None or not limit.on:
            return limit.count_all(counts)
        # Concurrently: a batch may have a thousand units, and each costs a round trip.
        replies = await asyncio.gather(*(limit.count_shared(key, more, redis) for key, more in counts.items()))
        excess = {
            key: limit.count(key, more) if reply is None else reply
            for (key, more), reply in zip(counts.items(), replies, strict=True)
        }
        return {key: count for key, count in excess.items() if count}


def _shared(redis: BestEffortRedis) -> RedisStorage:
    try:
        return RedisStorage(
            f"async+{redis.url.replace('unix://', 'redis+unix://', 1)}",
            implementation="redispy",
            socket_timeout=TIMEOUT_SECONDS,
            socket_connect_timeout=TIMEOUT_SECONDS,
        )
    except ConfigurationError:
        raise ValueError(INVALID_URL) from None
