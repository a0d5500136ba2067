"""Keys that look like credentials, and data without them."""

import re
from collections.abc import Collection, Mapping
from itertools import filterfalse
from typing import Any

# The words of a key, split at punctuation and capitals: accessToken, access_token and ACCESS-TOKEN have the same two.
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_CREDENTIAL_WORDS = frozenset(
    {"password", "passwords", "passwd", "secret", "secrets", "authorization", "credential", "credentials", "apikey"}
)
_CREDENTIAL_ENDINGS = ("password", "secret", "token", "authorization", "apikey")
# Words for amounts of a language model's tokens, which are not credentials.
_TOKEN_AMOUNTS = frozenset({"count", "counts", "limit", "budget", "usage", "rate"})
# A cache, because keys repeat from event to event: at most this many harmless keys, none longer than this.
_harmless: set[str] = set()
_REMEMBERED_KEYS, _REMEMBERED_LENGTH = 4096, 64
_NESTED = frozenset({dict, list})


def looks_like_credential(key: str) -> bool:
    """Whether a key's name suggests a credential: `password`, `access_token`, `clientSecret`; not `token_count`."""
    if key.lower().endswith(_CREDENTIAL_ENDINGS):
        return True
    words = [word.lower() for word in _WORDS.findall(key)]
    if _CREDENTIAL_WORDS.intersection(words) or "api_key" in "_".join(words):
        return True
    return "token" in words and words[-1] not in _TOKEN_AMOUNTS


def is_harmless(value: Collection[Any], depth: int) -> bool:
    """Whether a JSON-like dict or list surely has no such key; False if it is nested more than `depth` levels deep."""
    if value.__class__ is dict:
        if not _harmless.issuperset(value) and not all(map(_is_harmless, filterfalse(_harmless.__contains__, value))):
            return False
        value = value.values()
    for item in value:  # noqa: SIM110 - for a few items a generator takes twice as long
        if item.__class__ in _NESTED and not (depth and is_harmless(item, depth - 1)):
            return False
    return True


def without_credentials(value: Any) -> Any:
    """A copy of JSON-like data without such keys, at any depth."""
    if isinstance(value, Mapping):
        return {key: without_credentials(item) for key, item in value.items() if not looks_like_credential(str(key))}
    if isinstance(value, list | tuple):
        return [without_credentials(item) for item in value]
    return value


def _is_harmless(key: str) -> bool:
    if looks_like_credential(key):
        return False
    if len(key) <= _REMEMBERED_LENGTH and len(_harmless) < _REMEMBERED_KEYS:
        _harmless.add(key)
    return True
