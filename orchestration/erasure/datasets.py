"""A unit in dataset versions: finding its rows, and publishing a revision of the version without them.

A revision is a version like any other, `2025-01-05` → `2025-01-05-r2`. Its schema.json and its summary say which version it revises and
how many rows were removed. The old folder is removed once nothing refers to it.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from assets.datasets.build import SUMMARY_FILE, read_version, versions
from assets.datasets.row_files import fields, parquet_bytes, read_parquet
from assets.datasets.summary import summary_markdown
from foundation.object_store import MissingObjectError, ObjectStore
from orchestration.erasure.contents import Trace, UncomparableError, event_ids, mask
from orchestration.erasure.findings import ErasureError
from product.protocol import RowWindow
from training.dataset import ROWS_FILE, SCHEMA_FILE
from training.versions import DatasetVersion


@dataclass(frozen=True)
class HeldVersion:
    """A dataset version that contains the unit: its URI, how many rows, and the ids of the events that the rows were built from."""

    name: str
    version: str
    uri: str
    rows: int
    event_ids: frozenset[str]


def versions_with(store: ObjectStore, trace: Trace) -> Iterator[HeldVersion]:
    """Every dataset version under the root that contains the unit. Raises ErasureError for a version that can't be read, and StoreError."""
    for name in sorted({key.partition("/")[0] for key in store.list() if key.endswith(f"/{ROWS_FILE}")}):
        for version in versions(store, name):
            table = _rows(store, f"{name}/{version}/{ROWS_FILE}")
            uri = store.uri(f"{name}/{version}")
            try:
                rows, ids = pc.sum(mask(table, trace)).as_py() or 0, event_ids(table, trace)
            except UncomparableError as error:
                raise ErasureError(
                    f"{uri} can't be searched ({error}): remove the version, and run this again."
                ) from error
            if rows:
                yield HeldVersion(name, version, uri, rows, ids)


def _rows(store: ObjectStore, key: str) -> pa.Table:
    try:
        with store.local_file(key) as path:
            return pq.ParquetFile(path).read(use_threads=False)
    except pa.ArrowInvalid as error:
        raise ErasureError(
            f"{store.uri(key)} can't be read ({error}): restore it from a backup, or remove its version."
        ) from error


def revise(store: ObjectStore, held: HeldVersion, trace: Trace) -> DatasetVersion:
    """Publish a revision without the unit's rows next to the version, and return it. Running it again finds the same revision.

    Raises StoreError.
    """
    before = read_version(store, held.name, held.version)
    table = before.rows.to_arrow(compat_level=pl.CompatLevel.oldest())
    rows = before.rows.filter(pl.Series(pc.invert(mask(table, trace)).to_pylist(), dtype=pl.Boolean))
    same_day = [version for version in versions(store, held.name) if version[:10] == held.version[:10]]
    for name in same_day:
        existing = read_version(store, held.name, name)
        if existing.facts == before.facts and existing.rows.equals(rows):
            return existing.version
    version = f"{held.version[:10]}-r{max(int(name[12:] or 1) for name in same_day) + 1}"
    folder, old = f"{held.name}/{version}", f"{held.name}/{held.version}"
    data = parquet_bytes(rows, before.facts)
    schema = json.loads(store.read(f"{old}/{SCHEMA_FILE}"))
    schema |= {"version": version, "revision_of": held.version, "erased_rows": held.rows}
    summary = _summary(_text(store, f"{old}/{SUMMARY_FILE}"), held, version, rows, len(data))
    store.write(f"{folder}/{SCHEMA_FILE}", (json.dumps(schema, indent=2) + "\n").encode())
    store.write(f"{folder}/{SUMMARY_FILE}", summary.encode())
    store.write(f"{folder}/{ROWS_FILE}", data, exclusive=True, verify=lambda stored: _verify(stored, rows))
    return replace(
        before.version,
        version=version,
        uri=store.uri(folder),
        digest=hashlib.sha256(data).hexdigest(),
        rows=rows.height,
    )


def remove(store: ObjectStore, held: HeldVersion) -> None:
    """Remove the files of a version, its rows first: a folder without rows is not a version. Raises StoreError."""
    folder = f"{held.name}/{held.version}"
    store.delete(f"{folder}/{ROWS_FILE}")
    store.delete_prefix(folder)


def _summary(old: str, held: HeldVersion, version: str, rows: pl.DataFrame, size: int) -> str:
    """The revision's summary page: new counts, with the window and the checks of the old version."""
    end = datetime.combine(date.fromisoformat(held.version[:10]), time(), UTC) + timedelta(days=1)
    note = f"A revision of {held.version}, which was removed: {held.rows:,} rows of an erased unit are gone. Checks are that version's."
    page = summary_markdown(
        held.name, version, rows, described=fields(rows.schema), size=size, window=RowWindow(end, end, 0), checks=(), excluded={},
        notes=[note],
    )  # fmt: skip
    head, _, rest = page.partition("## Checks\n")
    checks = old.partition("## Checks\n")[2].partition("## Notes\n")[0]
    kept = {start: _line(old, start) for start in ("| window |", "| checks |")}
    top = "\n".join(line for line in (kept.get(line[:10], line) for line in head.splitlines()) if line is not None)
    return f"{top}\n## Checks\n{checks}## Notes\n{rest.partition('## Notes')[2].lstrip()}"


def _line(text: str, start: str) -> str | None:
    return next((line for line in text.splitlines() if line.startswith(start)), None)


def _text(store: ObjectStore, key: str) -> str:
    try:
        return store.read(key).decode()
    except MissingObjectError:
        return ""


def _verify(stored: bytes, rows: pl.DataFrame) -> None:
    if not read_parquet(stored)[0].equals(rows):
        raise ErasureError(
            "The rows of a revision, read back, differ from the written rows, so nothing was published: run this again."
        )
