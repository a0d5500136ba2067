"""Publishing a dataset version: three files that never change, all of them or none.

{root}/{product}/{YYYY-MM-DD}[-rN]/   schema.json, dataset_summary.md, and last training.parquet, which makes the version exist
"""

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import polars as pl

from assets.datasets.checks import CheckResult
from assets.datasets.row_files import canonical_json, fields, parquet_bytes, read_parquet
from assets.datasets.summary import summary_markdown
from foundation.errors import LifecycleError
from foundation.object_store import ObjectExistsError, ObjectStore
from product.loading import class_path
from product.protocol import Product, RowWindow
from training.dataset import ROWS_FILE, SCHEMA_FILE
from training.versions import DatasetVersion

SUMMARY_FILE = "dataset_summary.md"
_VERSION = re.compile(r"(\d{4}-\d\d-\d\d)(?:-r([1-9]\d*))?")


class DatasetRefusedError(LifecycleError):
    """A version may not be published."""


@dataclass(frozen=True)
class PublishedDataset:
    """A version as it is stored: its record, rows, the fields of its schema.json and the product's reference data."""

    version: DatasetVersion
    rows: pl.DataFrame
    fields: list[dict[str, Any]]
    facts: dict[str, str]


def build_dataset(
    rows: pl.DataFrame,
    *,
    store: ObjectStore,
    product: Product,
    window: RowWindow,
    checks: Sequence[CheckResult] = (),
    excluded: Mapping[str, int] | None = None,
    nullable: Collection[str] | None = None,
    notes: Sequence[str] = (),
    revision: bool = False,
) -> DatasetVersion:
    """Publish the rows (columns input, target, metadata) as the version of the window's last day.

    If a version of that day has the same rows and reference data, it is returned and nothing is written. Other data raises
    DatasetRefusedError, or becomes the next `-rN` with `revision`. `nullable`: dotted paths that schema.json publishes as nullable.
    Its digest is the SHA-256 of training.parquet. Raises foundation.object_store.StoreError.
    """
    day = version_day(window)
    facts = {"product.class": class_path(product), "product.reference": canonical_json(product.reference())}
    data = parquet_bytes(rows, facts)
    described = fields(rows.schema, nullable)
    while True:
        published = [name for name in versions(store, product.name) if _day_of(name) == day]
        for name in published:
            existing = read_version(store, product.name, name)
            if existing.facts == facts and existing.rows.equals(rows):
                return existing.version
        if published and not revision:
            raise DatasetRefusedError(_why_refused(read_version(store, product.name, published[-1]), rows, facts))
        version = f"{day}-r{_revision_of(published[-1]) + 1}" if published else str(day)
        summary = summary_markdown(
            product.name, version, rows, described=described, size=len(data), window=window, checks=checks,
            excluded=excluded or {}, notes=notes,
        )  # fmt: skip
        schema = {"version": version, "model": product.name, "created_at": window.end.isoformat(), "fields": described}
        folder = f"{product.name}/{version}"
        store.write(f"{folder}/{SCHEMA_FILE}", (json.dumps(schema, indent=2) + "\n").encode())
        store.write(f"{folder}/{SUMMARY_FILE}", summary.encode())
        try:
            store.write(f"{folder}/{ROWS_FILE}", data, exclusive=True, verify=lambda stored: _verify(stored, rows))
        except ObjectExistsError:
            # Another process published this version meanwhile: compare again.
            continue
        return DatasetVersion(product.name, version, store.uri(folder), _digest(data), rows.height)


def version_day(window: RowWindow) -> date:
    """The date that names a version: the last day of its window."""
    return (window.end - timedelta(days=1)).date()


def versions(store: ObjectStore, name: str) -> list[str]:
    """Complete versions, oldest date and lowest revision first."""
    suffix = f"/{ROWS_FILE}"
    names = {key.split("/")[-2] for key in store.list(name) if key.endswith(suffix) and key.count("/") == 2}
    return sorted(filter(_VERSION.fullmatch, names), key=lambda version: (_day_of(version), _revision_of(version)))


def version_before(store: ObjectStore, name: str, day: date) -> PublishedDataset | None:
    """The newest version of an earlier date, or None."""
    earlier = [version for version in versions(store, name) if _day_of(version) < day]
    return read_version(store, name, earlier[-1]) if earlier else None


def read_version(store: ObjectStore, name: str, version: str) -> PublishedDataset:
    """A version from the store. Raises foundation.object_store.MissingObjectError if it does not exist."""
    folder = f"{name}/{version}"
    data = store.read(f"{folder}/{ROWS_FILE}")
    rows, facts = read_parquet(data)
    described = json.loads(store.read(f"{folder}/{SCHEMA_FILE}"))["fields"]
    return PublishedDataset(
        DatasetVersion(name, version, store.uri(folder), _digest(data), rows.height), rows, described, facts
    )


def _verify(stored: bytes, rows: pl.DataFrame) -> None:
    if not read_parquet(stored)[0].equals(rows):
        raise DatasetRefusedError("The rows read back differ from those written; nothing was published.")


def _why_refused(existing: PublishedDataset, rows: pl.DataFrame, facts: Mapping[str, str]) -> str:
    if not existing.rows.equals(rows):
        difference = f"other rows ({existing.rows.height:,} then, {rows.height:,} now)"
    elif existing.facts.get("product.class") != facts["product.class"]:
        difference = f"the product {existing.facts.get('product.class')} (now {facts['product.class']})"
    else:
        difference = "the same rows and other reference data (the product's items changed since)"
    return (
        f"{existing.version.uri} was published with {difference}, and a version never changes: "
        "ask for a new revision (`revision: true` in the run's config) to publish this next to it."
    )


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _day_of(version: str) -> date:
    return date.fromisoformat(version[:10])


def _revision_of(version: str) -> int:
    """1 for a plain date, N for -rN."""
    return int(version[12:] or 1)
