"""Judges a file in chunks: which rows become events, which are rejected and why, and how many of each."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import IO, Any

import msgspec

from eventlog.erased_units import ErasedUnits
from eventlog.imports.rows import Reject, RowReader, Unit
from eventlog.validation import Event
from experimentation.runs.imported import NotedUnit
from foundation.table_files import TableFile, UnreadableRow, UnusableError, shown

ROWS_AT_ONCE = 5_000
LINES_LISTED = 5

TWO_VARIANTS = "unit_in_two_variants"

NoteUnits = Callable[[list[NotedUnit]], dict[int, str]]
"""Notes units. Returns the place of each unit that already has another variant, and that variant."""


@dataclass
class Chunk:
    """Some rows, judged: their events and the rejects."""

    rows: int = 0
    left_out: int = 0
    events: list[Event] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)


@dataclass
class Tally:
    """Counts for a file. `lines` are the first lines of each reason; `days` are the days (UTC) that have events."""

    rows: int = 0
    left_out: int = 0
    events: Counter[str] = field(default_factory=Counter)
    without_experiment: int = 0
    rejects: Counter[str] = field(default_factory=Counter)
    lines: dict[str, list[int]] = field(default_factory=dict)
    first: datetime | None = None
    last: datetime | None = None
    days: set[date] = field(default_factory=set)

    @property
    def rejected(self) -> int:
        """Number of rejected rows."""
        return self.rejects.total()

    @property
    def total_events(self) -> int:
        """Number of events, of all rows that were not rejected."""
        return self.events.total()

    def add(self, chunk: Chunk) -> None:
        """Count a chunk."""
        self.rows += chunk.rows
        self.left_out += chunk.left_out
        for reject in chunk.rejects:
            self.rejects[reject.reason] += 1
            lines = self.lines.setdefault(reject.reason, [])
            if len(lines) < LINES_LISTED:
                lines.append(reject.line)
        if not chunk.events:
            return
        self.events.update(event.event_type for event in chunk.events)
        self.without_experiment += sum(not event.experiments for event in chunk.events)
        times = [event.timestamp for event in chunk.events]
        self.days.update(time.date() for time in times)
        self.first = min(times) if self.first is None else min(self.first, *times)
        self.last = max(times) if self.last is None else max(self.last, *times)


def judged(table: TableFile, reader: RowReader, note_units: NoteUnits, erased: ErasedUnits) -> Iterator[Chunk]:
    """The file's rows in chunks. The same file always gives the same chunks."""
    pending: list[tuple[int, Any, list[Event], list[Unit]]] = []
    chunk = Chunk()
    for line, row in table.rows():
        chunk.rows += 1
        if isinstance(row, UnreadableRow):
            chunk.rejects.append(Reject(line, row.reason, row.detail, row.text))
        else:
            try:
                events, units = reader.read(line, row)
                if any(erased.cover(event.unit_type, event.unit_id, event.timestamp) for event in events):
                    raise UnusableError("erased_unit", "its unit was erased")
                if events:
                    pending.append((line, row, events, units))
                else:
                    chunk.left_out += 1
            except UnusableError as error:
                # The file of rejects must not hold erased data either.
                listed = None if error.reason == "erased_unit" else table.as_dict(row)
                chunk.rejects.append(Reject(line, error.reason, error.detail, listed))
        if chunk.rows == ROWS_AT_ONCE:
            yield _settled(chunk, pending, table, note_units)
            chunk, pending = Chunk(), []
    yield _settled(chunk, pending, table, note_units)


def write_rejects(file: IO[str], chunk: Chunk) -> None:
    """Write one line of JSON for each reject."""
    for reject in chunk.rejects:
        record = {"line": reject.line, "reason": reject.reason, "detail": reject.detail, "row": _storable(reject.row)}
        file.write(msgspec.json.encode(record, enc_hook=str).decode() + "\n")


def _settled(
    chunk: Chunk, pending: list[tuple[int, Any, list[Event], list[Unit]]], table: TableFile, note_units: NoteUnits
) -> Chunk:
    """The chunk with the events of its rows. Rows whose unit already has another variant are rejected."""
    shown_units = [
        NotedUnit(place, unit.unit_id, unit.variant, unit.assigned_at)
        for place, (_, _, _, units) in enumerate(pending)
        for unit in units
    ]
    others = note_units(shown_units) if shown_units else {}
    for place, (line, row, events, units) in enumerate(pending):
        if place in others:
            detail = f"{shown(units[0].unit_id)} already has the variant {others[place]}, not {units[0].variant}"
            chunk.rejects.append(Reject(line, TWO_VARIANTS, detail, table.as_dict(row)))
        else:
            chunk.events += events
    chunk.rejects.sort(key=lambda reject: reject.line)
    return chunk


def _storable(value: Any) -> Any:
    """With `�` for the lone surrogates that stand for bytes that were not UTF-8."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    if isinstance(value, dict):
        return {str(_storable(key)): _storable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_storable(item) for item in value]
    return value
