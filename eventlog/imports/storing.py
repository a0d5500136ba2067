"""Imports a file into PostgreSQL: it is judged as a whole, then stored in chunks. An interrupted import can be run again."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import IO, Any

import psycopg
from psycopg.rows import scalar_row, tuple_row

from eventlog.erased_units import erased_units
from eventlog.imports.judging import TWO_VARIANTS, Chunk, NoteUnits, Tally, judged, write_rejects
from eventlog.imports.mapping import EventMapping
from eventlog.imports.remembered import is_remembered, remember
from eventlog.imports.rows import RowReader
from eventlog.imports.runs import Experiments, find_experiments, of_run
from eventlog.store import store_read_events
from experimentation.runs.imported import import_run, note_units, noted_units, stage_units, store_units
from experimentation.runs.run import Run
from foundation import locks
from foundation.audit import Change, write_audit
from foundation.errors import LifecycleError
from foundation.table_files import MissingColumnsError, TableFile, digest_of
from foundation.yaml_files import ConfigError, Place, Problem

KIND = "events"
BEGUN, DONE = "events.import_begun", "events.imported"
REASON = "Requested on the command line."
MAPPING_BEFORE = (
    "SELECT after ->> 'mapping', at FROM exp.audit_log WHERE subject = %s AND action = %s ORDER BY id DESC LIMIT 1"
)
# A file that has grown or was compressed since: `log.csv` and `log.csv.gz` are the same log.
OTHER_CONTENT = """
SELECT created_at FROM exp.imports
WHERE kind = %s AND digest <> %s AND regexp_replace(source, '\\.gz$', '') = regexp_replace(%s, '\\.gz$', '')
ORDER BY id DESC LIMIT 1
"""
# An erasure waits until the chunk is stored; the chunk sees all earlier erasures.
HOLD_ERASURES = "LOCK TABLE exp.erased_units IN SHARE MODE"

Progress = Callable[[str, float], None]
"""Called after each chunk with "judged" or "stored", and how much of the file that is, from 0 to 1."""


class ImportRefusedError(LifecycleError):
    """Nothing was stored from this file; the message says why."""


@dataclass
class Imported:
    """The result of an import. `new_events` and `new_units` were not stored before; `before`: the whole file was.

    `other_content` is when the same log was imported with other content, if its rows got other event ids then.
    """

    tally: Tally
    units: dict[str, int] = field(default_factory=dict)
    run: Run | None = None
    new_events: int = 0
    new_units: int = 0
    before: bool = False
    other_content: datetime | None = None


class EventImport:
    """One file, one mapping, one database. The connection is in autocommit and belongs to this import."""

    def __init__(
        self, connection: psycopg.Connection[Any], table: TableFile, mapping: EventMapping, progress: Progress
    ) -> None:
        """Raises ConfigError for a column that the file lacks, and for an unknown experiment or variant."""
        self._connection, self._table, self._mapping, self._progress = connection, table, mapping, progress
        self._columns = mapping.columns()
        with _missing_columns_at(self._columns):
            table.require(self._columns)
        self._experiments = find_experiments(connection, mapping)
        self._digest = digest_of(table.path)
        self._begun = False
        self._now = datetime.now(UTC)
        stage_units(connection)

    def judge(self, rejects: IO[str] | None = None) -> Imported:
        """Read the whole file and store nothing. Rejects are written as JSON lines. Raises ConfigError, FileRefusedError."""
        tally = Tally()
        note = partial(note_units, self._connection, self._experiments.run_id)
        for chunk in self._chunks(self._experiments, note, None, "judged"):
            tally.add(chunk)
            if rejects is not None:
                write_rejects(rejects, chunk)
        return Imported(tally, noted_units(self._connection), other_content=self._other_content())

    def store(self, judged: Imported, *, actor: str) -> Imported:
        """Store what was judged, except what is stored already. The partitions must exist.

        Raises ImportRefusedError if the file was imported with another mapping, or is being imported.
        """
        subject = f"import {self._digest[:16]}"
        with self._alone(subject):
            self._refuse_another_mapping(subject)
            before = is_remembered(self._connection, self._digest)
            experiments = self._store_run(judged, subject, actor)
            # All units are noted, so they are only looked up again if some rows must be rejected for their variant.
            note = partial(note_units, self._connection, experiments.run_id)
            has_two_variants = judged.tally.rejects[TWO_VARIANTS] > 0
            look_up: NoteUnits = note if has_two_variants else lambda units: {}
            for chunk in self._chunks(experiments, look_up, self._digest, "stored"):
                if chunk.events:
                    judged.new_events += self._store_chunk(chunk, subject, actor)
            judged.before = before and not judged.new_events and not judged.new_units
            if not judged.before:
                self._note(subject, judged, actor)
        return judged

    def _chunks(self, experiments: Experiments, note: NoteUnits, identity: str | None, doing: str) -> Iterator[Chunk]:
        reader = RowReader(self._mapping, self._table, experiments, identity=identity, now=self._now)
        # JSON lines show only at their end that a column is missing.
        with _missing_columns_at(self._columns):
            for chunk in judged(self._table, reader, note, erased_units(self._connection)):
                yield chunk
                self._progress(doing, self._table.read_share)

    def _store_chunk(self, chunk: Chunk, subject: str, actor: str) -> int:
        with self._connection.transaction():
            self._connection.execute(HOLD_ERASURES)
            erased = erased_units(self._connection)
            kept = [
                event for event in chunk.events if not erased.cover(event.unit_type, event.unit_id, event.timestamp)
            ]
            self._begin(subject, actor)
            return store_read_events(self._connection, kept)

    def _begin(self, subject: str, actor: str) -> None:
        """Note the mapping together with the first thing stored: a mapping that stored nothing must not block another one."""
        if not self._begun:
            self._audit(subject, BEGUN, actor, {})
            self._begun = True

    def _store_run(self, judged: Imported, subject: str, actor: str) -> Experiments:
        declared = self._mapping.declared
        if declared is None:
            return self._experiments
        with self._connection.transaction():
            self._connection.execute(HOLD_ERASURES)
            self._begin(subject, actor)
            judged.run = import_run(
                self._connection,
                name=declared.name,
                unit_type=declared.unit_type,
                variants=declared.variants,
                started=declared.started,
                ended=declared.ended,
                description=declared.description,
                change=Change(actor, f"Its units and events were imported from {self._table.path.name}."),
            )
            judged.new_units = store_units(self._connection, judged.run.id)
        return of_run(declared, judged.run)

    @contextmanager
    def _alone(self, subject: str) -> Iterator[None]:
        with locks.try_named(self._connection, locks.IMPORTS, subject) as is_locked:
            if not is_locked:
                raise ImportRefusedError(
                    f"Another command is importing {self._table.path}: wait until it has finished."
                )
            yield

    def _refuse_another_mapping(self, subject: str) -> None:
        with self._connection.cursor(row_factory=tuple_row) as cursor:
            row = cursor.execute(MAPPING_BEFORE, (subject, BEGUN)).fetchone()
        self._begun = row is not None
        if row is not None and row[0] != self._mapping.digest:
            raise ImportRefusedError(
                f"{self._table.path} was imported with another mapping on {row[1].astimezone(UTC):%Y-%m-%d %H:%M} UTC, and a file's "
                "events are stored only once: use that mapping. To get several events from a row, list them under `events:`."
            )

    def _other_content(self) -> datetime | None:
        if all(entry.event_id is not None for entry in self._mapping.events):
            return None
        with self._connection.cursor(row_factory=scalar_row) as cursor:
            return cursor.execute(OTHER_CONTENT, (KIND, self._digest, str(self._table.path.resolve()))).fetchone()

    def _note(self, subject: str, imported: Imported, actor: str) -> None:
        tally = imported.tally
        counts = {
            "rows": tally.rows,
            "rejected": tally.rejected,
            "events": tally.total_events,
            "units": sum(imported.units.values()),
        }
        with self._connection.transaction():
            if self._begun:
                remember(self._connection, KIND, str(self._table.path.resolve()), self._digest, counts)
            new = {"new_events": imported.new_events, "new_units": imported.new_units}
            self._audit(subject, DONE, actor, {**counts, **new, "rejects": dict(tally.rejects)})

    def _audit(self, subject: str, action: str, actor: str, counts: dict[str, Any]) -> None:
        run = self._mapping.declared
        write_audit(
            self._connection,
            change=Change(actor, REASON),
            action=action,
            subject=subject,
            after={
                "file": str(self._table.path),
                "digest": self._digest,
                "mapping": self._mapping.digest,
                "experiment": None if run is None else run.name,
                **counts,
            },
        )


def too_many(tally: Tally, most: float, path: Path) -> str | None:
    """Why the file must not be stored: it has no rows, or too many rejects. None if it may be stored."""
    if not tally.rows:
        return f"{path} has no rows: nothing was stored."
    if tally.rejected > most * tally.rows:
        return (
            f"{tally.rejected:,} of {tally.rows:,} rows of {path} are rejected, more than --max-rejects {most:g}: nothing was stored. "
            "Correct the mapping or the file, or allow more."
        )
    return None


@contextmanager
def _missing_columns_at(columns: Mapping[str, Place]) -> Iterator[None]:
    """Turns MissingColumnsError into a ConfigError that names the lines of the mapping."""
    try:
        yield
    except MissingColumnsError as error:
        problems = [Problem(columns[column], sentence) for column, sentence in error.sentences.items()]
        raise ConfigError(problems) from error
