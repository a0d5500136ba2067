"""The short memory of checked keys."""

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
    """A database in name only: who looks a key up is answered by the test."""

    away = False

    @asynccontextmanager
    async def acquire(self) -> Any:
        yield None

    async def retrying(self, operation: Callable[[], Awaitable[Any]]) -> Any:
        return await operation()


def test_of_many_who_wait_for_a_key_the_first_ones_ask_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0

    async def find(_connection: Any, _plaintext: str) -> Any:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0)
        return key

    key = ApiKey(uuid4(), "product", frozenset({"ingest"}), datetime.now(UTC), None)
    monkeypatch.setattr(auth, "find_api_key", find)
    monkeypatch.setattr(auth, "parse_api_key", lambda plaintext: plaintext)

    async def many() -> list[ApiKey]:
        ring = KeyRing(NoDatabase(), 5, 60, Limits(0, 0, None))  # type: ignore[arg-type]
        return await asyncio.gather(*(ring.let_in(b"Bearer lk_a", "ingest") for _ in range(50)))

    assert asyncio.run(many()) == [key] * 50
    assert asked <= MAX_LOOKUPS
