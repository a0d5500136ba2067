"""The API's way to Redis, which is never needed for an answer."""

import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from redis.asyncio import Redis
from redis.exceptions import RedisError

log = logging.getLogger(__name__)
T = TypeVar("T")

# Redis answers within a millisecond; whoever waits longer is better served without it.
TIMEOUT_SECONDS = 0.1
AWAY_SECONDS = 1.0
# What is wrong with an address may hold its password, so it is not repeated.
NO_ADDRESS = (
    "REDIS_URL is no address of a Redis, as redis://host:6379/0 is: correct it in the environment or in settings.env."
)
FAILURES = (RedisError, OSError, TimeoutError)


class RedisLink:
    """One Redis, asked only while it answers: after a failure it is left alone for a second."""

    def __init__(self, url: str, clock: Callable[[], float] = time.monotonic) -> None:
        """Nothing connects yet. Raises ValueError when `url` is no address of a Redis."""
        self.url, self._clock = url, clock
        try:
            self.client: Redis = Redis.from_url(
                url, socket_timeout=TIMEOUT_SECONDS, socket_connect_timeout=TIMEOUT_SECONDS
            )
        except ValueError:
            raise ValueError(NO_ADDRESS) from None
        self._away_until = float("-inf")
        self._told = False

    async def ask(self, question: Callable[[], Awaitable[T]]) -> T | None:
        """The reply; None while Redis is away."""
        if self._clock() < self._away_until:
            return None
        try:
            reply = await question()
        except FAILURES as error:
            self._away_until = self._clock() + AWAY_SECONDS
            if not self._told:
                log.warning("Redis is away, the API goes on without it (%s: %s).", type(error).__name__, error)
                self._told = True
            return None
        self._told = False
        return reply

    async def close(self) -> None:
        """Close its connections."""
        await self.client.aclose()
