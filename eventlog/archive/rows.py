"""Converting rows of `exp.events`, as read by binary COPY, into the archive's columns.

Metrics are parsed column-wise. A slice with a metric that is not a plain number, or has an unusual name, is parsed in Python, with the
same result. Arrow's JSON reader is not used: some documents that PostgreSQL accepts crash the whole process.
"""

import json
from operator import attrgetter
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from eventlog.archive.files import ARCHIVE_SCHEMA, EVENT_SCHEMA, KNOWN_METRICS

RAW_COLUMNS = (
    "id", "event_type", "unit_type", "unit_id", "experiments", "context", "metrics", "payload", "timestamp", "created_at", "flags",
)  # fmt: skip
_FLOATS = pa.map_(pa.string(), pa.float64())
# The position of each part of an id in its text, and in its 32 digits.
ID_PARTS = (((0, 8), 0), ((9, 13), 8), ((14, 18), 12), ((19, 23), 16), ((24, 36), 20))
_PAIRS = np.frombuffer("".join(f"{byte:02x}" for byte in range(256)).encode(), np.uint16)


def event_table(raw: pa.Table) -> pa.Table:
    """Convert rows with RAW_COLUMNS, in any order, to a table of ARCHIVE_SCHEMA in order of (timestamp, id)."""
    raw = raw.combine_chunks()  # makes taking rows three times as fast
    ids = _id_bytes(_storage(raw["id"])).reshape(-1, 16)
    halves = ids.view(">u8").astype(np.uint64)
    keys = pa.table({"timestamp": raw["timestamp"], "high": halves[:, 0], "low": halves[:, 1]})
    order = pc.sort_indices(keys, [(name, "ascending") for name in keys.column_names])
    ids, raw = ids[order.to_numpy()], raw.take(order)
    plain = {name: _storage(raw[name]) for name in RAW_COLUMNS}
    columns = {
        **plain,
        "event_id": id_texts(ids),
        "experiments": _experiments(plain["experiments"]),
        "experiments_json": plain["experiments"],
        "metrics_json": plain["metrics"],
        **_context(plain["context"]),
        **_numbers(plain["metrics"]),
    }
    return pa.table([_typed(columns[field.name], field.type) for field in ARCHIVE_SCHEMA], schema=ARCHIVE_SCHEMA)


def _typed(column: pa.Array, kind: pa.DataType) -> pa.Array:
    # A cast copies even to the same type.
    return column if column.type == kind else column.cast(kind)


def _storage(column: pa.ChunkedArray) -> pa.Array:
    array = column.combine_chunks()
    array = array.chunk(0) if isinstance(array, pa.ChunkedArray) else array
    return array.storage if isinstance(array, pa.ExtensionArray) else array


def _experiments(texts: pa.Array) -> pa.Array:
    """Lists of pairs. Thousands of events share a few texts, so each distinct text is parsed once."""
    encoded = texts.dictionary_encode()
    return pa.array(
        [_pairs(text) for text in encoded.dictionary.to_pylist()], EVENT_SCHEMA.field("experiments").type
    ).take(encoded.indices)


def _pairs(text: str) -> list[dict[str, str | None]]:
    refs = _loads(text)
    return [
        {name: _text(ref, name) for name in ("experiment_id", "variant_id")}
        for ref in (refs if isinstance(refs, list) else [])
        if isinstance(ref, dict)
    ]


class _Context(msgspec.Struct, gc=False):
    """The fields of a context that have columns of their own."""

    policy_version_id: str | None = None
    session_id: str | None = None


class _OddContext(msgspec.Struct):
    """The same fields with values of any type."""

    policy_version_id: Any = None
    session_id: Any = None


_decode_context = msgspec.json.Decoder(_Context).decode
_decode_odd_context = msgspec.json.Decoder(_OddContext).decode


def _context(texts: pa.Array) -> dict[str, pa.Array]:
    contexts = list(map(_parse_context, texts.to_pylist()))
    return {name: pa.array(list(map(attrgetter(name), contexts)), pa.string()) for name in _Context.__struct_fields__}


def _parse_context(text: str) -> _Context:
    try:
        return _decode_context(text)
    except (msgspec.MsgspecError, RecursionError):
        return _parse_odd_context(text)


def _parse_odd_context(text: str) -> _Context:
    try:
        odd = _decode_odd_context(text)
    except (msgspec.MsgspecError, RecursionError):  # not an object, or nested too deeply to parse
        return _Context()
    return _Context(*(value if isinstance(value, str) else None for value in (odd.policy_version_id, odd.session_id)))


def _numbers(texts: pa.Array) -> dict[str, pa.Array]:
    """The map of all metrics, and a column for each known metric."""
    pairs = _pairs_of_numbers(texts)
    if pairs is None:
        return _numbers_by_python(texts)
    offsets, keys, values = pairs
    rows = np.repeat(np.arange(len(texts)), np.diff(offsets))
    numbers = values.to_numpy()
    columns = {}
    for name in KNOWN_METRICS:
        code = keys.dictionary.index(name).as_py()
        column, present = np.zeros(len(texts)), np.zeros(len(texts), bool)
        selected = keys.indices.to_numpy() == code  # the code of a name that no text has is -1, which matches no index
        column[rows[selected]], present[rows[selected]] = numbers[selected], True
        columns[name] = pa.array(column, mask=~present)
    return {"metrics": pa.MapArray.from_arrays(pa.array(offsets), keys.dictionary_decode(), values), **columns}


def _pairs_of_numbers(texts: pa.Array) -> tuple[np.ndarray[Any, Any], pa.DictionaryArray, pa.Array] | None:
    """The offset of each text's first pair, all names and all numbers; None unless all texts are as simple as `{"a": 1, "b": 2.5}`.

    Relies on jsonb's output format: splits at `, ` and `": `. If a name or a value contains one of these, a piece is not a pair or a
    value not a number, and the result is None.
    """
    if not len(texts) or pc.any(pc.match_substring(texts, "\\")).as_py():
        return None
    inside = pc.binary_slice(texts.cast(pa.binary()), 1, -1).cast(pa.string())
    pieces = pc.split_pattern(inside, ", ")
    counts = np.where(pc.equal(inside, "").to_numpy(zero_copy_only=False), 0, pc.list_value_length(pieces).to_numpy())
    flat = pieces.flatten()
    flat = flat.filter(pc.not_equal(flat, ""))
    halves = pc.split_pattern(flat, '": ')
    if len(flat) != counts.sum() or pc.any(pc.not_equal(pc.list_value_length(halves), 2)).as_py():
        return None
    names_and_values = halves.flatten()
    names = names_and_values.take(pa.array(np.arange(0, len(names_and_values), 2))).dictionary_encode()
    quoted = names.dictionary.to_pylist()
    if not all(name.startswith('"') for name in quoted):
        return None
    try:
        values = names_and_values.take(pa.array(np.arange(1, len(names_and_values), 2))).cast(pa.float64())
    except pa.ArrowInvalid:
        return None
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    stripped = pa.array([name[1:] for name in quoted], pa.string())
    return offsets, pa.DictionaryArray.from_arrays(names.indices, stripped), values


def _numbers_by_python(texts: pa.Array) -> dict[str, pa.Array]:
    objects = [_loads(text) for text in texts.to_pylist()]
    numbers = [
        {name: value if isinstance(value, float) else None for name, value in metrics.items()}
        if isinstance(metrics, dict)
        else {}
        for metrics in objects
    ]
    return {
        "metrics": pa.array([list(metrics.items()) for metrics in numbers], _FLOATS),
        **{name: pa.array([metrics.get(name) for metrics in numbers], pa.float64()) for name in KNOWN_METRICS},
    }


def _loads(text: str) -> Any:
    try:
        # parse_int=float: a number of a thousand digits becomes infinite instead of an error.
        return json.loads(text, parse_int=float)
    except RecursionError:
        return None


def _text(holder: Any, name: str) -> str | None:
    value = holder.get(name) if isinstance(holder, dict) else None
    return value if isinstance(value, str) else None


def _id_bytes(ids: pa.Array) -> np.ndarray[Any, Any]:
    data = ids.buffers()[1]
    return (
        np.frombuffer(data, np.uint8)[16 * ids.offset : 16 * (ids.offset + len(ids))]
        if len(ids)
        else np.empty(0, np.uint8)
    )


def id_texts(ids: np.ndarray[Any, Any]) -> pa.Array:
    """The texts of ids that are given as 16 bytes each."""
    count = len(ids)
    texts = np.full((count, 36), ord("-"), np.uint8)
    digits = np.take(_PAIRS, ids).view(np.uint8).reshape(count, 32)
    for (start, end), at in ID_PARTS:
        texts[:, start:end] = digits[:, at : at + end - start]
    offsets = np.arange(0, 36 * (count + 1), 36, dtype=np.int32)
    return pa.StringArray.from_buffers(count, pa.py_buffer(offsets), pa.py_buffer(texts))
