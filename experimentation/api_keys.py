"""API keys: made once, shown once, kept as salted hashes, compared in constant time.

Belongs here: making, checking, revoking and listing keys; their SQL. Does not belong here: HTTP headers, caching (serving/auth.py).

A key reads `lc_<id>_<secret>`: the id finds the row, the secret has 256 random bits. So one SHA-256 over salt and secret is enough:
slow hashes protect guessable passwords, and would cost milliseconds a request here.
"""

import hashlib
import hmac
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import psycopg
from psycopg.errors import UniqueViolation
from psycopg.rows import tuple_row

from experimentation.records import ExperimentationError

SCOPES = ("assign", "ingest", "admin", "read")
PREFIX = "lc"
_SALT_BYTES = _SECRET_BYTES = 32
MAX_NAME = 255

INSERT = "INSERT INTO exp.api_keys (id, name, salt, hash, scopes) VALUES (%s, %s, %s, %s, %s) RETURNING created_at, revoked_at"
LIST = "SELECT id, name, scopes, created_at, revoked_at FROM exp.api_keys ORDER BY name"
REVOKE = "UPDATE exp.api_keys SET revoked_at = now() WHERE name = %s AND revoked_at IS NULL"
FIND = "SELECT id, name, scopes, created_at, revoked_at, salt, hash FROM exp.api_keys WHERE id = $1"


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key without its secret."""

    id: UUID
    name: str
    scopes: frozenset[str]
    created_at: datetime
    revoked_at: datetime | None


def make_api_key(connection: psycopg.Connection[Any], name: str, scopes: Collection[str]) -> tuple[ApiKey, str]:
    """Store a new key; return it with the plaintext, which can't be had again.

    Raises ExperimentationError when a scope is unknown, there is none, or the name is empty, too long or taken.
    """
    unknown = sorted(set(scopes) - set(SCOPES))
    if unknown or not scopes:
        raise ExperimentationError(f"A key needs scopes among {', '.join(SCOPES)}; got {', '.join(unknown) or 'none'}.")
    if not 1 <= len(name) <= MAX_NAME:
        raise ExperimentationError(f"A key's name has 1 to {MAX_NAME} characters; got {len(name)}.")
    key_id, secret, salt = uuid4(), secrets.token_bytes(_SECRET_BYTES), secrets.token_bytes(_SALT_BYTES)
    ordered = [scope for scope in SCOPES if scope in scopes]
    try:
        with connection.transaction(), connection.cursor(row_factory=tuple_row) as cursor:
            cursor.execute(INSERT, (key_id, name, salt, _hash(salt, secret), ordered))
            ((created_at, revoked_at),) = cursor.fetchall()
    except UniqueViolation as error:
        raise ExperimentationError(
            f"There is an API key named {name} already: choose another name, even for a revoked one."
        ) from error
    return ApiKey(key_id, name, frozenset(ordered), created_at, revoked_at), f"{PREFIX}_{key_id.hex}_{secret.hex()}"


def list_api_keys(connection: psycopg.Connection[Any]) -> list[ApiKey]:
    """Every key, by name."""
    with connection.cursor(row_factory=tuple_row) as cursor:
        return [ApiKey(row[0], row[1], frozenset(row[2]), row[3], row[4]) for row in cursor.execute(LIST)]


def revoke_api_key(connection: psycopg.Connection[Any], name: str) -> bool:
    """Revoke a key for good; return whether it was valid until now."""
    return connection.execute(REVOKE, (name,)).rowcount == 1


async def find_api_key(connection: asyncpg.Connection, plaintext: str) -> ApiKey | None:
    """The valid key with this plaintext, or None: malformed, unknown, wrong or revoked, without telling which."""
    parsed = parse_api_key(plaintext)
    if parsed is None:
        return None
    key_id, secret = parsed
    row = await connection.fetchrow(FIND, key_id)
    if row is None or not hmac.compare_digest(row["hash"], _hash(row["salt"], secret)) or row["revoked_at"] is not None:
        return None
    return ApiKey(row["id"], row["name"], frozenset(row["scopes"]), row["created_at"], row["revoked_at"])


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
