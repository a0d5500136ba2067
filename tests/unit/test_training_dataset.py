"""Reading a dataset folder: what training takes from it, and a clear error for every unusable folder."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from training_support import dataset_folder, rows_of, small_product

from product.loading import ProductError, class_path, code_paths, load_product
from training.dataset import read_dataset, read_product, training_rows_table, unit_of
from training.errors import TrainingError

PRODUCT = small_product()
ROWS = rows_of(PRODUCT, 30)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return dataset_folder(tmp_path / "planner" / "2025-01-12", ROWS, PRODUCT)


def test_rows_are_read_by_split_without_the_held_out_rows(folder: Path) -> None:
    dataset = read_dataset(str(folder))
    assert (dataset.name, dataset.version, dataset.product) == ("planner", "2025-01-12", PRODUCT)
    splits = [row["metadata"]["split"] for row in ROWS]
    assert len(dataset.train) == splits.count("train") and len(dataset.validation) == splits.count("validation")
    assert dataset.held_out == splits.count("replay")
    assert dataset.trained_until == max(
        row["metadata"]["timestamp"] for row in ROWS if row["metadata"]["split"] != "replay"
    )
    assert read_product(str(folder) + "/") == PRODUCT


def test_households_are_split_by_hash_when_the_dataset_has_no_splits(tmp_path: Path) -> None:
    rows = [{**row, "metadata": {**row["metadata"], "split": None}} for row in ROWS * 2]
    dataset = read_dataset(str(dataset_folder(tmp_path / "d", rows, PRODUCT)), 0.5, 0.5)
    trained, validated = ({unit_of(row) for row in part} for part in (dataset.train, dataset.validation))
    assert trained and validated and not trained & validated


def test_training_rows_are_listed_with_household_and_time() -> None:
    table = training_rows_table(ROWS)
    assert table.column_names == ["event_id", "household_id", "timestamp"]
    assert table["event_id"].to_pylist() == [row["metadata"]["event_id"] for row in ROWS]


def refused(folder: Path) -> str:
    with pytest.raises(TrainingError) as error:
        read_dataset(str(folder))
    assert "\n" not in str(error.value)
    return str(error.value)


def rewritten(folder: Path, change: Any) -> Path:
    pq.write_table(change(pq.read_table(folder / "training.parquet")), folder / "training.parquet")
    return folder


def test_a_folder_without_a_dataset_is_refused(tmp_path: Path, folder: Path) -> None:
    assert "There is no dataset at" in refused(tmp_path / "nothing")
    (folder / "schema.json").unlink()
    assert "There is no dataset at" in refused(folder)


def test_a_file_that_is_not_parquet_is_refused(folder: Path) -> None:
    (folder / "training.parquet").write_text("not parquet")
    assert "not a Parquet file" in refused(folder)


def test_the_error_names_missing_columns(folder: Path) -> None:
    assert "column target missing" in refused(rewritten(folder, lambda table: table.drop_columns(["target"])))


def test_the_error_names_missing_nested_fields(folder: Path) -> None:
    plans = pa.array([{"plan": None}] * len(ROWS))
    message = refused(
        rewritten(
            folder,
            lambda table: table.set_column(1, "target", plans).replace_schema_metadata(table.schema.metadata),
        )
    )
    assert "target has no accepted_plan" in message


def test_a_dataset_of_an_unknown_product_is_refused(folder: Path) -> None:
    assert "does not say which product" in refused(rewritten(folder, lambda table: table.replace_schema_metadata(None)))


def test_a_dataset_without_validation_rows_is_refused(tmp_path: Path) -> None:
    rows = [{**row, "metadata": {**row["metadata"], "split": "train"}} for row in ROWS]
    assert "no validation rows" in refused(dataset_folder(tmp_path / "d", rows, PRODUCT))


@pytest.mark.parametrize("path", ["planner.nothing:MealPlanner", "planner.meal_planner:Nothing", "nonsense", ""])
def test_a_product_that_cannot_be_imported_is_refused(path: str) -> None:
    with pytest.raises(ProductError, match="cannot be imported"):
        load_product(path, {})


def test_reference_data_of_another_product_is_refused() -> None:
    with pytest.raises(ProductError, match="cannot be built from its reference data"):
        load_product(class_path(PRODUCT), {"songs": {}})


def test_packaged_code_is_the_platforms_and_the_products() -> None:
    assert [Path(path).name for path in code_paths(PRODUCT)] == ["foundation", "planner", "product", "training"]
    import tiny_product

    playlists = tiny_product.Playlists({})
    assert [Path(path).name for path in code_paths(playlists)] == [
        "foundation",
        "product",
        "tiny_product.py",
        "training",
    ]


def test_product_can_be_rebuilt_from_its_reference_data() -> None:
    again = load_product(class_path(PRODUCT), json.loads(json.dumps(PRODUCT.reference())))
    assert again == PRODUCT
