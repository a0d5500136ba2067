"""Fixtures: a filled platform for each test, copied from one that is built once per module."""

import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from conftest import on_server
from erasure_support import World, empty_registry, fill, new_world, platform_in


@pytest.fixture(scope="module")
def original(postgres_server: str, migrated_template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Never changed, only copied."""
    name = f"erasure_{uuid.uuid4().hex[:12]}"
    folder = tmp_path_factory.mktemp("original")
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {migrated_template}")
    empty_registry(folder)
    world = new_world(on_server(postgres_server, name), folder)
    fill(world)
    yield world
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def make_world(original: World, postgres_server: str, tmp_path: Path) -> Iterator[Callable[[], World]]:
    """A function that returns a new copy with each call."""
    names = []

    def make() -> World:
        names.append(f"erasure_{uuid.uuid4().hex[:12]}")
        folder = tmp_path / f"world{len(names)}"
        with psycopg.connect(postgres_server, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {names[-1]} TEMPLATE {original.url.rpartition('/')[2]}")
        shutil.copytree(original.folder, folder)
        return World(on_server(postgres_server, names[-1]), folder, platform_in(folder))

    yield make
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        for name in names:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def world(make_world: Callable[[], World]) -> World:
    """A copy for this test."""
    return make_world()
