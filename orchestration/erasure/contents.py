"""A unit in the bytes of a file: which rows are about it, and the file without them. Parquet, JSON, JSON lines, CSV and plain text.

Belongs here: formats, and what makes a row a unit's. Does not belong here: where files lie.

A row is a unit's where a field named `unit_id` (beside a `unit_type`, if there is one), `household_id`, `user_id` or `session_id`, or the
`id` in a `household`, `user` or `session`, holds its id; or where an `event_id` is one of its events'. In prose only its events' ids are
looked for: an id such as `12` would be found everywhere.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from orchestration.erasure.records import Unit

UNREADABLE = (pa.ArrowInvalid, UnicodeDecodeError, ValueError, RecursionError, csv.Error)


@dataclass(frozen=True)
class Trace:
    """What a unit is known by in files: itself, and the ids of events that were found to be its."""

    unit: Unit
    event_ids: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Contents:
    """A file's rows of a unit, and its bytes without them."""

    rows: int
    without: bytes


def readable(name: str) -> bool:
    """Whether files of this name are looked into."""
    return PurePosixPath(name).suffix.lower() in _FORMATS


def look_into(name: str, data: bytes, trace: Trace) -> Contents:
    """The rows of the unit in a file of that name. Raises one of UNREADABLE where it is not what its name says."""
    return _FORMATS[PurePosixPath(name).suffix.lower()](data, trace)


def mask(table: pa.Table, trace: Trace) -> pa.Array:
    """Which rows of a table are the unit's."""
    found = pa.array([False] * table.num_rows, pa.bool_())
    for path in _paths(table.schema):
        hit = _hit(table, path, trace)
        if hit is not None:
            found = pc.or_(found, pc.fill_null(hit, False).combine_chunks())
    return found


def event_ids(table: pa.Table, trace: Trace) -> frozenset[str]:
    """The ids of the unit's events in a table."""
    mine = table.filter(mask(table, trace))
    paths = [path for path in _paths(table.schema) if path[-1] == "event_id"]
    return frozenset(str(value) for path in paths for value in _at(mine, path).to_pylist() if value is not None)


def _hit(table: pa.Table, path: tuple[str, ...], trace: Trace) -> pa.ChunkedArray | None:
    kind, unit_id, last = trace.unit.unit_type, trace.unit.unit_id, path[-1]
    column = _at(table, path)
    if not pa.types.is_string(column.type) and not pa.types.is_large_string(column.type):
        return None
    if last == "event_id":
        return pc.is_in(column, pa.array(sorted(trace.event_ids), column.type))
    hit = pc.equal(column, unit_id)
    if last == "unit_id":
        typed = (*path[:-1], "unit_type")
        return pc.and_(hit, pc.equal(_at(table, typed), kind)) if typed in set(_paths(table.schema)) else hit
    return hit if last == f"{kind}_id" or path[-2:] == (kind, "id") else None


def _at(table: pa.Table, path: tuple[str, ...]) -> pa.ChunkedArray:
    column = table[path[0]]
    return pc.struct_field(column, list(path[1:])) if len(path) > 1 else column


def _paths(schema: pa.Schema) -> Iterator[tuple[str, ...]]:
    def below(field: pa.Field, before: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        path = (*before, field.name)
        if not pa.types.is_struct(field.type):
            yield path
            return
        for index in range(field.type.num_fields):
            yield from below(field.type.field(index), path)

    for field in schema:
        yield from below(field, ())


def _parquet(data: bytes, trace: Trace) -> Contents:
    table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
    mine = mask(table, trace)
    rows = pc.sum(mine).as_py() or 0
    if not rows:
        return Contents(0, data)
    sink = io.BytesIO()
    pq.write_table(table.filter(pc.invert(mine)), sink, compression="zstd")
    return Contents(rows, sink.getvalue())


def _json(data: bytes, trace: Trace) -> Contents:
    rows, kept = _without(json.loads(data), trace)
    return Contents(rows, json.dumps(kept, indent=2).encode() if rows else data)


def _json_lines(data: bytes, trace: Trace) -> Contents:
    lines = data.decode().splitlines(keepends=True)
    kept = [line for line in lines if not line.strip() or not _about(json.loads(line), trace)]
    return Contents(len(lines) - len(kept), "".join(kept).encode())


def _csv(data: bytes, trace: Trace) -> Contents:
    rows = list(csv.reader(io.StringIO(data.decode(), newline=""), strict=True))
    header = rows[0] if rows else []
    kept = [row for row in rows[1:] if not _about(dict(zip(header, row, strict=False)), trace)]
    if len(kept) == len(rows[1:]):
        return Contents(0, data)
    made = io.StringIO(newline="")
    csv.writer(made, lineterminator="\n").writerows([header, *kept])
    return Contents(len(rows) - 1 - len(kept), made.getvalue().encode())


def _text(data: bytes, trace: Trace) -> Contents:
    lines = data.decode().splitlines(keepends=True)
    kept = [line for line in lines if not _tells_of(line, trace)]
    return Contents(len(lines) - len(kept), "".join(kept).encode())


def _without(value: Any, trace: Trace) -> tuple[int, Any]:
    """How often the unit stands in it, and the value without that: elements leave their lists, a field loses its value."""
    if _about(value, trace):
        return 1, None
    if isinstance(value, dict):
        parts = {name: _without(item, trace) for name, item in value.items()}
        return sum(rows for rows, _ in parts.values()), {name: kept for name, (_, kept) in parts.items()}
    if isinstance(value, list):
        items = [(_without(item, trace), _about(item, trace)) for item in value]
        return sum(rows for (rows, _), _ in items), [kept for (_, kept), gone in items if not gone]
    return 0, value


def _about(value: Any, trace: Trace) -> bool:
    """Whether a value, with the objects in it but not their lists, is the unit's."""
    if isinstance(value, str):
        return _tells_of(value, trace)
    if not isinstance(value, dict):
        return False
    kind, unit_id = trace.unit.unit_type, trace.unit.unit_id
    named = value.get("unit_id") == unit_id and value.get("unit_type", kind) == kind
    inner, event_id = value.get(kind), value.get("event_id")
    return (
        named
        or value.get(f"{kind}_id") == unit_id
        or (isinstance(inner, dict) and inner.get("id") == unit_id)
        or (isinstance(event_id, str) and event_id in trace.event_ids)
        or any(_about(item, trace) for item in value.values() if isinstance(item, dict))
    )


def _tells_of(text: str, trace: Trace) -> bool:
    return any(event_id in text for event_id in trace.event_ids)


_FORMATS: dict[str, Callable[[bytes, Trace], Contents]] = {
    ".parquet": _parquet,
    ".json": _json,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".csv": _csv,
    ".md": _text,
    ".txt": _text,
    ".log": _text,
    ".yaml": _text,
    ".yml": _text,
}
