"""Reading a table that somebody else wrote: CSV or Parquet, with line numbers, refused whole when the file is broken."""

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from foundation.errors import LifecycleError

DELIMITERS = (",", ";", "\t")
LARGEST_FIELD = 1_000_000
"""Characters. A field beyond it is a quote that was never closed, swallowing the rest of the file."""


class FileRefusedError(LifecycleError):
    """The file can't be used at all; the message names it, the line where there is one, and what is wrong."""


@dataclass(frozen=True)
class TableFile:
    """What a file holds. `rows`: (line, values in the order of `columns`), values are text (CSV) or as stored (Parquet).

    A row of a CSV file that has more or fewer values than the header is in `uneven`, by line: (line, number of values).
    The line of a Parquet row is its number, from 1.
    """

    path: Path
    columns: tuple[str, ...]
    rows: tuple[tuple[int, tuple[Any, ...]], ...]
    uneven: tuple[tuple[int, int], ...]


def read_table(path: Path) -> TableFile:
    """Read a CSV file (UTF-8; comma, semicolon or tab; quoted as usual) or a Parquet file. Raises FileRefusedError."""
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise FileRefusedError(f"{path} does not exist.") from error
    except IsADirectoryError as error:
        raise FileRefusedError(f"{path} is a folder: give the file in it.") from error
    except OSError as error:
        raise FileRefusedError(f"{path} can't be read: {error.strerror}.") from error
    if not data.strip():
        raise FileRefusedError(f"{path} is empty.")
    if data.startswith(b"PAR1"):
        return _parquet(path, data)
    if path.suffix == ".parquet":
        raise FileRefusedError(f"{path} is called Parquet and is none.")
    return _csv(path, _text(path, data))


def _parquet(path: Path, data: bytes) -> TableFile:
    try:
        frame = pl.read_parquet(io.BytesIO(data))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise FileRefusedError(f"{path} is a broken or cut-off Parquet file ({_first_line(error)}).") from error
    if frame.is_empty():
        raise FileRefusedError(f"{path} has columns and not a single row.")
    return TableFile(path, tuple(frame.columns), tuple(enumerate(frame.iter_rows(), start=1)), ())


def _text(path: Path, data: bytes) -> str:
    zero = data.find(b"\x00")
    if zero >= 0:
        line = data.count(b"\n", 0, zero) + 1
        raise FileRefusedError(
            f"{path}, line {line}: this is no text in UTF-8 (a zero byte); save it as CSV in UTF-8, or as Parquet."
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise FileRefusedError(
            f"{path}, line {line}: byte 0x{data[error.start]:02x} is not UTF-8; save the file in UTF-8."
        ) from error


def _csv(path: Path, text: str) -> TableFile:
    first_line = text.split("\n", 1)[0]
    delimiter = max(DELIMITERS, key=first_line.count)
    records = _records(path, text, delimiter)
    _, header = next(records, (1, []))
    columns = tuple(name.strip() for name in header)
    if len(columns) < 2 or len(set(columns)) != len(columns) or not all(columns):
        raise FileRefusedError(
            f"{path}, line 1: this is no CSV header ({first_line[:60]!r}): it needs at least two different column names."
        )
    rows, uneven = [], []
    for line, values in records:
        if len(values) == len(columns):
            rows.append((line, tuple(values)))
        else:
            uneven.append((line, len(values)))
    if not rows:
        raise FileRefusedError(f"{path} has a header and not a single row that fits it.")
    return TableFile(path, columns, tuple(rows), tuple(uneven))


def _records(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """(line on which it starts, values) of every record that is not blank."""
    csv.field_size_limit(LARGEST_FIELD)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise FileRefusedError(
                f"{path}, line {line}: the record that starts here is broken ({error}); is a quote never closed, or the file cut off?"
            ) from error
        if values:
            yield line, values


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
