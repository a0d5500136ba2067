"""Bearer keys, scopes, and how many requests a minute a key has."""

import asyncio
import time
from collections import OrderedDict
from hashlib import sha256

from foundation.api_keys import ApiKey, find_api_key, parse_api_key
from serving.http.database import Database
from serving.http.errors import ApiError, forbidden, rate_limited, unauthorized
from serving.http.limits import Limits

MAX_REMEMBERED = 1_000
MAX_HEADER_BYTES = 512
MAX_LOOKUPS = 2
WHAT_A_KEY_HAS = "This API key"


class KeyRing:
    """Checks keys, and trusts a checked one for a few seconds, so that most requests cost no query. Only valid keys are remembered."""

    def __init__(self, database: Database, seconds: float, grace: float, limits: Limits) -> None:
        """Where changes are not notified, a revoked key keeps working for up to `seconds`; while the database is away, where nobody can
        revoke one either, a key that was valid is trusted for `grace` seconds more."""
        self._database, self._seconds, self._grace, self._limits = database, seconds, grace, limits
        # By digest of the whole header, so that a dump of this process's memory gives no key away: key, good until, its counter.
        self._checked: OrderedDict[bytes, tuple[ApiKey, float, str]] = OrderedDict()
        self._forgotten_at = float("-inf")
        # Who has no key may make up as many as he likes: they wait for each other, and leave the other connections alone.
        self._looking_up = asyncio.Semaphore(MAX_LOOKUPS)

    def let_in_at_once(self, credentials: bytes, scope: str) -> bool:
        """Whether a remembered key may do what `scope` says; False says nothing yet. Raises ApiError (403, 429)."""
        found = self._checked.get(sha256(credentials).digest())
        if found is None or time.monotonic() >= found[1] or self._limits.shared:
            return False
        if scope not in found[0].scopes:
            raise forbidden(scope)
        limit = self._limits.api_key
        if limit.over(found[2]):
            raise rate_limited(WHAT_A_KEY_HAS, limit.amount, limit.wait(found[2]))
        return True

    async def let_in(self, credentials: bytes, *scopes: str) -> ApiKey:
        """The key of a request that may do what one of `scopes` says; `credentials` is its header Authorization.

        Raises ApiError: 401, 403, 429, or 503 when the database is away.
        """
        key = await self._key(credentials)
        if key is None:
            raise unauthorized()
        if not key.scopes.intersection(scopes):
            raise forbidden(*scopes)
        limit = self._limits.api_key
        wait = await self._limits.wait_shared(limit, limit.key(key.id.hex))
        if wait:
            raise rate_limited(WHAT_A_KEY_HAS, limit.amount, wait)
        return key

    def forget(self) -> None:
        """Check every key anew: one of them was changed."""
        self._checked.clear()
        self._forgotten_at = time.monotonic()

    def doubt(self) -> None:
        """Check every key anew: one of them may have been changed. Until the database answers, they are trusted as during its absence."""
        now = time.monotonic()
        self._forgotten_at = now
        for digest, (key, good_until, counter) in self._checked.items():
            self._checked[digest] = key, min(good_until, now), counter

    async def _key(self, header: bytes) -> ApiKey | None:
        scheme, _, token = header.partition(b" ")
        if scheme.lower() != b"bearer" or len(header) > MAX_HEADER_BYTES:
            return None
        digest = sha256(header).digest()
        found = self._checked.get(digest)
        if found is not None and (time.monotonic() < found[1] or self._trusted(found)):
            return found[0]
        plaintext = token.strip().decode("latin-1")
        if parse_api_key(plaintext) is None:
            return None

        async def find() -> ApiKey | None:
            async with self._looking_up:
                # Of the many who come when a key's time is over, the first ones ask for all.
                meanwhile = self._checked.get(digest)
                if meanwhile is not None and time.monotonic() < meanwhile[1]:
                    return meanwhile[0]
                asked_at = time.monotonic()
                async with self._database.acquire() as connection:
                    key = await find_api_key(connection, plaintext)
                self._remember(digest, key, asked_at)
                return key

        try:
            return await self._database.retrying(find)
        except ApiError:
            if found is not None and self._trusted(found):
                return found[0]
            raise

    def _remember(self, digest: bytes, key: ApiKey | None, asked_at: float) -> None:
        self._checked.pop(digest, None)
        if key is not None and asked_at > self._forgotten_at:
            self._checked[digest] = key, asked_at + self._seconds, self._limits.api_key.key(key.id.hex)
            if len(self._checked) > MAX_REMEMBERED:
                self._checked.popitem(last=False)

    def _trusted(self, found: tuple[ApiKey, float, str]) -> bool:
        # Not in the middle of a rotation: the old secret's end must come, whether the database is there or not.
        key, good_until, _ = found
        return self._database.away and key.previous_until is None and time.monotonic() < good_until + self._grace
