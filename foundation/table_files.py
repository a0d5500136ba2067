"""Tables in files of any size, row by row with line numbers: CSV and JSON lines (both also as .gz) and Parquet.

Rows are streamed, so memory does not grow with the file. A file that can't be used is refused with one sentence.
"""

import csv
import difflib
import gzip
import hashlib
import io
import operator
import os
import stat
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from foundation.errors import LifecycleError

LONGEST_LINE = 2 << 20
"""Bytes. No more than this of a line is kept in memory."""
LONGEST_VALUE = 1 << 20
"""Characters. A longer CSV value means that a quote was never closed."""
LONGEST_SHOWN = 60
DELIMITERS = (",", ";", "\t", "|")
PARQUET_ROWS = 8192
WRONG_NUMBER_OF_VALUES = "wrong_number_of_values"
_GZIP, _PARQUET, _UTF8_BOM = b"\x1f\x8b", b"PAR1", b"\xef\xbb\xbf"
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
_OBJECTS_SEARCHED_FOR_KEYS = 1000
_COLUMNS_LISTED = 40

Getter = Callable[[Any], Any]
"""Takes one column's value out of a row."""


class FileRefusedError(LifecycleError):
    """The file can't be used at all; the message names it, the line if there is one, and what is wrong."""


class MissingColumnsError(FileRefusedError):
    """The file lacks columns that were asked for. `sentences` has one sentence for each of them, by column."""

    def __init__(self, sentences: dict[str, str]) -> None:
        """`sentences`: at least one."""
        super().__init__(" ".join(sentences.values()))
        self.sentences = sentences


class UnusableError(Exception):
    """A value can't be used: `reason` to count by, `detail` for a person."""

    def __init__(self, reason: str, detail: str) -> None:
        """`detail` says what is wrong and quotes the value."""
        super().__init__(detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class UnreadableRow:
    """A row that can't be split into values: `reason` to count by, `detail` for a person, and the row's `text`."""

    reason: str
    detail: str
    text: str


class TableFile(ABC):
    """A file that can be read several times. `read_share` is how much of it has been read, from 0 to 1.

    Texts in `nulls` stand for a missing value. `columns` is empty for JSON lines, whose objects can have any keys.
    """

    columns: tuple[str, ...] = ()
    nulls: frozenset[str] = frozenset()

    def __init__(self, path: Path, state: os.stat_result) -> None:
        """`state`: the file's size and time when it was opened."""
        self.path, self.size = path, state.st_size
        self._state = (state.st_size, state.st_mtime_ns)
        self.read_share = 0.0

    @abstractmethod
    def require(self, columns: Collection[str]) -> None:
        """Say which columns will be read. Raises MissingColumnsError; JSON lines do so at the end of `rows`."""

    @abstractmethod
    def getter(self, column: str) -> Getter:
        """The function that returns a column's value in a row, or None if the row has no value there."""

    @abstractmethod
    def as_dict(self, row: Any) -> dict[str, Any]:
        """A row's values by column name."""

    def rows(self) -> Iterator[tuple[int, Any]]:
        """(line, row) in the order of the file, counted from 1. A row that can't be split into values is an UnreadableRow.

        Raises FileRefusedError if the file has changed since it was opened, or is broken.
        """
        self._refuse_if_changed()
        try:
            yield from self._rows()
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise _broken(self.path, "gzip", error) from error
        self._refuse_if_changed()

    @abstractmethod
    def _rows(self) -> Iterator[tuple[int, Any]]: ...

    def _refuse_if_changed(self) -> None:
        try:
            state = os.stat(self.path)
            changed = (state.st_size, state.st_mtime_ns) != self._state
        except FileNotFoundError:
            changed = True
        if changed:
            raise FileRefusedError(f"{self.path} changed while it was read: use a copy that nobody writes to.")

    def _refuse_missing(self, missing: Collection[str], known: Collection[str]) -> None:
        if not missing:
            return
        sentences = {}
        for column in missing:
            nearest = difflib.get_close_matches(column, known, 1)
            hint = f": did you mean {nearest[0]}?" if nearest else "."
            sentences[column] = f"{self.path.name} has no column {column}{hint}"
        listed = ", ".join(list(known)[:_COLUMNS_LISTED]) + (", …" if len(known) > _COLUMNS_LISTED else "")
        sentences[column] += f" It has {listed}."
        raise MissingColumnsError(sentences)


class TextFile(TableFile):
    """A file of lines, compressed or not."""

    def __init__(self, path: Path, state: os.stat_result, compressed: bool) -> None:
        """`compressed`: by gzip."""
        super().__init__(path, state)
        self.compressed = compressed
        self._cut: set[int] = set()

    def _lines(self) -> Iterator[bytes]:
        """Lines with their ends, without a byte order mark. Only the start of an overlong line; its number is in `_cut`."""
        self._cut.clear()
        with _opened(self.path, self.compressed) as (stream, raw):
            number = 0
            while line := stream.readline(LONGEST_LINE):
                number += 1
                if number == 1:
                    line = line.removeprefix(_UTF8_BOM)
                if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
                    self._cut.add(number)
                    while (rest := stream.readline(LONGEST_LINE)) and not rest.endswith(b"\n"):
                        pass
                if number % 1024 == 0:
                    self.read_share = raw.tell() / self.size
                yield line


class CsvFile(TextFile):
    """Comma, semicolon, tab or bar, whichever the first line has most of; quoted as usual."""

    nulls = frozenset({""})

    def __init__(
        self, path: Path, state: os.stat_result, compressed: bool, header: tuple[str, ...], strict: bool
    ) -> None:
        """As `open_table` says. Raises FileRefusedError."""
        super().__init__(path, state, compressed)
        self._strict = strict
        self._has_header = not header
        first = next(self._text(), "")
        if not strict and "\r" in first.rstrip("\r\n"):
            raise FileRefusedError(f"{path} ends its lines with CR alone: save it with LF or CRLF.")
        self._delimiter = max(DELIMITERS, key=first.count)
        self.columns = header or self._header()
        self._index = {name: index for index, name in enumerate(self.columns)}

    def require(self, columns: Collection[str]) -> None:
        """Raises MissingColumnsError."""
        self._refuse_missing([column for column in columns if column not in self._index], self.columns)

    def getter(self, column: str) -> Getter:
        """By the column's position."""
        return operator.itemgetter(self._index[column])

    def as_dict(self, row: Any) -> dict[str, Any]:
        """A row's values by column name."""
        return dict(zip(self.columns, row, strict=True))

    def _header(self) -> tuple[str, ...]:
        _, header = next(self._records(), (1, []))
        if isinstance(header, UnreadableRow):
            raise FileRefusedError(f"{self.path}, line 1: the header can't be read ({header.detail}).")
        columns = tuple(name.strip() for name in header)
        repeated = sorted({name for name in columns if name and columns.count(name) > 1})
        if repeated:
            raise FileRefusedError(
                f"{self.path}, line 1: the header has {' and '.join(repeated)} twice: rename one of them."
            )
        if not any(columns):
            raise FileRefusedError(f"{self.path} has no header in its first line.")
        if self._strict and (len(columns) < 2 or not all(columns)):
            raise FileRefusedError(
                f"{self.path}, line 1: {self._delimiter.join(columns)[:LONGEST_SHOWN]!r} is not a CSV header: "
                "it needs at least two columns, each with a name."
            )
        return columns

    def _rows(self) -> Iterator[tuple[int, Any]]:
        records, width = self._records(), len(self.columns)
        if self._has_header:
            next(records, None)
        for line, row in records:
            if isinstance(row, UnreadableRow) or len(row) == width:
                yield line, row
            else:
                detail = f"the row has {len(row)} values, but there are {width} columns"
                yield line, UnreadableRow(WRONG_NUMBER_OF_VALUES, detail, self._delimiter.join(row))

    def _records(self) -> Iterator[tuple[int, Any]]:
        """(line on which it starts, values) of every record that is not blank."""
        csv.field_size_limit(LONGEST_VALUE)
        reader = csv.reader(self._text(), delimiter=self._delimiter, strict=True)
        while True:
            line = reader.line_num + 1
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                detail = (
                    f"the record that starts here is broken ({error}): is a quote never closed, or is the file cut off?"
                )
                if self._strict:
                    raise FileRefusedError(f"{self.path}, line {line}: {detail}") from error
                yield line, UnreadableRow("broken_record", detail, "")
                continue
            if self._cut and any(number in self._cut for number in range(line, reader.line_num + 1)):
                yield line, UnreadableRow("line_too_long", f"more than {LONGEST_LINE:,} bytes", "")
            elif values:
                yield line, values

    def _text(self) -> Iterator[str]:
        if self._strict:
            return self._strict_text()
        return (line.decode("utf-8", "surrogateescape") for line in self._lines())

    def _strict_text(self) -> Iterator[str]:
        """Lines that end with LF, CRLF or CR. Raises FileRefusedError for anything that is not UTF-8 text."""
        with _opened(self.path, self.compressed) as (stream, _):
            text = io.TextIOWrapper(stream, "utf-8-sig", newline="")
            number = 0
            try:
                while line := text.readline(LONGEST_LINE):
                    number += 1
                    if "\0" in line:
                        raise FileRefusedError(
                            f"{self.path}, line {number}: a zero byte is not text: save the file as CSV in UTF-8."
                        )
                    if len(line) == LONGEST_LINE and line[-1] not in "\r\n":
                        raise FileRefusedError(
                            f"{self.path}, line {number}: the line is longer than {LONGEST_LINE:,} characters."
                        )
                    yield line
            except UnicodeDecodeError as error:
                # `error.object` is the piece of the file that was being decoded, from somewhere in the line after the last one.
                line_number = number + len((error.object[: error.start] + b".").splitlines())
                raise FileRefusedError(
                    f"{self.path}, line {line_number}: byte 0x{error.object[error.start]:02x} is not UTF-8; save the file in UTF-8."
                ) from error


class JsonLinesFile(TextFile):
    """One JSON object a line. A column is a key, or a path of keys separated by dots."""

    def __init__(self, path: Path, state: os.stat_result, compressed: bool) -> None:
        """Reads nothing yet."""
        super().__init__(path, state, compressed)
        self._required: list[str] = []

    def require(self, columns: Collection[str]) -> None:
        """Note the columns: only at the end is it known that no line has one of them."""
        self._required = list(columns)

    def getter(self, column: str) -> Getter:
        """By key or path."""
        return path_getter(column)

    def as_dict(self, row: Any) -> dict[str, Any]:
        """The object itself."""
        return dict(row)

    def _rows(self) -> Iterator[tuple[int, Any]]:
        decode = msgspec.json.Decoder().decode
        unseen = {column: self.getter(column) for column in self._required}
        keys: dict[str, None] = {}
        objects = 0
        for number, line in enumerate(self._lines(), start=1):
            if number in self._cut:
                yield number, UnreadableRow("line_too_long", f"more than {LONGEST_LINE:,} bytes", "")
                continue
            try:
                row = decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                if line.strip():
                    yield number, UnreadableRow("not_json", _first_line(error), _as_text(line))
                continue
            if row.__class__ is not dict:
                yield number, UnreadableRow("no_object", "the line is JSON, but not an object", _as_text(line))
                continue
            objects += 1
            if objects <= _OBJECTS_SEARCHED_FOR_KEYS:
                keys.update(dict.fromkeys(row))
            if unseen:
                unseen = {column: get for column, get in unseen.items() if get(row) is None}
            yield number, row
        if objects:
            self._refuse_missing(unseen, keys)


class ParquetFile(TableFile):
    """Parquet, batch by batch, and only the required columns. A line is a row's number."""

    def __init__(self, path: Path, state: os.stat_result) -> None:
        """Raises FileRefusedError."""
        super().__init__(path, state)
        with self._file() as file:
            self.columns, self._count = tuple(file.schema_arrow.names), file.metadata.num_rows
        self._used: list[str] = []

    def require(self, columns: Collection[str]) -> None:
        """Raises MissingColumnsError, and FileRefusedError for a column that is there twice."""
        roots = {column: column if column in self.columns else column.partition(".")[0] for column in columns}
        self._refuse_missing([column for column, root in roots.items() if root not in self.columns], self.columns)
        self._used = list(dict.fromkeys(roots.values()))
        repeated = [name for name in self._used if self.columns.count(name) > 1]
        if repeated:
            raise FileRefusedError(f"{self.path} has {' and '.join(repeated)} twice: rename one of the columns.")

    def getter(self, column: str) -> Getter:
        """By position; within a struct, by path."""
        if column in self._used:
            return operator.itemgetter(self._used.index(column))
        root, _, path = column.partition(".")
        index, inside = self._used.index(root), path_getter(path)
        return lambda row: None if row[index] is None else inside(row[index])

    def as_dict(self, row: Any) -> dict[str, Any]:
        """The values of the required columns, by name."""
        return dict(zip(self._used, row, strict=True))

    def _rows(self) -> Iterator[tuple[int, Any]]:
        number = 0
        with self._file() as file:
            for batch in file.iter_batches(batch_size=PARQUET_ROWS, columns=self._used):
                columns = [_microseconds(batch.column(name)).to_pylist() for name in self._used]
                for row in zip(*columns, strict=True) if columns else [()] * batch.num_rows:
                    number += 1
                    yield number, row
                self.read_share = number / self._count

    @contextmanager
    def _file(self) -> Iterator[pq.ParquetFile]:
        try:
            with pq.ParquetFile(self.path) as file:
                yield file
        except (pa.ArrowException, OSError) as error:
            raise _broken(self.path, "Parquet", error) from error


def open_table(path: Path, header: tuple[str, ...] = (), *, strict: bool = False) -> TableFile:
    """The file as a table. Its ending says of which kind, or its first bytes where the ending does not. Raises FileRefusedError.

    `header` names the columns of a CSV file whose first line is not a header. `strict` refuses a CSV file that has a broken record,
    a zero byte, bytes that are not UTF-8 or a column without a name; otherwise only those rows or values are unusable.
    """
    try:
        state = os.stat(path)
        if stat.S_ISDIR(state.st_mode):
            raise FileRefusedError(f"{path} is a folder: give the file in it.")
        if not stat.S_ISREG(state.st_mode):
            raise FileRefusedError(f"{path} is not a regular file: save its content in one, because it is read twice.")
        with path.open("rb") as file:
            start = file.read(4)
    except FileNotFoundError as error:
        raise FileRefusedError(f"{path} does not exist.") from error
    except OSError as error:
        raise FileRefusedError(f"{path} can't be read: {error.strerror}.") from error
    if start == _PARQUET:
        return ParquetFile(path, state)
    compressed = start.startswith(_GZIP)
    beginning = _beginning(path, compressed)
    suffix = (path.with_suffix("") if compressed and path.suffix == ".gz" else path).suffix.lower()
    if not beginning.strip():
        raise FileRefusedError(f"{path} is empty.")
    if suffix in (".parquet", ".pq"):
        raise FileRefusedError(f"{path} is named like a Parquet file but is not one.")
    if beginning.startswith(_UTF16_BOMS):
        raise FileRefusedError(f"{path} is UTF-16: save it in UTF-8.")
    text = beginning.removeprefix(_UTF8_BOM).lstrip()
    is_json = suffix in (".jsonl", ".ndjson", ".json") or (suffix not in (".csv", ".tsv") and text.startswith(b"{"))
    if not is_json:
        return CsvFile(path, state, compressed, header, strict)
    if text.startswith(b"["):
        raise FileRefusedError(f"{path} is a JSON array: write one object a line (`jq -c '.[]'` does it).")
    return JsonLinesFile(path, state, compressed)


def digest_of(path: Path) -> str:
    """SHA-256 of the file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def path_getter(column: str) -> Getter:
    """The function that takes `user.id` out of `{"user": {"id": 1}}`, and out of `{"user.id": 1}`."""
    if "." not in column:
        return lambda row: row.get(column)
    path = column.split(".")

    def get(row: Any) -> Any:
        if column in row:
            return row[column]
        for key in path:
            if row.__class__ is not dict:
                return None
            row = row.get(key)
        return row

    return get


def shown(value: Any) -> str:
    """A value as messages quote it, shortened."""
    text = "" if value is None else str(value).encode("utf-8", "replace").decode()
    return repr(text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 1]}…")


@contextmanager
def _opened(path: Path, compressed: bool) -> Iterator[tuple[io.BufferedReader, io.BufferedReader]]:
    """The uncompressed bytes, and the file itself, whose position says how much has been read."""
    with path.open("rb") as raw:
        yield (io.BufferedReader(gzip.GzipFile(fileobj=raw)), raw) if compressed else (raw, raw)


def _beginning(path: Path, compressed: bool) -> bytes:
    try:
        with _opened(path, compressed) as (stream, _):
            return stream.read(4096)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _broken(path, "gzip", error) from error


def _broken(path: Path, kind: str, error: Exception) -> FileRefusedError:
    return FileRefusedError(f"{path} is a broken or cut-off {kind} file ({_first_line(error)}).")


def _microseconds(column: pa.Array) -> pa.Array:
    """Python's times have microseconds; nanoseconds would become numbers or errors."""
    if pa.types.is_timestamp(column.type) and column.type.unit == "ns":
        return column.cast(pa.timestamp("us", column.type.tz), safe=False)
    return column


def _as_text(line: bytes) -> str:
    return line[:LONGEST_VALUE].decode("utf-8", "replace").rstrip("\r\n")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
