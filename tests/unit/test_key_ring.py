"""The cache of checked API keys."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest

from foundation.api_keys import ApiKey
from serving.http import auth
from serving.http.auth import MAX_LOOKUPS, KeyRing
from serving.http.limits import Limits


class NoDatabase:
    """A stand-in without a server: the test answers the key lookups."""

    away = False

    @asynccontextmanager
    async def acquire(self) -> Any:
        yield None

    async def retrying(self, operation: Callable[[], Awaitable[Any]]) -> Any:
        return await operation()


def test_concurrent_requests_with_one_key_share_few_lookups(monkeypatch: pytest.MonkeyPatch) -> None:
    lookups = 0

    async def find(_connection: Any, _plaintext: str) -> Any:
        nonlocal lookups
        lookups += 1
        await asyncio.sleep(0)
        return key

    key = ApiKey(uuid4(), "product", frozenset({"ingest"}), datetime.now(UTC), None)
    monkeypatch.setattr(auth, "find_api_key", find)
    monkeypatch.setattr(auth, "parse_api_key", lambda plaintext: plaintext)

    async def authorize_many() -> list[ApiKey]:
        ring = KeyRing(NoDatabase(), 5, 60, Limits(0, 0, None))  # type: ignore[arg-type]
        return await asyncio.gather(*(ring.authorize(b"Bearer lk_a", "ingest") for _ in range(50)))

    assert asyncio.run(authorize_many()) == [key] * 50
    assert lookups <= MAX_LOOKUPS
