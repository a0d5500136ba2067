"""A dataset version in a folder and on S3: three files, the same bytes for the same data, immutable, published completely or not at all."""

import json
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest

from assets.datasets.build import DatasetRefusedError, build_dataset, read_version, version_before, versions
from assets.datasets.checks import CheckResult
from foundation.object_store import ObjectStore
from planner.catalogue import sample_catalogue
from planner.meal_planner import MealPlanner
from planner.rows import NULLABLE, planner_rows
from planner.sessions import events_frame
from planner.simulator import simulate
from product.protocol import RowWindow
from training.dataset import read_dataset

pytest_plugins = ["s3_service"]

PRODUCT = MealPlanner()


@cache
def made() -> tuple[pl.DataFrame, RowWindow]:
    sample = simulate(sample_catalogue(), seed=9, households=40, weeks=3, end=date(2025, 6, 1))
    window = RowWindow(sample.start, sample.end, 28)
    return planner_rows(events_frame(sample.events), sample.tables, window), window


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "folder":
        return ObjectStore(str(tmp_path / "datasets"))
    return ObjectStore(request.getfixturevalue("s3_root"))


def build(store: ObjectStore, rows: pl.DataFrame | None = None, **options: Any) -> Any:
    given = {"product": PRODUCT, "window": made()[1], "nullable": NULLABLE, **options}
    return build_dataset(made()[0] if rows is None else rows, store=store, **given)


def test_build_writes_three_files_that_training_can_read(store: ObjectStore) -> None:
    rows, _ = made()
    checks = [CheckResult("enough_rows", True, "Enough."), CheckResult("no_drift", False, "Items | shifted\nmuch.")]
    version = build(store, checks=checks, excluded={"no_plan_generated": 3}, notes=["A <note>."])

    assert (version.name, version.version, version.rows) == ("planner", "2025-06-01", rows.height)
    assert version.uri == store.uri("planner/2025-06-01")
    assert store.list() == [
        f"planner/2025-06-01/{name}" for name in ("dataset_summary.md", "schema.json", "training.parquet")
    ]
    schema = json.loads(store.read("planner/2025-06-01/schema.json"))
    assert {name: schema[name] for name in ("version", "model", "created_at")} == {
        "version": "2025-06-01",
        "model": "planner",
        "created_at": "2025-06-02T00:00:00+00:00",
    }
    fields = {field["name"]: field for field in schema["fields"]}
    assert list(fields) == ["input", "target", "metadata"]
    nested = {field["name"]: field for field in fields["input"]["fields"]}
    assert nested["previous_plan"]["nullable"] and not nested["household"]["nullable"]
    assert nested["pantry"]["fields"][0] == {
        "name": "items",
        "type": "list<struct>",
        "nullable": False,
        "fields": [
            {"name": "name", "type": "string", "nullable": False},
            {"name": "quantity", "type": "float64", "nullable": False},
            {"name": "unit", "type": "string", "nullable": False},
        ],
    }
    summary = store.read("planner/2025-06-01/dataset_summary.md").decode()
    households = rows["input"].struct.field("household").struct.field("id").n_unique()
    for line in (
        f"| rows | {rows.height:,} |",
        f"| households | {households} |",
        "| checks | 1 of 2 passed |",
        "| no_drift | failed (WARN) | Items \\| shifted much. |",
        "| no_plan_generated | 3 |",
        "- A \\<note\\>.",
    ):
        assert line in summary
    assert read_version(store, "planner", "2025-06-01").rows.equals(rows)
    if not store.remote:
        data = read_dataset(version.uri)
        assert data.digest == version.digest
        assert data.product == PRODUCT
        assert len(data.train) + len(data.validation) + data.held_out == rows.height
        assert data.train[0]["input"] in [row["input"] for row in rows.to_dicts()]


def test_build_returns_the_same_version_when_the_data_is_unchanged(store: ObjectStore) -> None:
    first = build(store)
    before = {key: store.read(key) for key in store.list()}
    assert build(store) == first
    assert build(store, revision=True) == first
    assert {key: store.read(key) for key in store.list()} == before
    elsewhere = ObjectStore(store.uri("elsewhere"))
    assert build(elsewhere).digest == first.digest
    assert elsewhere.read("planner/2025-06-01/training.parquet") == before["planner/2025-06-01/training.parquet"]


def test_changed_data_is_refused_or_becomes_a_revision_on_request(store: ObjectStore) -> None:
    first, fewer = build(store), made()[0].head(20)
    with pytest.raises(DatasetRefusedError, match=r"other rows \(\d+ then, 20 now\), and a version never changes"):
        build(store, fewer)
    second = build(store, fewer, revision=True)
    assert (second.version, second.rows) == ("2025-06-01-r2", 20)
    third = build(store, made()[0].head(10), revision=True)
    assert versions(store, "planner") == ["2025-06-01", "2025-06-01-r2", "2025-06-01-r3"]
    # Each is found again by its data.
    assert [build(store), build(store, fewer), build(store, made()[0].head(10))] == [first, second, third]


def test_build_is_refused_when_only_the_reference_data_changed(store: ObjectStore) -> None:
    build(store)
    with pytest.raises(DatasetRefusedError, match="the same rows and other reference data"):
        build(store, product=MealPlanner(meals=4))


def test_versions_are_listed_by_date_without_incomplete_ones(store: ObjectStore) -> None:
    assert version_before(store, "planner", date(2030, 1, 1)) is None
    build(store)
    for number in range(2, 12):
        for key in store.list("planner/2025-06-01"):
            store.write(key.replace("2025-06-01", f"2025-06-01-r{number}"), store.read(key))
    store.write("planner/2025-06-02/schema.json", b"{}")
    store.write("planner/notes/training.parquet", b"not a version")
    assert versions(store, "planner")[-2:] == ["2025-06-01-r10", "2025-06-01-r11"]
    latest = version_before(store, "planner", date(2025, 6, 2))
    assert latest is not None and latest.version.version == "2025-06-01-r11"
    assert version_before(store, "planner", date(2025, 6, 1)) is None


def test_concurrent_builders_publish_one_version(store: ObjectStore) -> None:
    # Processes, as Dagster's runs are: threads of one process can wait for each other inside polars.
    with ProcessPoolExecutor(3, mp_context=multiprocessing.get_context("spawn")) as pool:
        same = list(pool.map(build, [store] * 3))
    assert len(set(same)) == 1
    assert versions(store, "planner") == ["2025-06-01"]


def test_build_accepts_rows_of_another_product(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "unit"))
    monkeypatch.delitem(sys.modules, "tiny_product", raising=False)
    from tiny_product import sample_playlists

    window = made()[1]
    rows = pl.DataFrame(
        [
            {
                "input": {"listener": "l", "clean_only": True, "length": 1},
                "target": {"accepted_plan": {"meals": [{"day": 0, "recipe_id": "s1", "servings": 1}]}},
                "metadata": {"timestamp": window.start, "event_id": "e", "policy_version_id": None},
            }
        ]
    )
    store = ObjectStore(str(tmp_path))
    version = build_dataset(rows, store=store, product=sample_playlists(), window=window)
    assert version.uri.endswith("playlist/2025-06-01")
    facts = pq.read_schema(f"{version.uri}/training.parquet").metadata
    assert facts[b"product.class"] == b"tiny_product:Playlists"
