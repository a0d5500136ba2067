"""Tables in files: which rows are read, which are unreadable, which files are refused."""

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

from foundation import table_files
from foundation.table_files import FileRefusedError, MissingColumnsError, TableFile, UnreadableRow, open_table

CELLS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)


def read(
    path: Path, columns: str | list[str] = "ab", header: tuple[str, ...] = (), *, strict: bool = False
) -> list[tuple[int, Any]]:
    """Every row as (line, values of the columns), or (line, reason)."""
    return rows_of(open_table(path, header, strict=strict), columns)


def rows_of(table: TableFile, columns: str | list[str] = "ab") -> list[tuple[int, Any]]:
    table.require(list(columns))
    getters = [table.getter(column) for column in columns]
    return [
        (line, row.reason if isinstance(row, UnreadableRow) else tuple(get(row) for get in getters))
        for line, row in table.rows()
    ]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
@given(st.lists(st.tuples(CELLS, CELLS), min_size=1), st.booleans(), st.sampled_from(",;\t|"), st.booleans())
def test_csv_is_read_as_it_was_written_with_its_lines(
    tmp_path: Path, rows: list[tuple[str, str]], compressed: bool, delimiter: str, marked: bool
) -> None:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows([("a", "b"), *rows])
    data = (b"\xef\xbb\xbf" if marked else b"") + text.getvalue().encode()
    path = written(
        tmp_path, "log.csv.gz" if compressed else "log.csv", gzip.compress(data, mtime=0) if compressed else data
    )
    lines = [2 + sum(cell.count("\n") for row in rows[:index] for cell in row) + index for index in range(len(rows))]
    assert read(path) == list(zip(lines, rows, strict=True))
    if "\0" not in text.getvalue():
        assert [row for _, row in read(path, strict=True)] == rows


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
@given(st.binary(max_size=200))
def test_any_bytes_below_the_header_give_rows_or_rejects(tmp_path: Path, data: bytes) -> None:
    read(written(tmp_path, "log.csv", b"a,b\n" + data))
    read(written(tmp_path, "log.jsonl", b'{"a": 1, "b": 1}\n' + data))
    try:
        read(written(tmp_path, "log.csv", b"a,b\n" + data), strict=True)
    except FileRefusedError as error:
        assert "log.csv, line " in str(error) and "\n" not in str(error)


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


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a,b\r\n1,2\r\n\r\n3,4", [(2, ("1", "2")), (4, ("3", "4"))]),
        (b"a,b\r1,2\r3,4\r", [(2, ("1", "2")), (3, ("3", "4"))]),
        (b"a,b\n1,2\r3,4\n", [(2, ("1", "2")), (3, ("3", "4"))]),
        (b"a,b\n1\n4,5\n", [(2, "wrong_number_of_values"), (3, ("4", "5"))]),
    ],
    ids=["CRLF", "CR", "CR among LF", "ragged"],
)
def test_rows_of_strict_csv(tmp_path: Path, content: bytes, expected: list[tuple[int, Any]]) -> None:
    assert read(written(tmp_path, "log.csv", content), strict=True) == expected


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        (b'a,b\n1,2\n"3,4\n5,6\n', 3, "broken"),
        (b'a,b\n"1"x,2\n3,4\n', 2, "broken"),
        (b"a,b\n1,2\n\xe9,2\n", 3, "byte 0xe9 is not UTF-8"),
        (b"\xef\xbb\xbfa,b\r\n" + b"1,2\r\n" * 10_000 + b"\xe9,2\r\n", 10_002, "byte 0xe9 is not UTF-8"),
        (b"a,b\r" + b"1,2\r" * 10_000 + b"3,\xc3", 10_002, "byte 0xc3 is not UTF-8"),
        (b"a,b\n1,\x002\n", 2, "zero byte"),
        ("a,b\n1,2\n".encode("utf-16-le"), 1, "zero byte"),
        (b"a,b\n1,2\n3," + b"x" * table_files.LONGEST_LINE, 3, "longer than"),
        (b"a\n1\n", 1, "at least two columns"),
        (b",a\n1,2\n", 1, "at least two columns"),
        (b"a,a\n1,2\n", 1, "a twice"),
    ],
)
def test_strict_csv_file_is_refused_with_the_line_when_it_is_broken(
    tmp_path: Path, content: bytes, line: int, words: str
) -> None:
    for name, data in (("log.csv", content), ("log.csv.gz", gzip.compress(content, mtime=0))):
        with pytest.raises(FileRefusedError, match=words) as caught:
            read(written(tmp_path, name, data), columns="", strict=True)
        assert f"{name}, line {line}: " in str(caught.value) and "\n" not in str(caught.value)


def test_file_without_header_is_read_with_the_given_columns(tmp_path: Path) -> None:
    assert read(written(tmp_path, "log", "1,2\n3,4\n"), header=("a", "b")) == [(1, ("1", "2")), (2, ("3", "4"))]


def test_an_overlong_line_is_not_kept_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_files, "LONGEST_LINE", 64)
    long = "x" * 1000
    expected = [(2, ("1", "2")), (3, "line_too_long"), (4, ("3", "4"))]
    assert read(written(tmp_path, "log.csv", f"a,b\n1,2\n5,{long}\n3,4\n")) == expected
    lines = [{"a": "1", "b": "2"}, {"a": long}, {"a": "3", "b": "4"}]
    assert read(written(tmp_path, "log.jsonl", "\n" + "".join(json.dumps(line) + "\n" for line in lines))) == expected


def test_rows_of_json_lines(tmp_path: Path) -> None:
    content = b'\xef\xbb\xbf{"a": {"x": 1}, "b": [1]}\n\n[1]\nnonsense\n{"a": "\xff"}\n{"a": null, "a.x": 2}\n'
    rows = read(written(tmp_path, "events.log", content), columns=["a.x", "b"])
    assert rows == [(1, (1, [1])), (3, "no_object"), (4, "not_json"), (5, "not_json"), (6, (2, None))]


def test_hostile_bodies_are_read_or_rejected(tmp_path: Path) -> None:
    folder = SHARED_DATA / "hostile_input" / "json_bodies"
    if not folder.exists():
        pytest.skip(f"the hostile bodies are not at {folder}")
    for body in sorted(folder.iterdir()):
        content = b'{"a": 1, "b": 1}\n' + body.read_bytes().replace(b"\n", b" ") + b"\n"
        rows = read(written(tmp_path, "log.jsonl", content))
        rejected = [line for line, row in rows if isinstance(row, str)]
        assert rows[0] == (1, (1, 1)) and len(rows) <= 2
        if body.name.startswith("n_") and body.read_bytes().strip():
            assert rejected == [2], body.name


def test_rows_of_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_files, "PARQUET_ROWS", 2)
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
    assert read(path, columns=["n", "s.x", "d", "c", "at"]) == expected


def test_parquet_is_refused_when_its_pages_are_damaged(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    pq.write_table(pa.table({"a": range(10_000), "b": range(10_000)}), path, compression="zstd")
    data = bytearray(path.read_bytes())
    data[4:2000] = b"\xff" * 1996
    path.write_bytes(data)
    with pytest.raises(FileRefusedError, match=r"log\.parquet is a broken or cut-off Parquet file"):
        read(path)


def test_parquet_is_refused_when_a_required_column_is_duplicated(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    pq.write_table(pa.Table.from_arrays([pa.array([1]), pa.array([2]), pa.array([3])], names=["a", "b", "b"]), path)
    assert read(path, columns="a") == [(1, (1,))]
    with pytest.raises(FileRefusedError, match="b twice"):
        read(path)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("log.csv", b"", "is empty"),
        ("log.csv", b" \n \n", "is empty"),
        ("log.csv", b"a,a\n1,2\n", "the header has a twice"),
        ("log.csv", b"\xff\xfea\x00", "is UTF-16"),
        ("log.csv", b'"a,b\n1,2\n', "broken"),
        ("log.jsonl", b'[{"a": 1}]', "is a JSON array"),
        ("log.parquet", b"a,b\n1,2\n", "named like a Parquet file"),
        ("log.parquet", b"PAR1 and nothing more", "broken or cut-off Parquet"),
        ("log.csv.gz", gzip.compress(b"a,b\n1,2\n", mtime=0)[:-9], "broken or cut-off gzip"),
    ],
)
def test_unusable_files_are_refused(tmp_path: Path, name: str, content: bytes, words: str, strict: bool) -> None:
    with pytest.raises(FileRefusedError, match=words):
        read(written(tmp_path, name, content), strict=strict)


def test_lines_that_end_with_cr_alone_are_refused_unless_strict(tmp_path: Path) -> None:
    with pytest.raises(FileRefusedError, match="CR alone"):
        read(written(tmp_path, "log.csv", b"a,b\r1,2\r"))


def test_folders_and_missing_files_are_refused(tmp_path: Path) -> None:
    for path, words in ((tmp_path, "is a folder"), (tmp_path / "none.csv", "does not exist")):
        with pytest.raises(FileRefusedError, match=words):
            open_table(path)
    with pytest.raises(FileRefusedError, match="not a regular file"):
        open_table(Path("/dev/null"))


def test_a_file_is_refused_when_it_changes_before_it_is_read(tmp_path: Path) -> None:
    path = written(tmp_path, "log.csv", "a,b\n1,2\n")
    table = open_table(path)
    path.write_text("a,b\n1,2\n3,4\n")
    with pytest.raises(FileRefusedError, match="changed while it was read"):
        list(table.rows())


def test_a_file_is_refused_when_it_changes_while_it_is_read(tmp_path: Path) -> None:
    path = written(tmp_path, "log.csv", "a,b\n1,2\n")
    rows = open_table(path).rows()
    assert next(rows) == (2, ["1", "2"])
    path.write_text("a,b\n1,2\n3,4\n")
    with pytest.raises(FileRefusedError, match="changed while it was read"):
        list(rows)


@pytest.mark.parametrize("name", ["log.csv", "log.jsonl", "log.parquet"])
def test_missing_columns_are_named_with_the_nearest_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "log.parquet":
        pq.write_table(pa.table({"user": [1], "at": [2]}), path)
    else:
        path.write_text("user,at\n1,2\n" if name == "log.csv" else '{"user": 1, "at": 2}\n')
    with pytest.raises(MissingColumnsError) as caught:
        read(path, columns=["usr", "at", "zzz"])
    assert caught.value.sentences == {
        "usr": f"{name} has no column usr: did you mean user?",
        "zzz": f"{name} has no column zzz. It has user, at.",
    }
