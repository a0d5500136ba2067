"""API keys in a real database: rotation with and without grace, revocation of both secrets, and an audit log without secrets."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import psycopg
import pytest
from ground_support import BY

from foundation.api_keys import (
    ApiKey,
    find_api_key,
    list_api_keys,
    make_api_key,
    parse_api_key,
    revoke_api_key,
    rotate_api_key,
)
from foundation.errors import LifecycleError

HOUR = timedelta(hours=1)


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection to this test's database."""
    with psycopg.connect(database_url, autocommit=True) as opened:
        yield opened


def find_keys(url: str, *plaintexts: str) -> list[ApiKey | None]:
    """The API key that a service finds for each plaintext."""

    async def find() -> list[ApiKey | None]:
        connection = await asyncpg.connect(url)
        try:
            return [await find_api_key(connection, plaintext) for plaintext in plaintexts]
        finally:
            await connection.close()

    return asyncio.run(find())


def works(url: str, *plaintexts: str) -> list[bool]:
    return [key is not None for key in find_keys(url, *plaintexts)]


def test_old_key_stops_working_at_once_without_grace(connection: psycopg.Connection[Any], database_url: str) -> None:
    created, old = make_api_key(connection, "shop", ["assign", "read"], change=BY)
    rotated, new = rotate_api_key(connection, "shop", change=BY)
    assert works(database_url, old, new) == [False, True]
    assert (rotated, rotated.previous_until) == (created, None)
    assert new != old and new.rpartition("_")[0] == old.rpartition("_")[0], (
        "the row is the same, so both keys have the same prefix"
    )
    previous = connection.execute("SELECT previous_salt, previous_hash, previous_until FROM exp.api_keys").fetchone()
    assert previous == (None, None, None), "an expired hash is not kept"


def test_both_keys_work_until_the_grace_ends(connection: psycopg.Connection[Any], database_url: str) -> None:
    _, old = make_api_key(connection, "shop", ["assign"], change=BY)
    rotated, new = rotate_api_key(connection, "shop", HOUR, change=BY)
    by_old, by_new = find_keys(database_url, old, new)
    assert by_old == by_new == rotated
    assert rotated.previous_until is not None
    assert abs(rotated.previous_until - datetime.now(UTC) - HOUR) < timedelta(minutes=1)
    assert list_api_keys(connection) == [rotated]

    connection.execute("UPDATE exp.api_keys SET previous_until = now() - interval '1 second'")
    assert works(database_url, old, new) == [False, True]
    assert [key.previous_until for key in list_api_keys(connection)] == [None]


def test_at_most_two_secrets_work_after_several_rotations(
    connection: psycopg.Connection[Any], database_url: str
) -> None:
    _, first = make_api_key(connection, "shop", ["assign"], change=BY)
    _, second = rotate_api_key(connection, "shop", HOUR, change=BY)
    _, third = rotate_api_key(connection, "shop", HOUR, change=BY)
    assert works(database_url, first, second, third) == [False, True, True]
    _, fourth = rotate_api_key(connection, "shop", change=BY)
    assert works(database_url, second, third, fourth) == [False, False, True]


def test_revoking_disables_both_secrets(connection: psycopg.Connection[Any], database_url: str) -> None:
    _, old = make_api_key(connection, "shop", ["assign"], change=BY)
    _, new = rotate_api_key(connection, "shop", HOUR, change=BY)
    assert revoke_api_key(connection, "shop", change=BY)
    assert works(database_url, old, new) == [False, False]
    assert not revoke_api_key(connection, "shop", change=BY)


def test_zero_secret_does_not_match_a_key_without_an_old_secret(
    connection: psycopg.Connection[Any], database_url: str
) -> None:
    _, plaintext = make_api_key(connection, "shop", ["assign"], change=BY)
    parsed = parse_api_key(plaintext)
    assert parsed is not None
    assert works(database_url, f"lc_{parsed[0].hex}_{'0' * 64}", f"lc_{'0' * 32}_{'0' * 64}") == [False, False]


def test_rotation_fails_for_unknown_and_revoked_keys_and_invalid_grace(
    connection: psycopg.Connection[Any], database_url: str
) -> None:
    with pytest.raises(LifecycleError, match="There is no API key named shop: `lifecycle keys list` shows them"):
        rotate_api_key(connection, "shop", change=BY)
    _, old = make_api_key(connection, "shop", ["assign"], change=BY)
    for grace in (timedelta(seconds=-1), timedelta(days=7, seconds=1)):
        with pytest.raises(LifecycleError, match="The old secret of shop can work for 0 to 7 days longer, not"):
            rotate_api_key(connection, "shop", grace, change=BY)
    assert works(database_url, old) == [True]
    revoke_api_key(connection, "shop", change=BY)
    with pytest.raises(LifecycleError, match=r"API key shop was revoked on 2\d{3}-\d\d-\d\d: create one with"):
        rotate_api_key(connection, "shop", change=BY)


def test_audit_log_has_every_change_and_no_secret(connection: psycopg.Connection[Any]) -> None:
    created, old = make_api_key(connection, "shop", ["read", "assign"], change=BY)
    _, new = rotate_api_key(connection, "shop", HOUR, change=BY)
    revoke_api_key(connection, "shop", change=BY)
    revoke_api_key(connection, "shop", change=BY)
    rows = connection.execute("SELECT actor, action, subject, after FROM exp.audit_log ORDER BY id").fetchall()
    assert [row[:3] for row in rows] == [
        ("test", f"api_key.{action}", "API key shop") for action in ("created", "rotated", "revoked")
    ]
    assert rows[0][3] == {"id": str(created.id), "scopes": ["assign", "read"]}
    audit_log = str(connection.execute("SELECT to_jsonb(l)::text FROM exp.audit_log l").fetchall())
    stored = connection.execute("SELECT encode(hash, 'hex'), encode(salt, 'hex') FROM exp.api_keys").fetchall()[0]
    for secret in (old.rpartition("_")[2], new.rpartition("_")[2], *stored):
        assert secret not in audit_log
