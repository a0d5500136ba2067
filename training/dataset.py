"""Reading a dataset folder: its rows by split, its product, its digest."""

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from product.loading import load_product
from product.protocol import Product, Row
from training.errors import TrainingError

ROWS_FILE = "training.parquet"
SCHEMA_FILE = "schema.json"
COLUMNS = ("input", "target", "metadata")
HELD_OUT = "replay"


@dataclass(frozen=True)
class Dataset:
    """One dataset version in memory. `digest` is the SHA-256 of training.parquet; held-out rows are only counted."""

    name: str
    version: str
    uri: str
    digest: str
    product: Product
    train: list[Row] = field(repr=False)
    validation: list[Row] = field(repr=False)
    held_out: int

    @property
    def trained_until(self) -> datetime:
        """Time of the newest row that training saw, validation included."""
        newest: datetime = max(row["metadata"]["timestamp"] for row in [*self.train, *self.validation])
        return newest


def read_dataset(uri: str, train_split: float = 0.9, val_split: float = 0.1) -> Dataset:
    """Read a dataset folder. The splits are used where the rows carry none (`metadata.split`).

    Raises TrainingError when the folder is missing, has another schema, or no rows to train or validate on.
    """
    uri = uri.rstrip("/")
    content = _bytes(uri)
    table = _table(content, uri)
    facts = _facts(table, uri)
    product = load_product(facts["product.class"], json.loads(facts["product.reference"]))
    rows = table.select(list(COLUMNS)).to_pylist()
    splits = _splits(rows, train_split, val_split)
    by_split: dict[str, list[Row]] = {"train": [], "validation": [], HELD_OUT: []}
    for row, split in zip(rows, splits, strict=True):
        if split not in by_split:
            raise TrainingError(f"Dataset {uri} has a row with split {split!r}; known are {', '.join(by_split)}.")
        by_split[split].append(row)
    for split in ("train", "validation"):
        if not by_split[split]:
            raise TrainingError(
                f"Dataset {uri} has no {split} rows ({len(rows)} rows in all): build it over a longer window or from more households."
            )
    parts = uri.split("/")
    return Dataset(
        name=parts[-2] if len(parts) > 1 else product.name,
        version=parts[-1],
        uri=uri,
        digest=hashlib.sha256(content).hexdigest(),
        product=product,
        train=by_split["train"],
        validation=by_split["validation"],
        held_out=len(by_split[HELD_OUT]),
    )


def read_product(uri: str) -> Product:
    """The product of a dataset folder, without its rows. Raises TrainingError like `read_dataset`."""
    uri = uri.rstrip("/")
    facts = _facts(_table(_bytes(uri), uri), uri)
    return load_product(facts["product.class"], json.loads(facts["product.reference"]))


def unit_of(row: Row) -> str:
    """The unit that a split keeps together: the household, `metadata.unit_id` of a product without households, else the row itself."""
    household = row["input"].get("household")
    if household:
        return str(household["id"])
    return str(row["metadata"].get("unit_id") or row["metadata"]["event_id"])


def training_rows_table(rows: Sequence[Row]) -> pa.Table:
    """Which events a model saw (`event_id`, `household_id`, `timestamp`), so that a replay can prove that it scores others."""
    return pa.table(
        {
            "event_id": pa.array([str(row["metadata"]["event_id"]) for row in rows], pa.string()),
            "household_id": pa.array([unit_of(row) for row in rows], pa.string()),
            "timestamp": pa.array([row["metadata"]["timestamp"] for row in rows], pa.timestamp("us", tz="UTC")),
        }
    )


def _bytes(uri: str) -> bytes:
    filesystem, folder = fsspec.core.url_to_fs(uri)
    try:
        if not filesystem.exists(f"{folder}/{SCHEMA_FILE}"):
            raise FileNotFoundError(f"no {SCHEMA_FILE}")
        with filesystem.open(f"{folder}/{ROWS_FILE}", "rb") as file:
            return bytes(file.read())
    except FileNotFoundError as error:
        raise TrainingError(
            f"There is no dataset at {uri} (it needs {ROWS_FILE} and {SCHEMA_FILE}): give --dataset the folder of a dataset version, "
            "such as datasets/planner/2025-01-03."
        ) from error
    except OSError as error:
        raise TrainingError(f"The dataset {uri} cannot be read ({error}): check access to it.") from error


def _table(content: bytes, uri: str) -> pa.Table:
    try:
        table = pq.read_table(io.BytesIO(content))
    except pa.ArrowInvalid as error:
        raise TrainingError(f"{uri}/{ROWS_FILE} is not a Parquet file ({error}): build the dataset again.") from error
    missing = [name for name in COLUMNS if name not in table.column_names]
    if missing:
        raise TrainingError(
            f"Dataset {uri} has another schema: column{'s' * (len(missing) > 1)} {', '.join(missing)} missing, found "
            f"{', '.join(table.column_names)}; training needs {', '.join(COLUMNS)} (docs/data-model.md)."
        )
    needed: dict[str, set[str]] = {"input": set(), "target": {"accepted_plan"}, "metadata": {"timestamp", "event_id"}}
    for name, fields in needed.items():
        kind = table.schema.field(name).type
        found = {kind.field(number).name for number in range(kind.num_fields)} if pa.types.is_struct(kind) else set()
        if fields - found or not found:
            what = ", ".join(sorted(fields - found)) or "fields"
            raise TrainingError(f"Dataset {uri} has another schema: {name} has no {what} (docs/data-model.md).")
    return table


def _facts(table: pa.Table, uri: str) -> dict[str, str]:
    facts = {
        key.decode(): value.decode()
        for key, value in (table.schema.metadata or {}).items()
        if key.startswith(b"product.")
    }
    missing = {"product.class", "product.reference"} - set(facts)
    if missing:
        raise TrainingError(
            f"Dataset {uri} does not say which product it belongs to (file metadata {', '.join(sorted(missing))} missing): build it "
            "again with this version of the platform."
        )
    return facts


def _splits(rows: Sequence[dict[str, Any]], train_split: float, val_split: float) -> list[str]:
    """Each row's split: its own, else by its household's hash."""
    return [
        row["metadata"].get("split") or _split_of(unit_of(row), train_split / (train_split + val_split)) for row in rows
    ]


def _split_of(unit: str, train_share: float) -> str:
    bucket = int.from_bytes(hashlib.sha256(f"training-split:{unit}".encode()).digest()[:8], "big") / 2**64
    return "train" if bucket < train_share else "validation"
