"""Files of any origin as records with their lines: what is read, what is rejected, what is refused whole."""

import csv
import gzip
import io
import json
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import SHARED_DATA
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from import_support import written

from eventlog.imports import reading
from eventlog.imports.reading import FileRefusedError, Unreadable, open_source
from foundation.yaml_files import ConfigError, Place

HERE = Place("mapping.yml", 4)
CELLS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)


def read(path: Path, columns: str = "ab", header: tuple[str, ...] = ()) -> list[tuple[int, Any]]:
    """Every row as (line, values of the columns), or (line, reason)."""
    source = open_source(path, header)
    source.require(dict.fromkeys(columns, HERE))
    get = [source.getter(column) for column in columns]
    return [
        (line, row.reason if isinstance(row, Unreadable) else tuple(one(row) for one in get))
        for line, row in source.rows()
    ]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
@given(st.lists(st.tuples(CELLS, CELLS), min_size=1), st.booleans(), st.sampled_from(",;\t|"), st.booleans())
def test_what_csv_writes_is_read_with_its_lines(
    tmp_path: Path, rows: list[tuple[str, str]], packed: bool, delimiter: str, marked: bool
) -> None:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows([("a", "b"), *rows])
    data = (b"\xef\xbb\xbf" if marked else b"") + text.getvalue().encode()
    path = written(tmp_path, "log.csv.gz" if packed else "log.csv", gzip.compress(data, mtime=0) if packed else data)
    lines = [2 + sum(cell.count("\n") for row in rows[:index] for cell in row) + index for index in range(len(rows))]
    assert read(path) == list(zip(lines, rows, strict=True))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
@given(st.binary(max_size=200))
def test_no_bytes_break_the_reading(tmp_path: Path, data: bytes) -> None:
    """Whatever stands below the header gives rows or rejects."""
    read(written(tmp_path, "log.csv", b"a,b\n" + data))
    read(written(tmp_path, "log.jsonl", b'{"a": 1, "b": 1}\n' + data))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a,b\r\n1,2\r\n\r\n3,4", [(2, ("1", "2")), (4, ("3", "4"))]),
        (b'a,b\n"1\n2",3\n4,5\n', [(2, ("1\n2", "3")), (4, ("4", "5"))]),
        (b"a,b\n1\n1,2,3\n4,5\n", [(2, "wrong_number_of_values"), (3, "wrong_number_of_values"), (4, ("4", "5"))]),
        (b'a,b\n"1"x,2\n3,4\n', [(2, "broken_record"), (3, ("3", "4"))]),
        (b'a,b\n1,2\n"3,4\n5,6\n', [(2, ("1", "2")), (3, "broken_record")]),
        (b"a,b\n\xe9,2\n3,4\n", [(2, ("\udce9", "2")), (3, ("3", "4"))]),
        (b"a,b\n\x00,2\n", [(2, ("\x00", "2"))]),
        (b",a,b\n0,1,2\n", [(2, ("1", "2"))]),
    ],
    ids=[
        "blank line, CRLF",
        "quoted newline",
        "ragged",
        "quote inside",
        "quote never closed",
        "not UTF-8",
        "NUL",
        "index column",
    ],
)
def test_rows_of_csv(tmp_path: Path, content: bytes, expected: list[tuple[int, Any]]) -> None:
    assert read(written(tmp_path, "log.csv", content)) == expected


def test_a_file_without_header(tmp_path: Path) -> None:
    assert read(written(tmp_path, "log", "1,2\n3,4\n"), header=("a", "b")) == [(1, ("1", "2")), (2, ("3", "4"))]


def test_a_line_without_end_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "LONGEST_LINE", 64)
    long = "x" * 1000
    expected = [(2, ("1", "2")), (3, "line_too_long"), (4, ("3", "4"))]
    assert read(written(tmp_path, "log.csv", f"a,b\n1,2\n5,{long}\n3,4\n")) == expected
    lines = [{"a": "1", "b": "2"}, {"a": long}, {"a": "3", "b": "4"}]
    found = read(written(tmp_path, "log.jsonl", "\n" + "".join(json.dumps(line) + "\n" for line in lines)))
    assert found == expected


def test_rows_of_json_lines(tmp_path: Path) -> None:
    content = b'\xef\xbb\xbf{"a": {"x": 1}, "b": [1]}\n\n[1]\nnonsense\n{"a": "\xff"}\n{"a": null, "a.x": 2}\n'
    found = read(written(tmp_path, "events.log", content), columns=["a.x", "b"])  # type: ignore[arg-type]
    assert found == [(1, (1, [1])), (3, "no_object"), (4, "not_json"), (5, "not_json"), (6, (2, None))]


def test_hostile_bodies_are_read_or_rejected(tmp_path: Path) -> None:
    folder = SHARED_DATA / "hostile_input" / "json_bodies"
    if not folder.exists():
        pytest.skip(f"the hostile bodies are not at {folder}")
    for body in sorted(folder.iterdir()):
        content = b'{"a": 1, "b": 1}\n' + body.read_bytes().replace(b"\n", b" ") + b"\n"
        found = read(written(tmp_path, "log.jsonl", content))
        rejected = [line for line, row in found if isinstance(row, str)]
        assert found[0] == (1, (1, 1)) and len(found) <= 2
        if body.name.startswith("n_") and body.read_bytes().strip():
            assert rejected == [2], body.name


def test_rows_of_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "PARQUET_ROWS", 2)
    moment = datetime(2020, 1, 2, 3, 4, 5, 6, tzinfo=UTC)
    values = {
        "n": [1, 2, None],
        "s": [{"x": "p"}, None, {"x": None}],
        "d": [date(2020, 1, 2)] * 3,
        "c": [Decimal("1.50")] * 3,
    }
    table = pa.table({**values, "at": pa.array([moment] * 3, pa.timestamp("ns", "UTC")), "unused": [b"\xff"] * 3})
    path = tmp_path / "log.parquet"
    pq.write_table(table, path, row_group_size=2)
    rest = (date(2020, 1, 2), Decimal("1.50"), moment)
    expected = [(1, (1, "p", *rest)), (2, (2, None, *rest)), (3, (None, None, *rest))]
    assert read(path, columns=["n", "s.x", "d", "c", "at"]) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("log.csv", b"", "is empty"),
        ("log.csv", b" \n \n", "is empty"),
        ("log.csv", b"a,a\n1,2\n", "the header has a twice"),
        ("log.csv", b"\xff\xfea\x00", "is UTF-16"),
        ("log.csv", b"a,b\r1,2\r", "CR alone"),
        ("log.csv", b'"a,b\n1,2\n', "the header can't be read"),
        ("log.jsonl", b'[{"a": 1}]', "holds a JSON array"),
        ("log.parquet", b"a,b\n1,2\n", "is called Parquet and is none"),
        ("log.parquet", b"PAR1 and nothing more", "broken or cut-off Parquet"),
        ("log.csv.gz", gzip.compress(b"a,b\n1,2\n", mtime=0)[:-9], "broken or cut-off gzip"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    with pytest.raises(FileRefusedError, match=said):
        read(written(tmp_path, name, content))


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for path, said in ((tmp_path, "is no file"), (tmp_path / "none.csv", "does not exist")):
        with pytest.raises(FileRefusedError, match=said):
            open_source(path)


def test_a_file_that_changes_meanwhile_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "log.csv", "a,b\n1,2\n")
    source = open_source(path)
    path.write_text("a,b\n1,2\n3,4\n")
    with pytest.raises(FileRefusedError, match="changed while it was read"):
        list(source.rows())


@pytest.mark.parametrize(("name", "content"), [("log.csv", "user,at\n1,2\n"), ("log.jsonl", '{"user": 1, "at": 2}\n')])
def test_missing_columns_are_named_with_what_is_close(tmp_path: Path, name: str, content: str) -> None:
    path = written(tmp_path, name, content)
    with pytest.raises(ConfigError) as caught:
        read(path, columns=["usr", "at", "zzz"])  # type: ignore[arg-type]
    assert str(caught.value).splitlines() == [
        f"mapping.yml:4: {name} has no column usr: did you mean user?",
        f"mapping.yml:4: {name} has no column zzz. It has user, at.",
    ]
