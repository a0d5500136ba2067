"""A unit in the bytes of a file: the rows about it, and the file without them. Parquet, JSON, JSON lines, CSV and plain text.

A row belongs to a unit if its id, as text or as a number, is in `unit_id` (with a matching `unit_type`, if there is one), in
`household_id`, `user_id` or `session_id`, or in the `id` of a `household`, `user` or `session`; or if `event_id` names one of its events.
Table rows, lines and list elements count as rows. Any other object only loses the fields about the unit.
Prose is searched only for ids of the unit's events: an id such as `12` would match everywhere.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from orchestration.erasure.findings import Unit

UNREADABLE = (pa.ArrowInvalid, UnicodeDecodeError, ValueError, RecursionError, csv.Error)

_TEXTS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
_COMPARED = (*_TEXTS, pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_null)


class UncomparableError(ValueError):
    """A column is named like a unit id but has a type that can't be compared with one. The message is a clause, not a sentence."""


@dataclass(frozen=True)
class Trace:
    """What identifies a unit in files: its own id, and the ids of its known events."""

    unit: Unit
    event_ids: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Contents:
    """A file's rows of a unit, and its bytes without them."""

    rows: int
    without: bytes


def readable(name: str) -> bool:
    """Whether files with this name are searched."""
    return PurePosixPath(name).suffix.lower() in _FORMATS


def look_into(name: str, data: bytes, trace: Trace) -> Contents:
    """The unit's rows in a file with this name. Raises one of UNREADABLE if the content does not match the file's suffix."""
    return _FORMATS[PurePosixPath(name).suffix.lower()](data, trace)


def mask(table: pa.Table, trace: Trace) -> pa.Array:
    """Which rows of a table belong to the unit. Raises UncomparableError."""
    matches = np.zeros(table.num_rows, bool)
    leaves = list(_leaves(table))
    by_path = {leaf.path: leaf for leaf in leaves}
    for leaf in leaves:
        hit = _hit(leaf, by_path.get((*leaf.path[:-1], "unit_type")), trace)
        if hit is not None:
            matches[leaf.rows.filter(pc.fill_null(hit, False)).to_numpy()] = True
    return pa.array(matches)


def event_ids(table: pa.Table, trace: Trace) -> frozenset[str]:
    """The ids of the unit's events in a table. Raises UncomparableError."""
    mine = table.filter(mask(table, trace))
    ids = [_texts(leaf) for leaf in _leaves(mine) if leaf.path[-1] == "event_id"]
    return frozenset(value for texts in ids for value in texts.to_pylist() if value is not None)


@dataclass(frozen=True)
class _Leaf:
    """The values of a field at any depth, in lists too, and the row of the table that each belongs to."""

    path: tuple[str, ...]
    values: pa.Array
    rows: pa.Array


def _leaves(table: pa.Table) -> Iterator[_Leaf]:
    rows = pa.array(np.arange(table.num_rows))
    for field, column in zip(table.schema, table.columns, strict=True):
        yield from _below((field.name,), column.combine_chunks(), rows)


def _below(path: tuple[str, ...], values: pa.Array, rows: pa.Array) -> Iterator[_Leaf]:
    kind = values.type
    if pa.types.is_dictionary(kind):
        yield from _below(path, values.cast(kind.value_type), rows)
    elif pa.types.is_struct(kind):
        for index in range(kind.num_fields):
            yield from _below((*path, kind.field(index).name), pc.struct_field(values, [index]), rows)
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        # A null list may still have child values, which belong to no row.
        valid = values.is_valid()
        values, rows = values.filter(valid), rows.filter(valid)
        yield from _below(path, pc.list_flatten(values), rows.take(pc.list_parent_indices(values)))
    else:
        yield _Leaf(path, values, rows)


def _hit(leaf: _Leaf, unit_type: _Leaf | None, trace: Trace) -> pa.Array | None:
    kind, unit_id, last = trace.unit.unit_type, trace.unit.unit_id, leaf.path[-1]
    if last == "event_id":
        return pc.is_in(_texts(leaf), pa.array(sorted(trace.event_ids), pa.large_string())) if trace.event_ids else None
    if last == "unit_id":
        hit = pc.equal(_texts(leaf), unit_id)
        same_rows = unit_type is not None and unit_type.rows.equals(leaf.rows)
        return pc.and_(hit, pc.equal(_texts(unit_type), kind)) if unit_type is not None and same_rows else hit
    return pc.equal(_texts(leaf), unit_id) if last == f"{kind}_id" or leaf.path[-2:] == (kind, "id") else None


def _texts(leaf: _Leaf) -> pa.Array:
    """Values as text, whole numbers without a decimal point. Raises UncomparableError."""
    kind = leaf.values.type
    if not any(is_it(kind) for is_it in _COMPARED):
        raise UncomparableError(f"its column {'.'.join(leaf.path)} holds {kind}, which can't be compared with an id")
    texts = pc.cast(leaf.values, pa.large_string())
    # Integer columns with missing values are often stored as floats.
    return texts if any(is_it(kind) for is_it in _TEXTS) else pc.replace_substring_regex(texts, r"\.0+$", "")


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
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([header, *kept])
    return Contents(len(rows) - 1 - len(kept), text.getvalue().encode())


def _text(data: bytes, trace: Trace) -> Contents:
    lines = data.decode().splitlines(keepends=True)
    kept = [line for line in lines if not _mentions(line, trace)]
    return Contents(len(lines) - len(kept), "".join(kept).encode())


def _without(value: Any, trace: Trace) -> tuple[int, Any]:
    """How often the unit occurs in a value, and the value without it: list elements are removed, fields become null."""
    if _names(value, trace):
        return 1, None
    if isinstance(value, dict):
        parts = {name: _without(item, trace) for name, item in value.items()}
        return sum(rows for rows, _ in parts.values()), {name: kept for name, (_, kept) in parts.items()}
    if isinstance(value, list):
        # List elements are rows, as lines are: an element about the unit is removed as a whole.
        left = [_without(item, trace) for item in value if not _about(item, trace)]
        return len(value) - len(left) + sum(rows for rows, _ in left), [kept for _, kept in left]
    return 0, value


def _about(row: Any, trace: Trace) -> bool:
    """Whether a row is about the unit, by its own fields or those of nested objects; lists in it are not searched."""
    if _names(row, trace):
        return True
    return isinstance(row, dict) and any(_about(item, trace) for item in row.values() if isinstance(item, dict))


def _names(value: Any, trace: Trace) -> bool:
    """Whether a value itself names the unit; an object only by its own fields."""
    if isinstance(value, str):
        return _mentions(value, trace)
    if not isinstance(value, dict):
        return False
    kind, unit_id = trace.unit.unit_type, trace.unit.unit_id
    inner = value.get(kind)
    return (
        (_as_text(value.get("unit_id")) == unit_id and value.get("unit_type", kind) == kind)
        or _as_text(value.get(f"{kind}_id")) == unit_id
        or (isinstance(inner, dict) and _as_text(inner.get("id")) == unit_id)
        or _as_text(value.get("event_id")) in trace.event_ids
    )


def _as_text(value: Any) -> str | None:
    """An id as text, whole numbers without a decimal point; None for anything that can't be an id."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else None


def _mentions(text: str, trace: Trace) -> bool:
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
