"""API keys: made once, shown once, kept as salted hashes, compared in constant time.

A key reads `lc_<id>_<secret>`: the id finds the row, the secret has 256 random bits. So one SHA-256 over salt and secret is enough:
slow hashes protect guessable passwords, and would cost milliseconds a request here.
"""

import hashlib
import hmac
import secrets
from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import psycopg
from psycopg.errors import UniqueViolation
from psycopg.rows import kwargs_row, scalar_row, tuple_row

from foundation.audit import Change, write_audit
from foundation.errors import LifecycleError

SCOPES = ("assign", "ingest", "admin", "read")
PREFIX = "lc"
_SALT_BYTES = _SECRET_BYTES = 32
MAX_NAME = 255
MADE = Change("lifecycle", "A client needs a key.")
REVOKED = Change("lifecycle", "The key is not needed any more.")
MAX_GRACE = timedelta(days=7)
# What a key without an earlier secret is compared with, so that each check does the same.
_NO_SALT, _NO_HASH = bytes(_SALT_BYTES), bytes(hashlib.sha256().digest_size)

INSERT = "INSERT INTO exp.api_keys (id, name, salt, hash, scopes) VALUES (%s, %s, %s, %s, %s) RETURNING created_at, revoked_at"
_COLUMNS = "id, name, scopes, created_at, revoked_at, CASE WHEN previous_until > now() THEN previous_until END AS previous_until"
LIST = f"SELECT {_COLUMNS} FROM exp.api_keys ORDER BY name"
ONE_FOR_UPDATE = f"SELECT {_COLUMNS} FROM exp.api_keys WHERE name = %s FOR UPDATE"
# Of an expression in SET, columns are what they were before.
ROTATE = """
UPDATE exp.api_keys
SET previous_salt = CASE WHEN %(grace)s > interval '0' THEN salt END, previous_hash = CASE WHEN %(grace)s > interval '0' THEN hash END,
    previous_until = CASE WHEN %(grace)s > interval '0' THEN now() + %(grace)s END, salt = %(salt)s, hash = %(hash)s
WHERE id = %(id)s RETURNING previous_until
"""
REVOKE = """
UPDATE exp.api_keys SET revoked_at = now(), previous_salt = NULL, previous_hash = NULL, previous_until = NULL
WHERE name = %s AND revoked_at IS NULL RETURNING id
"""
FIND = f"SELECT {_COLUMNS}, salt, hash, previous_salt, previous_hash FROM exp.api_keys WHERE id = $1"


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key without its secret. `previous_until`: until when the secret from before the last rotation works, while it does."""

    id: UUID
    name: str
    scopes: frozenset[str]
    created_at: datetime
    revoked_at: datetime | None
    previous_until: datetime | None = None


def make_api_key(
    connection: psycopg.Connection[Any],
    name: str,
    scopes: Collection[str],
    *,
    change: Change = MADE,
) -> tuple[ApiKey, str]:
    """Store a new key; return it with the plaintext, which can't be had again.

    Raises LifecycleError when a scope is unknown, there is none, or the name is empty, too long or taken.
    """
    unknown = sorted(set(scopes) - set(SCOPES))
    if unknown or not scopes:
        raise LifecycleError(f"A key needs scopes among {', '.join(SCOPES)}; got {', '.join(unknown) or 'none'}.")
    if not 1 <= len(name) <= MAX_NAME:
        raise LifecycleError(f"A key's name has 1 to {MAX_NAME} characters; got {len(name)}.")
    key_id, secret, salt = uuid4(), secrets.token_bytes(_SECRET_BYTES), secrets.token_bytes(_SALT_BYTES)
    ordered = [scope for scope in SCOPES if scope in scopes]
    try:
        with connection.transaction(), connection.cursor(row_factory=tuple_row) as cursor:
            cursor.execute(INSERT, (key_id, name, salt, _hash(salt, secret), ordered))
            ((created_at, revoked_at),) = cursor.fetchall()
            _audit(connection, "api_key.created", name, {"id": str(key_id), "scopes": ordered}, change)
    except UniqueViolation as error:
        raise LifecycleError(
            f"There is an API key named {name} already: choose another name, even for a revoked one."
        ) from error
    return ApiKey(key_id, name, frozenset(ordered), created_at, revoked_at), _plaintext(key_id, secret)


def rotate_api_key(
    connection: psycopg.Connection[Any], name: str, grace: timedelta = timedelta(0), *, change: Change
) -> tuple[ApiKey, str]:
    """Give a key a new secret; return it with the plaintext, which can't be had again. The secret until now works for `grace` longer.

    A secret that is older still ends at once. Raises LifecycleError when there is no such key, it is revoked, or `grace` is
    negative or longer than a week.
    """
    if not timedelta(0) <= grace <= MAX_GRACE:
        raise LifecycleError(f"The old secret of {name} can work for 0 to {MAX_GRACE.days} days longer, not {grace}.")
    secret, salt = secrets.token_bytes(_SECRET_BYTES), secrets.token_bytes(_SALT_BYTES)
    with connection.transaction():
        with connection.cursor(row_factory=kwargs_row(_key_of)) as cursor:
            key = cursor.execute(ONE_FOR_UPDATE, (name,)).fetchone()
        if key is None:
            raise LifecycleError(f"There is no API key named {name}: `lifecycle keys list` shows them.")
        if key.revoked_at is not None:
            raise LifecycleError(
                f"API key {name} was revoked on {key.revoked_at:%Y-%m-%d}: make one with another name instead."
            )
        fields = {"id": key.id, "grace": grace, "salt": salt, "hash": _hash(salt, secret)}
        with connection.cursor(row_factory=scalar_row) as scalars:
            (until,) = scalars.execute(ROTATE, fields).fetchall()
        told = {"id": str(key.id), "previous_until": None if until is None else until.isoformat()}
        _audit(connection, "api_key.rotated", name, told, change)
    return replace(key, previous_until=until), _plaintext(key.id, secret)


def list_api_keys(connection: psycopg.Connection[Any]) -> list[ApiKey]:
    """Every key, by name."""
    with connection.cursor(row_factory=kwargs_row(_key_of)) as cursor:
        return cursor.execute(LIST).fetchall()


def revoke_api_key(
    connection: psycopg.Connection[Any],
    name: str,
    *,
    change: Change = REVOKED,
) -> bool:
    """Revoke a key for good, with its secret from before a rotation; return whether it was valid until now."""
    with connection.transaction(), connection.cursor(row_factory=scalar_row) as cursor:
        ended = cursor.execute(REVOKE, (name,)).fetchall()
        for key_id in ended:
            _audit(connection, "api_key.revoked", name, {"id": str(key_id)}, change)
    return bool(ended)


async def find_api_key(connection: asyncpg.Connection, plaintext: str) -> ApiKey | None:
    """The valid key with this plaintext, or None: malformed, unknown, wrong or revoked, without telling which."""
    parsed = parse_api_key(plaintext)
    if parsed is None:
        return None
    key_id, secret = parsed
    row = await connection.fetchrow(FIND, key_id)
    if row is None:
        return None
    # Both are always compared: how long a check takes tells nothing of either.
    is_current = hmac.compare_digest(row["hash"], _hash(row["salt"], secret))
    is_previous = hmac.compare_digest(row["previous_hash"] or _NO_HASH, _hash(row["previous_salt"] or _NO_SALT, secret))
    key = _key_of(**{name: row[name] for name in ApiKey.__slots__})
    matches = is_current or (is_previous and key.previous_until is not None)
    return key if matches and key.revoked_at is None else None


def parse_api_key(plaintext: str) -> tuple[UUID, bytes] | None:
    """The key's id and secret, or None when the text has not the form of a key. Asks nothing of the database."""
    parts = plaintext.split("_")
    if len(parts) != 3 or parts[0] != PREFIX or len(parts[1]) != 32 or len(parts[2]) != 2 * _SECRET_BYTES:
        return None
    try:
        return UUID(hex=parts[1]), bytes.fromhex(parts[2])
    except ValueError:
        return None


def _hash(salt: bytes, secret: bytes) -> bytes:
    return hashlib.sha256(salt + secret).digest()


def _plaintext(key_id: UUID, secret: bytes) -> str:
    return f"{PREFIX}_{key_id.hex}_{secret.hex()}"


def _key_of(
    id: UUID,
    name: str,
    scopes: list[str],
    created_at: datetime,
    revoked_at: datetime | None,
    previous_until: datetime | None,
) -> ApiKey:
    """From a row's columns."""
    return ApiKey(id, name, frozenset(scopes), created_at, revoked_at, previous_until)


def _audit(connection: psycopg.Connection[Any], action: str, name: str, after: dict[str, Any], change: Change) -> None:
    write_audit(connection, change=change, action=action, subject=f"API key {name}", after=after)
