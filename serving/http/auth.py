"""Bearer keys, their scopes, and their rate limit."""

import asyncio
import time
from collections import OrderedDict
from hashlib import sha256

from foundation.api_keys import ApiKey, find_api_key, parse_api_key
from serving.http.database import Database
from serving.http.errors import ApiError, forbidden, rate_limited, unauthorized
from serving.http.limits import Limits

MAX_CACHED = 1_000
MAX_HEADER_BYTES = 512
MAX_LOOKUPS = 2
LIMITED_SUBJECT = "This API key"


class KeyRing:
    """Checks keys. Caches valid ones for a few seconds, so that most requests need no query."""

    def __init__(self, database: Database, seconds: float, grace: float, limits: Limits) -> None:
        """Without notifications, a revoked key keeps working for up to `seconds`. While the database is unavailable, and nobody can revoke
        keys, a valid key is trusted for `grace` seconds longer."""
        self._database, self._seconds, self._grace, self._limits = database, seconds, grace, limits
        # Digest of the whole header (so that a memory dump contains no key) → key, expiry, name of its rate limit counter.
        self._cache: OrderedDict[bytes, tuple[ApiKey, float, str]] = OrderedDict()
        self._invalidated_at = float("-inf")
        # Bounds the connections that requests with invented keys can occupy.
        self._looking_up = asyncio.Semaphore(MAX_LOOKUPS)

    def authorize_from_memory(self, credentials: bytes, scope: str) -> bool:
        """Whether a cached key has `scope`. False means: call `authorize`. Raises ApiError (403, 429)."""
        cached = self._cache.get(sha256(credentials).digest())
        if cached is None or time.monotonic() >= cached[1] or self._limits.shared:
            return False
        if scope not in cached[0].scopes:
            raise forbidden(scope)
        limit = self._limits.api_key
        if limit.exceeded(cached[2]):
            raise rate_limited(LIMITED_SUBJECT, limit.amount, limit.wait(cached[2]))
        return True

    async def authorize(self, credentials: bytes, *scopes: str) -> ApiKey:
        """The key of a request, if it has one of `scopes`. `credentials`: the header Authorization.

        Raises ApiError: 401, 403, 429, or 503 if the database is unavailable.
        """
        key = await self._key(credentials)
        if key is None:
            raise unauthorized()
        if not key.scopes.intersection(scopes):
            raise forbidden(*scopes)
        limit = self._limits.api_key
        wait = await self._limits.wait_shared(limit, limit.key(key.id.hex))
        if wait:
            raise rate_limited(LIMITED_SUBJECT, limit.amount, wait)
        return key

    def forget(self) -> None:
        """Forget all cached keys, because one of them changed."""
        self._cache.clear()
        self._invalidated_at = time.monotonic()

    def recheck(self) -> None:
        """Check every cached key at its next use, because one may have changed. The grace applies without a database."""
        now = time.monotonic()
        self._invalidated_at = now
        for digest, (key, expires_at, counter) in self._cache.items():
            self._cache[digest] = key, min(expires_at, now), counter

    async def _key(self, header: bytes) -> ApiKey | None:
        scheme, _, token = header.partition(b" ")
        if scheme.lower() != b"bearer" or len(header) > MAX_HEADER_BYTES:
            return None
        digest = sha256(header).digest()
        cached = self._cache.get(digest)
        if cached is not None and (time.monotonic() < cached[1] or self._trusted(cached)):
            return cached[0]
        plaintext = token.strip().decode("latin-1")
        if parse_api_key(plaintext) is None:
            return None

        async def find() -> ApiKey | None:
            async with self._looking_up:
                # When a key expires, many requests come here at once. The first query answers all of them.
                refreshed = self._cache.get(digest)
                if refreshed is not None and time.monotonic() < refreshed[1]:
                    return refreshed[0]
                asked_at = time.monotonic()
                async with self._database.acquire() as connection:
                    key = await find_api_key(connection, plaintext)
                self._store(digest, key, asked_at)
                return key

        try:
            return await self._database.retrying(find)
        except ApiError:
            if cached is not None and self._trusted(cached):
                return cached[0]
            raise

    def _store(self, digest: bytes, key: ApiKey | None, asked_at: float) -> None:
        self._cache.pop(digest, None)
        if key is not None and asked_at > self._invalidated_at:
            self._cache[digest] = key, asked_at + self._seconds, self._limits.api_key.key(key.id.hex)
            if len(self._cache) > MAX_CACHED:
                self._cache.popitem(last=False)

    def _trusted(self, cached: tuple[ApiKey, float, str]) -> bool:
        # No grace during a rotation: the old secret must expire even if the database is unavailable.
        key, expires_at, _ = cached
        return self._database.away and key.previous_until is None and time.monotonic() < expires_at + self._grace
