"""Fixtures for a running API and its clients. A test module loads them with `pytest_plugins = ["api_service"]`."""

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
    """A function that creates a client for a base URL, with a key that has the given scopes."""
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(psycopg.connect(database_url, autocommit=True))

        def make(url: str, *scopes: str) -> httpx.Client:
            _, key = make_api_key(connection, f"key {uuid4()}", scopes)
            headers = {"Authorization": f"Bearer {key}"}
            return stack.enter_context(httpx.Client(base_url=url, headers=headers, timeout=30))

        yield make


@pytest.fixture
def api(database_url: str, make_client: Callable[..., httpx.Client]) -> Iterator[Api]:
    """A running API with its database and a client that has every scope."""
    with running_api(database_url) as url, psycopg.connect(database_url, autocommit=True) as connection:
        yield Api(make_client(url, "assign", "ingest", "admin", "read"), connection, database_url)
