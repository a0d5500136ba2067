"""An import from its file to PostgreSQL: judged whole first, then stored in chunks, so that an import that was cut off can be run again."""

from collections.abc import Callable, Iterator
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
from eventlog.imports.reading import Source, digest_of
from eventlog.imports.remembered import is_remembered, remember
from eventlog.imports.rows import RowReader
from eventlog.imports.runs import Experiments, find_experiments, of_run
from eventlog.store import store_read_events
from experimentation.runs.imported import import_run, note_units, noted_units, stage_units, store_units
from experimentation.runs.run import Run
from foundation.audit import Change, write_audit
from foundation.errors import LifecycleError

KIND = "events"
BEGUN, DONE = "events.import_begun", "events.imported"
REASON = "Someone asked for it on the command line."
MAPPING_BEFORE = (
    "SELECT after ->> 'mapping', at FROM exp.audit_log WHERE subject = %s AND action = %s ORDER BY id DESC LIMIT 1"
)
# A file that grew, or was packed, since: `log.csv` and `log.csv.gz` are the same log.
OTHER_CONTENT = """
SELECT created_at FROM exp.imports
WHERE kind = %s AND digest <> %s AND regexp_replace(source, '\\.gz$', '') = regexp_replace(%s, '\\.gz$', '')
ORDER BY id DESC LIMIT 1
"""
# Whoever erases a unit waits for the chunk, and what was erased before is known to it.
HOLD_ERASURES = "LOCK TABLE exp.erased_units IN SHARE MODE"
LOCK = "SELECT pg_try_advisory_lock(hashtextextended(%s, 0))"
UNLOCK = "SELECT pg_advisory_unlock(hashtextextended(%s, 0))"

Told = Callable[[str, float], None]
"""Called meanwhile with what is done, and its share from 0 to 1."""


class ImportRefusedError(LifecycleError):
    """Nothing of this file was stored; the message says why."""


@dataclass
class Imported:
    """What an import came to. `new_events` and `new_units` were not there before; `before`: the file had been imported already.

    `other_content` is when the same log was imported with other content, where that makes other ids of its rows.
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

    def __init__(self, connection: psycopg.Connection[Any], source: Source, mapping: EventMapping, told: Told) -> None:
        """Raises ConfigError for a column that the file does not have, an experiment or a variant that there is not."""
        self._connection, self._source, self._mapping, self._told = connection, source, mapping, told
        source.require(mapping.columns())
        self._experiments = find_experiments(connection, mapping)
        self._digest = digest_of(source.path)
        self._begun = False
        self._now = datetime.now(UTC)
        stage_units(connection)

    def judge(self, rejects: IO[str] | None = None) -> Imported:
        """Go through the whole file and store nothing. Rejects are written as lines of JSON."""
        tally = Tally()
        note = partial(note_units, self._connection, self._experiments.run_id)
        for chunk in self._chunks(self._experiments, note, None, "judged"):
            tally.add(chunk)
            if rejects is not None:
                write_rejects(rejects, chunk)
        return Imported(tally, noted_units(self._connection), other_content=self._other_content())

    def store(self, judged: Imported, *, actor: str) -> Imported:
        """Store what was judged; again stores what is missing, and nothing twice. Partitions must be there.

        Raises ImportRefusedError when the file was imported with another mapping, or is being imported.
        """
        subject = f"import {self._digest[:16]}"
        with self._alone(subject):
            self._refuse_another_mapping(subject)
            before = is_remembered(self._connection, self._digest)
            experiments = self._store_run(judged, subject, actor)
            # By now every unit is noted, so only rows of units in two variants have to be found again.
            note = partial(note_units, self._connection, experiments.run_id)
            two = judged.tally.rejects[TWO_VARIANTS] > 0
            for chunk in self._chunks(experiments, note if two else lambda units: {}, self._digest, "stored"):
                if chunk.events:
                    judged.new_events += self._store_chunk(chunk, subject, actor)
            judged.before = before and not judged.new_events and not judged.new_units
            if not judged.before:
                self._note(subject, judged, actor)
        return judged

    def _chunks(self, experiments: Experiments, note: NoteUnits, identity: str | None, doing: str) -> Iterator[Chunk]:
        reader = RowReader(self._mapping, self._source, experiments, identity=identity, now=self._now)
        for chunk in judged(self._source, reader, note, erased_units(self._connection)):
            yield chunk
            self._told(doing, self._source.read_share)

    def _store_chunk(self, chunk: Chunk, subject: str, actor: str) -> int:
        with self._connection.transaction():
            self._connection.execute(HOLD_ERASURES)
            erased = erased_units(self._connection)
            kept = [one for one in chunk.events if not erased.cover(one.unit_type, one.unit_id, one.timestamp)]
            self._begin(subject, actor)
            return store_read_events(self._connection, kept)

    def _begin(self, subject: str, actor: str) -> None:
        """With the first thing that is stored, in its transaction: a mapping that stored nothing keeps no other one out."""
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
                change=Change(actor, f"{self._source.path.name} holds its units and events."),
            )
            judged.new_units = store_units(self._connection, judged.run.id)
        return of_run(declared, judged.run)

    @contextmanager
    def _alone(self, subject: str) -> Iterator[None]:
        with self._connection.cursor(row_factory=tuple_row) as cursor:
            free = cursor.execute(LOCK, (subject,)).fetchone()
            if free is None or not free[0]:
                raise ImportRefusedError(
                    f"{self._source.path} is being imported by another command: wait until that ends."
                )
            try:
                yield
            finally:
                if not self._connection.closed:
                    cursor.execute(UNLOCK, (subject,))

    def _refuse_another_mapping(self, subject: str) -> None:
        with self._connection.cursor(row_factory=tuple_row) as cursor:
            row = cursor.execute(MAPPING_BEFORE, (subject, BEGUN)).fetchone()
        self._begun = row is not None
        if row is not None and row[0] != self._mapping.digest:
            raise ImportRefusedError(
                f"{self._source.path} was imported with another mapping on {row[1].astimezone(UTC):%Y-%m-%d %H:%M} UTC, and the events "
                "of a file are stored once: use that mapping, in which several `events:` make several events of a row."
            )

    def _other_content(self) -> datetime | None:
        if all(entry.event_id is not None for entry in self._mapping.events):
            return None
        with self._connection.cursor(row_factory=scalar_row) as cursor:
            return cursor.execute(OTHER_CONTENT, (KIND, self._digest, str(self._source.path.resolve()))).fetchone()

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
                remember(self._connection, KIND, str(self._source.path.resolve()), self._digest, counts)
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
                "file": str(self._source.path),
                "digest": self._digest,
                "mapping": self._mapping.digest,
                "experiment": None if run is None else run.name,
                **counts,
            },
        )


def too_many(tally: Tally, most: float, path: Path) -> str | None:
    """The sentence for more rejects than are allowed, or for nothing to store; None when all is well."""
    if not tally.rows:
        return f"{path} holds no rows: nothing was stored."
    if tally.rejected > most * tally.rows:
        return (
            f"{tally.rejected:,} of {tally.rows:,} rows of {path} are rejected, more than --max-rejects {most:g}: nothing was stored; "
            "correct the mapping or the file, or allow more."
        )
    return None
