"""Fixtures of a running API with clients of it.

A test module that needs them says `pytest_plugins = ["api_service"]`. Does not belong here: what is no fixture (api_support.py).
"""

import contextlib
from collections.abc import Callable, Iterator
from uuid import uuid4

import httpx
import psycopg
import pytest
from api_support import Api, running_api

from foundation.api_keys import make_api_key


@pytest.fixture
def make_client(database_url: str) -> Iterator[Callable[..., httpx.Client]]:
    """Makes a client of a key with the given scopes, for a base URL."""
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(psycopg.connect(database_url, autocommit=True))

        def make(url: str, *scopes: str) -> httpx.Client:
            _, key = make_api_key(connection, f"key {uuid4()}", scopes)
            headers = {"Authorization": f"Bearer {key}"}
            return stack.enter_context(httpx.Client(base_url=url, headers=headers, timeout=30))

        yield make


@pytest.fixture
def api(database_url: str, make_client: Callable[..., httpx.Client]) -> Iterator[Api]:
    """A running API, a client with every scope, and its database."""
    with running_api(database_url) as url, psycopg.connect(database_url, autocommit=True) as connection:
        yield Api(make_client(url, "assign", "ingest", "admin", "read"), connection, database_url)
