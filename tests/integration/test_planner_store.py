"""The schema `planner` in a real database: stored rows are read back unchanged, repeated stores change nothing, and changes are counted."""

from collections.abc import Iterator
from datetime import date
from typing import Any

import polars as pl
import psycopg
import pytest

from planner.catalogue import Catalogue, sample_catalogue
from planner.simulator import Sample, simulate
from planner.store import domain_frames, store_tables, upsert_recipes
from planner.tables import DOMAIN_SCHEMAS, domain_frame


@pytest.fixture(scope="module")
def sample() -> Sample:
    return simulate(sample_catalogue(), seed=5, households=25, weeks=2, end=date(2025, 1, 5))


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database_url) as connection:
        yield connection


def test_stored_tables_are_read_back_with_types_and_order(connection: psycopg.Connection[Any], sample: Sample) -> None:
    stored = store_tables(connection, sample.tables)
    assert stored == {name: len(frame) for name, frame in sample.tables.items()}
    frames = domain_frames(connection)
    assert list(frames) == list(DOMAIN_SCHEMAS)
    for name, frame in sample.tables.items():
        assert frames[name].equals(frame), name
    assert Catalogue.from_records(frames["recipes"].to_dicts()) == sample_catalogue()


def test_times_are_utc_in_any_session_time_zone(connection: psycopg.Connection[Any], sample: Sample) -> None:
    connection.execute("SET TIME ZONE 'America/New_York'")
    store_tables(connection, sample.tables)
    assert domain_frames(connection)["pantry_snapshots"].equals(sample.tables["pantry_snapshots"])


def test_storing_the_same_tables_again_changes_nothing(connection: psycopg.Connection[Any], sample: Sample) -> None:
    store_tables(connection, sample.tables)
    before = domain_frames(connection)
    assert set(store_tables(connection, sample.tables).values()) == {0}
    assert all(before[name].equals(frame) for name, frame in domain_frames(connection).items())


def test_changed_recipe_is_counted_and_stored(connection: psycopg.Connection[Any], sample: Sample) -> None:
    store_tables(connection, sample.tables)
    record = {
        **sample_catalogue()["beef-tacos"].to_record(),
        "cost": None,
        "submitted": date(2008, 2, 19),
        "ingredients": ["beef"],
    }
    assert upsert_recipes(connection, [record, sample_catalogue()["harira"].to_record()]) == 1
    recipe = Catalogue.from_records(domain_frames(connection)["recipes"].to_dicts())["beef-tacos"]
    assert (recipe.cost, recipe.submitted, recipe.ingredients) == (None, date(2008, 2, 19), ("beef",))


def test_an_empty_database_gives_empty_frames_of_the_right_shape(connection: psycopg.Connection[Any]) -> None:
    frames = domain_frames(connection)
    assert {name: dict(frame.schema) for name, frame in frames.items()} == DOMAIN_SCHEMAS
    assert all(frame.is_empty() for frame in frames.values())
    assert store_tables(connection, frames) == dict.fromkeys(DOMAIN_SCHEMAS, 0)


def test_awkward_texts_are_stored_unchanged(connection: psycopg.Connection[Any]) -> None:
    odd = ["it's", 'say "hi"', "back\\slash", "tab\tand\nline", "{curly,comma}", "NULL", "naïve 🍲", "$1; DROP TABLE x"]
    upsert_recipes(connection, [{"id": "odd", "title": odd[3], "ingredients": odd, "dietary_tags": [], "servings": 2}])
    (stored,) = domain_frames(connection)["recipes"].to_dicts()
    assert (stored["title"], stored["ingredients"], stored["dietary_tags"], stored["prep_minutes"]) == (
        odd[3],
        odd,
        [],
        None,
    )


def test_rows_without_a_household_and_unknown_tables_are_refused(
    connection: psycopg.Connection[Any], sample: Sample
) -> None:
    with pytest.raises(psycopg.errors.ForeignKeyViolation), connection.transaction():
        store_tables(connection, {"pantry_snapshots": sample.tables["pantry_snapshots"]})
    with pytest.raises(KeyError, match="Unknown domain table recipe"):
        store_tables(connection, {"recipe": pl.DataFrame()})


def test_storing_happens_in_the_callers_transaction(database_url: str, sample: Sample) -> None:
    with psycopg.connect(database_url) as connection:
        store_tables(connection, sample.tables)
        connection.rollback()
        assert domain_frames(connection)["recipes"].is_empty()


def test_a_frame_keeps_only_the_columns_of_its_table() -> None:
    frame = domain_frame("households", [{"id": "b", "size": 2, "secret": 1}, {"id": "a", "size": 1}])
    assert frame.columns == list(DOMAIN_SCHEMAS["households"]) and frame["id"].to_list() == ["a", "b"]
