"""Stored assignments that instances share through Redis.

The key is `assignment:{experiment_id}:{unit_id}`. The value names the variant and the run's fingerprint, so an entry is ignored once the
experiment has changed.
"""

from collections.abc import Iterable, Sequence
from typing import cast
from uuid import UUID

from experimentation.assignments.rules import ServedRun
from serving.http.best_effort_redis import BestEffortRedis


class SharedUnits:
    """The variants of stored units, in Redis. Without Redis it finds and stores nothing."""

    def __init__(self, redis: BestEffortRedis | None, seconds: float) -> None:
        """Entries expire after `seconds`."""
        self._redis, self._milliseconds = redis, max(1, round(seconds * 1000))

    @property
    def off(self) -> bool:
        """Whether no Redis is configured."""
        return self._redis is None

    async def get(self, units: Sequence[tuple[str, ServedRun]]) -> list[int | None]:
        """For each unit (its key and its run), the index of its variant in the run, or None."""
        if self._redis is None:
            return [None] * len(units)
        client = self._redis.client
        values = await self._redis.attempt(lambda: client.mget([key for key, _ in units]))
        if values is None:
            return [None] * len(units)
        return [
            _variant_index(run, value) for (_, run), value in zip(units, cast(list[bytes | None], values), strict=True)
        ]

    async def put(self, units: Iterable[tuple[str, ServedRun, UUID]]) -> None:
        """Store committed assignments: key, run and variant id."""
        if self._redis is None:
            return
        pipe = self._redis.client.pipeline(transaction=False)
        for key, run, variant_id in units:
            pipe.set(key, f"{variant_id}:{run.fingerprint}", px=self._milliseconds)
        await self._redis.attempt(pipe.execute)


def _variant_index(run: ServedRun, value: bytes | None) -> int | None:
    variant_id, _, fingerprint = (value or b"").decode("ascii", "replace").partition(":")
    if fingerprint != run.fingerprint:
        return None
    try:
        return run.index_of.get(UUID(variant_id))
    except ValueError:
        return None
