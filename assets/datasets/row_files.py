"""Rows as a file: training.parquet with the same bytes for the same rows, and the fields that schema.json publishes."""

import io
import json
from collections.abc import Collection, Mapping
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

ROW_GROUP = 10_000
"""Rows of a row group; fixed, since a change would change the bytes."""

NEVER_NULL = (
    "input",
    "input.household",
    "input.household.id",
    "target",
    "target.accepted_plan",
    "metadata",
    "metadata.timestamp",
)
"""Fields that no product may leave null, as dotted paths."""

_TYPES: dict[Any, tuple[str, pa.DataType]] = {
    pl.String: ("string", pa.string()),
    pl.Boolean: ("boolean", pa.bool_()),
    pl.Int64: ("int64", pa.int64()),
    pl.Int32: ("int32", pa.int32()),
    pl.UInt32: ("uint32", pa.uint32()),
    pl.Float64: ("float64", pa.float64()),
    pl.Date: ("date", pa.date32()),
    pl.Datetime("us", "UTC"): ("timestamp[us, UTC]", pa.timestamp("us", tz="UTC")),
    pl.Null: ("null", pa.null()),
}


def fields(
    schema: Mapping[str, Any], nullable: Collection[str] | None = None, prefix: str = ""
) -> list[dict[str, Any]]:
    """schema.json's `fields`: name, type, nullable, and nested `fields` of structs and lists of structs.

    `nullable` holds the dotted paths that may be null; without it, all but NEVER_NULL may. Raises ValueError for an unknown type.
    """
    described = []
    for name, kind in schema.items():
        path = f"{prefix}{name}"
        may = path not in NEVER_NULL if nullable is None else path in nullable
        description: dict[str, Any] = {"name": name, "type": _type_name(kind, path), "nullable": may}
        inner = kind.inner if isinstance(kind, pl.List) else kind
        if isinstance(inner, pl.Struct):
            description["fields"] = fields({field.name: field.dtype for field in inner.fields}, nullable, f"{path}.")
        described.append(description)
    return described


def required_paths(described: list[dict[str, Any]], prefix: str = "") -> list[str]:
    """Dotted paths of the fields that are published as never null, outermost first."""
    paths = []
    for description in described:
        path = f"{prefix}{description['name']}"
        if not description["nullable"]:
            paths.append(path)
        paths += required_paths(description.get("fields", []), f"{path}.")
    return paths


def parquet_bytes(rows: pl.DataFrame, facts: Mapping[str, str]) -> bytes:
    """The rows as a Parquet file with `facts` as its key-value metadata."""
    # Plain strings and lists instead of polars' large ones: every reader knows them.
    schema = pa.schema(
        [(name, _arrow(kind)) for name, kind in rows.schema.items()], metadata=dict(sorted(facts.items()))
    )
    table = rows.to_arrow(compat_level=pl.CompatLevel.oldest()).cast(schema.remove_metadata())
    sink = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(schema.metadata), sink, compression="zstd", row_group_size=ROW_GROUP)
    return sink.getvalue()


def read_parquet(data: bytes) -> tuple[pl.DataFrame, dict[str, str]]:
    """Inverse of `parquet_bytes`."""
    # One thread: Arrow's pool, still starting when a short process ends, took that process down (exit code -6).
    table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
    facts = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    return pl.DataFrame(table.replace_schema_metadata(None)), facts


def canonical_json(value: Any) -> str:
    """JSON with one spelling: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def at(path: str) -> pl.Expr:
    """The field at a dotted path of structs, such as `input.household.id`."""
    first, *rest = path.split(".")
    expression = pl.col(first)
    for name in rest:
        expression = expression.struct.field(name)
    return expression


def has(rows: pl.DataFrame, path: str) -> bool:
    """Whether the rows have such a field."""
    first, *rest = path.split(".")
    kind: Any = rows.schema.get(first)
    for name in rest:
        if not isinstance(kind, pl.Struct):
            return False
        kind = next((field.dtype for field in kind.fields if field.name == name), None)
    return kind is not None


def _type_name(kind: Any, path: str) -> str:
    if isinstance(kind, pl.Struct):
        return "struct"
    if isinstance(kind, pl.List):
        return f"list<{_type_name(kind.inner, path)}>"
    if kind not in _TYPES:
        raise ValueError(f"The field {path} has the type {kind}, which a dataset cannot contain.")
    return _TYPES[kind][0]


def _arrow(kind: Any) -> pa.DataType:
    if isinstance(kind, pl.Struct):
        return pa.struct([(field.name, _arrow(field.dtype)) for field in kind.fields])
    if isinstance(kind, pl.List):
        return pa.list_(_arrow(kind.inner))
    return _TYPES[kind][1]
