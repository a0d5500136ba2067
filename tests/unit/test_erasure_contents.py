"""Which rows belong to a unit, in tables of any types and in nested objects."""

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestration.erasure.contents import Trace, UncomparableError, event_ids, look_into, mask
from orchestration.erasure.findings import Unit

TRACE = Trace(Unit("household", "1"))


@pytest.mark.parametrize(
    ("document", "left", "rows"),
    [
        (
            {"worst": {"household_id": "1"}, "best": {"household_id": "2"}, "n": 5},
            {"worst": None, "best": {"household_id": "2"}, "n": 5},
            1,
        ),
        ({"a": {"b": {"household": {"id": "1"}}, "n": 1}}, {"a": {"b": None, "n": 1}}, 1),
        ({"household_id": 1, "n": 5}, None, 1),
        ({"household_id": 1.0, "n": 5}, None, 1),
        ({"household_id": True, "unit_id": 11}, {"household_id": True, "unit_id": 11}, 0),
        # A list element is removed as a whole, like a row of a table.
        ([{"input": {"household": {"id": 1}}, "target": "x"}, {"household_id": 2}], [{"household_id": 2}], 1),
        ([{"n": 1, "rows": [{"unit_id": "1"}, {"unit_id": "2"}]}], [{"n": 1, "rows": [{"unit_id": "2"}]}], 1),
    ],
)
def test_an_object_loses_fields_and_a_list_loses_rows(document: Any, left: Any, rows: int) -> None:
    contents = look_into("a.json", json.dumps(document).encode(), TRACE)
    assert (json.loads(contents.without), contents.rows) == (left, rows)


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["1", "11", None]).dictionary_encode(),
        pa.array([1, 11, None]),
        pa.array([1, 11, None], pa.uint8()),
        pa.array([1.0, 11.0, None]),
        pa.array([Decimal("1.00"), Decimal("11.00"), None]),
        pa.array(["1", "11", None], pa.large_string()),
        pa.array([1, 11, None]).dictionary_encode(),
    ],
    ids=lambda column: str(column.type).partition("<")[0],
)
def test_ids_are_found_in_columns_of_any_type(column: pa.Array) -> None:
    table = pa.table({"household_id": column})
    # Chunked, and inside lists of structs, the same as in a plain column.
    assert mask(pa.concat_tables([table.slice(2), table]), TRACE).to_pylist() == [False, True, False, False]
    structs = pa.StructArray.from_arrays([column], ["household_id"])
    nested = pa.table({"rows": pa.ListArray.from_arrays([0, 0, 2, 3], structs)})
    assert mask(nested, TRACE).to_pylist() == [False, True, False]
    assert mask(nested.slice(1), TRACE).to_pylist() == [True, False]
    fixed = pa.table({"rows": pa.FixedSizeListArray.from_arrays(pa.concat_arrays([structs, structs]), 2)})
    assert mask(fixed, TRACE).to_pylist() == [True, True, False]


def test_a_file_with_a_dictionary_column_is_written_without_the_unit() -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"household_id": pa.array(["1", "2"]).dictionary_encode(), "n": [1, 2]}), sink)
    contents = look_into("a.parquet", sink.getvalue().to_pybytes(), TRACE)
    assert contents.rows == 1
    assert pq.read_table(pa.BufferReader(contents.without)).to_pylist() == [{"household_id": "2", "n": 2}]


def test_a_unit_type_next_to_an_id_in_a_list_must_match() -> None:
    rows = [[{"unit_id": 1, "unit_type": "user"}], [{"unit_id": 1, "unit_type": "household"}], None, []]
    events = [[{"event_id": "a"}], [{"event_id": "b"}, {"event_id": "c"}], None, []]
    table = pa.table({"rows": rows, "events": events})
    assert mask(table, TRACE).to_pylist() == [False, True, False, False]
    assert event_ids(table, TRACE) == {"b", "c"}
    assert mask(table, Trace(Unit("session", "x"), frozenset({"c"}))).to_pylist() == [False, True, False, False]


@pytest.mark.parametrize("values", [[b"1"], [datetime(2025, 1, 1, tzinfo=UTC)], [True]], ids=["bytes", "time", "flag"])
def test_an_id_column_of_an_uncomparable_type_is_an_error(values: list[Any]) -> None:
    with pytest.raises(
        UncomparableError, match=r"its column a\.household_id holds .*, which can't be compared with an id"
    ):
        mask(pa.table({"a": [{"household_id": value} for value in values]}), TRACE)
    assert mask(pa.table({"other": values}), TRACE).to_pylist() == [False]
