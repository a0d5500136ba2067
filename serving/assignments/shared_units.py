"""Stored assignments that instances share through Redis.

The key is `assignment:{experiment_id}:{unit_id}`; the value names the variant and the fingerprint of the run that it was read with, so
that what was written before a change of the experiment is not taken after it.
"""

from collections.abc import Iterable, Sequence
from typing import cast
from uuid import UUID

from experimentation.assignments.rules import ServedRun
from serving.http.redis_link import RedisLink


class SharedUnits:
    """The variants of stored units, in Redis; with no Redis nothing is known and nothing kept."""

    def __init__(self, link: RedisLink | None, seconds: float) -> None:
        """Entries live for `seconds`."""
        self._link, self._milliseconds = link, max(1, round(seconds * 1000))

    @property
    def off(self) -> bool:
        """Whether there is no Redis to ask."""
        return self._link is None

    async def get(self, units: Sequence[tuple[str, ServedRun]]) -> list[int | None]:
        """For each unit (its key and its run) that is known there, the place of its variant in the run."""
        if self._link is None:
            return [None] * len(units)
        client = self._link.client
        found = await self._link.ask(lambda: client.mget([key for key, _ in units]))
        if found is None:
            return [None] * len(units)
        return [_place(run, value) for (_, run), value in zip(units, cast(list[bytes | None], found), strict=True)]

    async def put(self, units: Iterable[tuple[str, ServedRun, UUID]]) -> None:
        """Keep what is committed."""
        if self._link is None:
            return
        pipe = self._link.client.pipeline(transaction=False)
        for key, run, variant_id in units:
            pipe.set(key, f"{variant_id}:{run.fingerprint}", px=self._milliseconds)
        await self._link.ask(pipe.execute)


def _place(run: ServedRun, value: bytes | None) -> int | None:
    variant_id, _, fingerprint = (value or b"").decode("ascii", "replace").partition(":")
    if fingerprint != run.fingerprint:
        return None
    try:
        return run.places.get(UUID(variant_id))
    except ValueError:
        return None
