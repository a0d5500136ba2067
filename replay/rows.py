"""Which rows of a dataset may be scored: only those that neither model was trained on.

A row is *unseen* by a model when its event was not trained on and, beyond that, its household was not trained on or the row is later
than everything that was. The choice is then checked again on the chosen rows: a replay with overlap is refused, never reported.
"""

import hashlib
import io
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from foundation.errors import LifecycleError
from product.protocol import Product, Row
from training.dataset import COLUMNS, HELD_OUT, ROWS_FILE, read_product

SAMPLE_SEED = 42
SAMPLE_SIZE = 1000

RowChoice = Literal["unseen", "held-out", "all"]
"""`unseen`: every row that neither model was trained on. `held-out` and `all` ask for the rows of the replay split, or for every row,
and are refused where a model was trained on one of them."""


class ReplayError(LifecycleError):
    """A replay cannot be done. A refused gate is a result, not an error."""


@dataclass(frozen=True)
class TrainedOn:
    """What one model version was trained on; nothing for a rule-based planner. `until`: the newest row that training saw."""

    model: str
    event_ids: frozenset[str] = field(default_factory=frozenset, repr=False)
    households: frozenset[str] = field(default_factory=frozenset, repr=False)
    until: datetime | None = None

    def saw(self, key: "RowKey") -> bool:
        """Whether this row cannot test the model: trained on, or an earlier row of a household in its training data."""
        if key.event_id in self.event_ids:
            return True
        return key.household in self.households and self.until is not None and key.timestamp <= self.until


@dataclass(frozen=True)
class RowKey:
    """What the choice needs to know of a row."""

    event_id: str
    household: str
    timestamp: datetime
    split: str | None


@dataclass(frozen=True)
class Selection:
    """How the scored rows were chosen: counts for the report."""

    choice: RowChoice
    in_dataset: int
    seen: dict[str, int]
    """Rows of the dataset that each model saw, by model."""
    eligible: int
    scored: int
    overlap: int
    """Scored rows that a model was trained on: always 0, counted independently of the choice."""
    later_rows_of_known_households: int
    """Scored rows of households that a model was trained on; they are later than its cut-off."""
    seed: int


@dataclass(frozen=True)
class DatasetRows:
    """A dataset version with its product, and its rows as a table that has not been turned into Python objects yet."""

    name: str
    version: str
    uri: str
    digest: str
    product: Product
    table: pa.Table = field(repr=False)

    def keys(self) -> list[RowKey]:
        """One key a row, in the dataset's order. Raises ReplayError if an event occurs twice."""
        metadata = self.table["metadata"]
        splits = _field(metadata, "split") if _has(metadata, "split") else [None] * len(self.table)
        events = [str(event_id) for event_id in _field(metadata, "event_id")]
        if len(set(events)) < len(events):
            raise ReplayError(f"Dataset {self.uri} has {len(events) - len(set(events))} events twice: build it again.")
        households = [str(household) for household in _field(self.table["input"], "household", "id")]
        times = _field(metadata, "timestamp")
        return [RowKey(*parts) for parts in zip(events, households, times, splits, strict=True)]

    def take(self, positions: Sequence[int]) -> list[Row]:
        """Rows as plain dicts, in the order of `positions`."""
        rows: list[Row] = self.table.select(list(COLUMNS)).take(list(positions)).to_pylist()
        return rows


def read_rows(uri: str, digest: str | None = None) -> DatasetRows:
    """Read a dataset folder, local or s3://.

    Raises TrainingError when it is missing or has another schema, ReplayError when its rows are not those of `digest` (SHA-256 of
    training.parquet).
    """
    uri = uri.rstrip("/")
    product = read_product(uri)
    filesystem, folder = fsspec.core.url_to_fs(uri)
    try:
        content = bytes(filesystem.cat_file(f"{folder}/{ROWS_FILE}"))
    except OSError as error:
        raise ReplayError(f"The dataset {uri} cannot be read ({error}): check access to it.") from error
    actual = hashlib.sha256(content).hexdigest()
    if digest is not None and digest != actual:
        raise ReplayError(
            f"The dataset {uri} is not the one that was recorded (SHA-256 {actual[:12]}…, recorded {digest[:12]}…): a dataset version "
            "never changes, so build a new version instead."
        )
    parts = uri.split("/")
    name = parts[-2] if len(parts) > 1 else product.name
    return DatasetRows(name, parts[-1], uri, actual, product, pq.read_table(io.BytesIO(content)))


def choose_rows(
    keys: Sequence[RowKey],
    trained: Sequence[TrainedOn],
    *,
    choice: RowChoice = "unseen",
    sample_size: int | None = SAMPLE_SIZE,
    seed: int = SAMPLE_SEED,
) -> tuple[list[int], Selection]:
    """Positions of the rows to score, in the dataset's order, and how they were chosen. None as sample size takes every row.

    Raises ReplayError if requested rows were trained on, if no row is left, or if the sample size is below 1.
    """
    if sample_size is not None and sample_size < 1:
        raise ReplayError(f"The sample size must be at least 1, not {sample_size}: leave it out to score every row.")
    unseen = [not any(model.saw(key) for model in trained) for key in keys]
    wanted = [choice == "all" or (choice == "held-out" and key.split == HELD_OUT) for key in keys]
    if choice != "unseen":
        _refuse_overlap([key for key, asked in zip(keys, wanted, strict=True) if asked], trained, choice)
    positions = [
        at for at, (new, asked) in enumerate(zip(unseen, wanted, strict=True)) if asked or (choice == "unseen" and new)
    ]
    eligible = len(positions)
    if not positions:
        raise ReplayError(_nothing_left(keys, trained, choice))
    if sample_size is not None and eligible > sample_size:
        positions = sorted(random.Random(seed).sample(positions, sample_size))
    chosen = [keys[at] for at in positions]
    overlap = len({key.event_id for key in chosen} & frozenset().union(*(model.event_ids for model in trained)))
    if overlap:
        raise ReplayError(f"{overlap} of {len(chosen)} chosen rows were trained on; nothing was scored.")
    known = frozenset().union(*(model.households for model in trained))
    return positions, Selection(
        choice=choice,
        in_dataset=len(keys),
        seen={model.model: sum(map(model.saw, keys)) for model in trained},
        eligible=eligible,
        scored=len(chosen),
        overlap=overlap,
        later_rows_of_known_households=sum(key.household in known for key in chosen),
        seed=seed,
    )


def _refuse_overlap(asked: Sequence[RowKey], trained: Sequence[TrainedOn], choice: RowChoice) -> None:
    seen = {model.model: sum(map(model.saw, asked)) for model in trained}
    overlaps = " and ".join(f"{count} of them by {name}" for name, count in seen.items() if count)
    if overlaps:
        raise ReplayError(
            f"Rows `{choice}` asks for {len(asked)} rows, and training saw {overlaps}: a model is not tested on what it learnt. "
            "Choose rows `unseen`, or a later dataset."
        )


def _nothing_left(keys: Sequence[RowKey], trained: Sequence[TrainedOn], choice: RowChoice) -> str:
    if choice == "held-out":
        return f"None of the dataset's {len(keys)} rows is held out for replay: choose rows `unseen`, or a dataset that holds some out."
    seen = ", ".join(f"{sum(map(model.saw, keys))} by {model.model}" for model in trained)
    return (
        f"None of the dataset's {len(keys)} rows is unseen by both models ({seen or 'no models'}): replay on a later dataset, or one "
        "with held-out households."
    )


def _field(column: Any, *path: str) -> list[Any]:
    values: list[Any] = pc.struct_field(column, list(path)).to_pylist()
    return values


def _has(column: Any, name: str) -> bool:
    return name in set(_names(column.type))


def _names(kind: pa.StructType) -> Iterator[str]:
    return (kind.field(number).name for number in range(kind.num_fields))
