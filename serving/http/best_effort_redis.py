"""Access to Redis, which speeds answers up and is never required for them."""

import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from redis.asyncio import Redis
from redis.exceptions import RedisError

log = logging.getLogger(__name__)
T = TypeVar("T")

# Redis normally answers within a millisecond. A request that waited longer would be faster without it.
TIMEOUT_SECONDS = 0.1
AWAY_SECONDS = 1.0
# The message does not repeat the URL, which may contain a password.
INVALID_URL = (
    "REDIS_URL is not a valid Redis URL such as redis://host:6379/0. Correct it in the environment or in settings.env."
)
FAILURES = (RedisError, OSError, TimeoutError)


class BestEffortRedis:
    """One Redis server. After a failure, it is not called for a second."""

    def __init__(self, url: str, clock: Callable[[], float] = time.monotonic) -> None:
        """Does not connect yet. Raises ValueError if `url` is not a valid Redis URL."""
        self.url, self._clock = url, clock
        try:
            self.client: Redis = Redis.from_url(
                url, socket_timeout=TIMEOUT_SECONDS, socket_connect_timeout=TIMEOUT_SECONDS
            )
        except ValueError:
            raise ValueError(INVALID_URL) from None
        self._away_until = float("-inf")
        self._failure_logged = False

    async def attempt(self, call: Callable[[], Awaitable[T]]) -> T | None:
        """The result of `call`, or None while Redis is unavailable."""
        if self._clock() < self._away_until:
            return None
        try:
            reply = await call()
        except FAILURES as error:
            self._away_until = self._clock() + AWAY_SECONDS
            if not self._failure_logged:
                log.warning("Redis is unavailable, so the API runs without it (%s: %s).", type(error).__name__, error)
                self._failure_logged = True
            return None
        self._failure_logged = False
        return reply

    async def close(self) -> None:
        """Close all connections."""
        await self.client.aclose()
