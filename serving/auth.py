"""Bearer keys and scopes.

Belongs here: the header, and the short memory of checked keys. Does not belong here: hashing, SQL (experimentation/api_keys.py).
"""

import time
from collections import OrderedDict
from hashlib import sha256

from starlette.types import Scope

from experimentation.api_keys import ApiKey, find_api_key, parse_api_key
from serving.database import Database
from serving.errors import forbidden, unauthorized

MAX_REMEMBERED = 1_000
MAX_HEADER_BYTES = 512


class KeyRing:
    """Checks keys, and trusts a checked one for a few seconds, so that most requests cost no query. Only valid keys are remembered."""

    def __init__(self, database: Database, seconds: float) -> None:
        """A revoked key keeps working for up to `seconds`."""
        self._database, self._seconds = database, seconds
        self._checked: OrderedDict[bytes, tuple[ApiKey, float]] = OrderedDict()

    async def check(self, request: Scope, scope: str) -> ApiKey:
        """The key of a request that may do what `scope` says. Raises ApiError: 401, 403, or 503 when the database is away."""
        key = await self._key(_bearer(request))
        if key is None:
            raise unauthorized()
        if scope not in key.scopes:
            raise forbidden(scope)
        return key

    async def _key(self, token: bytes) -> ApiKey | None:
        if not token:
            return None
        # Kept by digest: a dump of this process's memory gives no key away.
        digest = sha256(token).digest()
        found = self._checked.get(digest)
        if found is not None and time.monotonic() < found[1]:
            return found[0]
        plaintext = token.decode("latin-1")
        if parse_api_key(plaintext) is None:
            return None

        async def find() -> ApiKey | None:
            async with self._database.acquire() as connection:
                return await find_api_key(connection, plaintext)

        asked_at = time.monotonic()
        key = await self._database.retrying(find)
        self._checked.pop(digest, None)
        if key is not None:
            self._checked[digest] = key, asked_at + self._seconds
            if len(self._checked) > MAX_REMEMBERED:
                self._checked.popitem(last=False)
        return key


def _bearer(request: Scope) -> bytes:
    """The key in the Authorization header; empty when there is none."""
    for name, value in request["headers"]:
        if name == b"authorization":
            scheme, _, token = value.partition(b" ")
            return token.strip() if scheme.lower() == b"bearer" and len(value) <= MAX_HEADER_BYTES else b""
    return b""
