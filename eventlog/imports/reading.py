"""A log file as records with line numbers, streamed: CSV, JSON lines (both also as .gz) and Parquet, however large.

`planner/table_files.py` reads a product's tables, whole and refused whole.
"""

import csv
import difflib
import gzip
import hashlib
import io
import os
import stat
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from eventlog.validation import MAX_EVENT_BYTES
from foundation.errors import LifecycleError
from foundation.yaml_files import ConfigError, Place, Problem

LONGEST_LINE = 2 * MAX_EVENT_BYTES
"""Bytes. A line beyond it is no record of an event, and is not held in memory."""
LARGEST_FIELD = MAX_EVENT_BYTES
"""Characters. A CSV value beyond it is a quote that was never closed."""
DELIMITERS = (",", ";", "\t", "|")
PARQUET_ROWS = 8192
_GZIP, _PARQUET, _UTF8_BOM = b"\x1f\x8b", b"PAR1", b"\xef\xbb\xbf"
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
_KEYS_LOOKED_AT = 1000

Getter = Callable[[Any], Any]


class FileRefusedError(LifecycleError):
    """The file can't be used at all; the message names it, the line where there is one, and what is wrong."""


@dataclass(frozen=True)
class Unreadable:
    """A row that can't be taken apart: `reason` to count by, `detail` for a person, the row as it stands."""

    reason: str
    detail: str
    text: str


class Source(ABC):
    """A file that can be read more than once. `read_share` says how far the reading is, from 0 to 1, `nulls` which texts are nothing."""

    nulls: frozenset[str] = frozenset()

    def __init__(self, path: Path, state: os.stat_result) -> None:
        """Nothing is read yet."""
        self.path, self.size = path, state.st_size
        self._state = (state.st_size, state.st_mtime_ns)
        self.read_share = 0.0

    @abstractmethod
    def require(self, columns: Mapping[str, Place]) -> None:
        """Raises ConfigError when the file does not have these columns. JSON lines are looked at while they are read."""

    @abstractmethod
    def getter(self, column: str) -> Getter:
        """What takes a column's value out of a row; None where the row has nothing."""

    @abstractmethod
    def as_dict(self, row: Any) -> dict[str, Any]:
        """A row with the names of its columns."""

    def rows(self) -> Iterator[tuple[int, Any]]:
        """(line, row) from the first to the last, counted from 1; a row that can't be taken apart is an Unreadable.

        Raises FileRefusedError when the file changed since it was opened, or breaks off.
        """
        found = os.stat(self.path)
        if (found.st_size, found.st_mtime_ns) != self._state:
            raise FileRefusedError(f"{self.path} changed while it was read: import a copy that nobody writes to.")
        try:
            yield from self._rows()
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise FileRefusedError(f"{self.path} is a broken or cut-off gzip file ({_first_line(error)}).") from error
        except pa.ArrowException as error:
            raise FileRefusedError(
                f"{self.path} is a broken or cut-off Parquet file ({_first_line(error)})."
            ) from error

    @abstractmethod
    def _rows(self) -> Iterator[tuple[int, Any]]: ...

    def _complain(self, missing: Mapping[str, Place], known: Collection[str]) -> None:
        has = ", ".join(known) if len(known) <= 40 else f"{', '.join(list(known)[:40])}, …"
        problems = []
        for column, place in missing.items():
            close = difflib.get_close_matches(column, known, 1)
            hint = f": did you mean {close[0]}?" if close else "."
            problems.append(Problem(place, f"{self.path.name} has no column {column}{hint}"))
        if problems:
            last = problems[-1]
            problems[-1] = Problem(last.place, f"{last.rule} It has {has}.")
            raise ConfigError(problems)


class TextSource(Source):
    """A file of lines, packed or not."""

    def __init__(self, path: Path, state: os.stat_result, packed: bool) -> None:
        """`packed`: by gzip."""
        super().__init__(path, state)
        self.packed = packed
        self._cut: set[int] = set()

    def _lines(self) -> Iterator[bytes]:
        """Lines with their ends, without a byte order mark. Of one that is too long there is the beginning, and its number is in `_cut`."""
        self._cut.clear()
        with opened(self.path, self.packed) as (stream, raw):
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


class CsvSource(TextSource):
    """Comma, semicolon, tab or bar, whichever the first line has most of; quoted as usual."""

    nulls = frozenset({""})

    def __init__(self, path: Path, state: os.stat_result, packed: bool, header: tuple[str, ...]) -> None:
        """`header`: the columns' names where the file's first line is no header. Raises FileRefusedError."""
        super().__init__(path, state, packed)
        self._has_header = not header
        first = next(self._lines(), b"").decode("utf-8", "surrogateescape")
        if "\r" in first.rstrip("\r\n"):
            raise FileRefusedError(f"{path} ends its lines with CR alone: save it with LF or CRLF.")
        self._delimiter = max(DELIMITERS, key=first.count)
        self.columns = header or self._header()
        self._place = {name: index for index, name in enumerate(self.columns)}

    def require(self, columns: Mapping[str, Place]) -> None:
        """Raises ConfigError."""
        missing = {column: place for column, place in columns.items() if column not in self._place}
        self._complain(missing, self.columns)

    def getter(self, column: str) -> Getter:
        """By the column's position."""
        index = self._place[column]
        return lambda row: row[index]

    def as_dict(self, row: Any) -> dict[str, Any]:
        """A row with the names of its columns."""
        return dict(zip(self.columns, row, strict=True))

    def _header(self) -> tuple[str, ...]:
        _, header = next(self._records(), (1, []))
        if isinstance(header, Unreadable):
            raise FileRefusedError(f"{self.path}, line 1: the header can't be read ({header.detail}).")
        columns = tuple(name.strip() for name in header)
        twice = sorted({name for name in columns if name and columns.count(name) > 1})
        if twice:
            raise FileRefusedError(
                f"{self.path}, line 1: the header has {' and '.join(twice)} twice: rename one of them."
            )
        if not any(columns):
            raise FileRefusedError(f"{self.path} has no header in its first line.")
        return columns

    def _rows(self) -> Iterator[tuple[int, Any]]:
        records, width = self._records(), len(self.columns)
        if self._has_header:
            next(records, None)
        for line, row in records:
            if isinstance(row, Unreadable) or len(row) == width:
                yield line, row
            else:
                detail = f"it has {len(row)} values, and there are {width} columns"
                yield line, Unreadable("wrong_number_of_values", detail, self._delimiter.join(row))

    def _records(self) -> Iterator[tuple[int, Any]]:
        """(line on which it starts, values) of every record that is not blank."""
        csv.field_size_limit(LARGEST_FIELD)
        text = (line.decode("utf-8", "surrogateescape") for line in self._lines())
        reader = csv.reader(text, delimiter=self._delimiter, strict=True)
        while True:
            line = reader.line_num + 1
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                detail = f"the record that starts here is broken ({error}); is a quote never closed?"
                yield line, Unreadable("broken_record", detail, "")
                continue
            if self._cut and any(number in self._cut for number in range(line, reader.line_num + 1)):
                yield line, Unreadable("line_too_long", f"more than {LONGEST_LINE:,} bytes", "")
            elif values:
                yield line, values


class JsonLinesSource(TextSource):
    """One JSON object a line. A column is a key, or keys with points between them."""

    def __init__(self, path: Path, state: os.stat_result, packed: bool) -> None:
        """Nothing is read yet."""
        super().__init__(path, state, packed)
        self._wanted: dict[str, Place] = {}
        self._unseen: dict[str, Getter] = {}

    def require(self, columns: Mapping[str, Place]) -> None:
        """Note what is looked for; whether any line has it is known at the end."""
        self._wanted = dict(columns)

    def getter(self, column: str) -> Getter:
        """By key or path."""
        return path_getter(column)

    def as_dict(self, row: Any) -> dict[str, Any]:
        """It is one."""
        return dict(row)

    def _rows(self) -> Iterator[tuple[int, Any]]:
        decode = msgspec.json.Decoder().decode
        self._unseen = {column: self.getter(column) for column in self._wanted}
        keys: dict[str, None] = {}
        number, objects = 0, 0
        for number, line in enumerate(self._lines(), start=1):
            if number in self._cut:
                yield number, Unreadable("line_too_long", f"more than {LONGEST_LINE:,} bytes", "")
                continue
            try:
                row = decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                if line.strip():
                    yield number, Unreadable("not_json", _first_line(error), _shown(line))
                continue
            if row.__class__ is not dict:
                yield number, Unreadable("no_object", "the line is JSON, and no object", _shown(line))
                continue
            objects += 1
            if objects <= _KEYS_LOOKED_AT:
                keys.update(dict.fromkeys(row))
            if self._unseen:
                self._unseen = {column: get for column, get in self._unseen.items() if get(row) is None}
            yield number, row
        if objects:
            self._complain({column: self._wanted[column] for column in self._unseen}, list(keys))


class ParquetSource(Source):
    """Parquet, batch by batch, and of its columns only those that are looked for. A line is a row's number."""

    def __init__(self, path: Path, state: os.stat_result) -> None:
        """Raises FileRefusedError."""
        super().__init__(path, state)
        try:
            with pq.ParquetFile(path) as file:
                self.columns, self._count = tuple(file.schema_arrow.names), file.metadata.num_rows
        except (pa.ArrowException, OSError) as error:
            raise FileRefusedError(f"{path} is a broken or cut-off Parquet file ({_first_line(error)}).") from error
        self._used: list[str] = []

    def require(self, columns: Mapping[str, Place]) -> None:
        """Raises ConfigError."""
        roots = {column: column if column in self.columns else column.partition(".")[0] for column in columns}
        self._complain(
            {column: columns[column] for column, root in roots.items() if root not in self.columns}, self.columns
        )
        self._used = list(dict.fromkeys(roots.values()))

    def getter(self, column: str) -> Getter:
        """By position; within a struct, by path."""
        if column in self._used:
            index = self._used.index(column)
            return lambda row: row[index]
        root, _, path = column.partition(".")
        index, inside = self._used.index(root), path_getter(path)
        return lambda row: None if row[index] is None else inside(row[index])

    def as_dict(self, row: Any) -> dict[str, Any]:
        """A row with the names of the columns that are used."""
        return dict(zip(self._used, row, strict=True))

    def _rows(self) -> Iterator[tuple[int, Any]]:
        number = 0
        with pq.ParquetFile(self.path) as file:
            for batch in file.iter_batches(batch_size=PARQUET_ROWS, columns=self._used):
                columns = [_microseconds(batch.column(name)).to_pylist() for name in self._used]
                for row in zip(*columns, strict=True) if columns else [()] * batch.num_rows:
                    number += 1
                    yield number, row
                self.read_share = number / self._count


def open_source(path: Path, header: tuple[str, ...] = ()) -> Source:
    """The file, told apart by its ending, or by how it begins where the ending says nothing. Raises FileRefusedError."""
    try:
        state = os.stat(path)
        if not stat.S_ISREG(state.st_mode):
            raise FileRefusedError(f"{path} is no file: it is read twice, so save there what it should give.")
        with path.open("rb") as file:
            start = file.read(4)
    except FileNotFoundError as error:
        raise FileRefusedError(f"{path} does not exist.") from error
    except OSError as error:
        raise FileRefusedError(f"{path} can't be read: {error.strerror}.") from error
    if start == _PARQUET:
        return ParquetSource(path, state)
    packed = start.startswith(_GZIP)
    beginning = _beginning(path, packed)
    suffix = (path.with_suffix("") if packed and path.suffix == ".gz" else path).suffix.lower()
    if not beginning.strip():
        raise FileRefusedError(f"{path} is empty.")
    if suffix in (".parquet", ".pq"):
        raise FileRefusedError(f"{path} is called Parquet and is none.")
    if beginning.startswith(_UTF16_BOMS):
        raise FileRefusedError(f"{path} is UTF-16: save it in UTF-8.")
    text = beginning.removeprefix(_UTF8_BOM).lstrip()
    is_json = suffix in (".jsonl", ".ndjson", ".json") or (suffix not in (".csv", ".tsv") and text.startswith(b"{"))
    if not is_json:
        return CsvSource(path, state, packed, header)
    if text.startswith(b"["):
        raise FileRefusedError(f"{path} holds a JSON array: write one object a line (`jq -c '.[]'` does it).")
    return JsonLinesSource(path, state, packed)


def digest_of(path: Path) -> str:
    """SHA-256 of the file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def opened(path: Path, packed: bool) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """The file's text as bytes, and the file itself, whose position says how far the reading is."""
    with path.open("rb") as raw:
        yield (io.BufferedReader(gzip.GzipFile(fileobj=raw)), raw) if packed else (raw, raw)


def path_getter(column: str) -> Getter:
    """What takes `user.id` out of `{"user": {"id": 1}}`, and out of `{"user.id": 1}`."""
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


def _beginning(path: Path, packed: bool) -> bytes:
    try:
        with opened(path, packed) as (stream, _):
            return stream.read(4096)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise FileRefusedError(f"{path} is a broken or cut-off gzip file ({_first_line(error)}).") from error


def _microseconds(column: pa.Array) -> pa.Array:
    """Python's times have microseconds; nanoseconds would become numbers or errors."""
    if pa.types.is_timestamp(column.type) and column.type.unit == "ns":
        return column.cast(pa.timestamp("us", column.type.tz), safe=False)
    return column


def _shown(line: bytes) -> str:
    return line[:LARGEST_FIELD].decode("utf-8", "replace").rstrip("\r\n")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
