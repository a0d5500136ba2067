"""For erasure tests: a platform that stores several units everywhere, and snapshots of all data that is not one unit's."""

import io
import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import psycopg
from archive_support import DAY, FIRST, HOUR, event, insert, prepare

from eventlog.archive.archiving import archive_history, archive_hours
from eventlog.archive.cleaning import clean_day, clean_history
from eventlog.spool import SpoolWriter, read_segment
from eventlog.validation import Event
from foundation.object_store import ObjectStore
from orchestration.erasure.erase import Platform, Report, erase, look
from orchestration.erasure.findings import Unit

CONTROL, TREATMENT, RUN = ("00000000-0000-0000-0000-00000000000" + digit for digit in "234")
UNITS = (Unit("user", "1"), Unit("user", "12"), Unit("household", "1"), Unit("session", "s:%_'\"\\ ünï😀"))
"""Ids that are prefixes of each other, the same id with another type, and an id that breaks quoting and patterns."""
CONFIG = """experiments:
  - name: cards
    unit_type: user
    status: active
    variants:
      - {name: control, allocation: 0.5}
      - {name: red, allocation: 0.5}
"""
HISTORY = FIRST - 40 * DAY


def quiet(what: str, done: int, total: int) -> None:
    """A progress callback that shows nothing."""


def empty_registry(folder: Path) -> str:
    """An MLflow database without runs, and its address."""
    from training import registry

    uri = f"sqlite:///{folder / 'mlflow.db'}"
    registry.experiment_id(uri, "trainings", str(folder / "artefacts"))
    return uri


@dataclass
class World:
    """One platform."""

    url: str
    folder: Path
    platform: Platform

    @property
    def store(self) -> ObjectStore:
        return self.platform.store

    def connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self.url, autocommit=True)

    def erase(self, unit: Unit, *, pseudonymise: bool = False, files: bool = False) -> Report:
        with self.connect() as connection:
            return erase(
                connection, self.platform, unit, pseudonymise=pseudonymise, files=files, on_progress=quiet, by="a test"
            )  # fmt: skip

    def look(self, unit: Unit, *, pseudonymise: bool = False, files: bool = False) -> Report:
        with self.connect() as connection:
            return look(connection, self.platform, unit, pseudonymise=pseudonymise, files=files, on_progress=quiet)

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with self.connect() as connection:
            return connection.execute(query, values).fetchall()

    def files(self) -> dict[str, bytes]:
        return {key: self.store.read(key) for key in self.store.list()}

    def frames(self) -> dict[str, pl.DataFrame]:
        """Every Parquet file of events, by key."""
        read = {key: data for key, data in self.files().items() if key.endswith(".parquet")}
        return {key: pl.read_parquet(io.BytesIO(data)) for key, data in read.items()}

    def of_others(self, unit: Unit) -> dict[str, Any]:
        """All data of other units: rows of every table as text, rows of every file, spooled records, in their order."""
        mine = (unit.unit_type, unit.unit_id)
        queries = {
            "events": "SELECT unit_type, unit_id, e::text FROM exp.events e",
            "assignments": "SELECT unit_type, unit_id, a::text FROM exp.assignments a",
            "overridden": "SELECT unit_type, unit_id, o::text FROM exp.overridden_units o JOIN exp.experiments e ON e.id = experiment_id",
            "overrides": "SELECT unit_type, key, value::text FROM exp.experiments, jsonb_each(overrides)",
            "letters": "SELECT convert_from(event, 'UTF8')::json ->> 'unit_type', convert_from(event, 'UTF8')::json ->> 'unit_id', d::text "
            "FROM exp.dead_letters d",
        }  # fmt: skip
        picture: dict[str, Any] = {
            name: sorted(row for row in self.rows(query) if row[:2] != mine) for name, query in queries.items()
        }
        for key, frame in self.frames().items():
            others = frame.filter((pl.col("unit_type") != unit.unit_type) | (pl.col("unit_id") != unit.unit_id))
            picture[key] = others.rows()
        picture["spool"] = [record for record in self.spooled() if unit_of(record) != mine]
        return picture

    def spooled(self) -> list[bytes]:
        segments = (read_segment(path) for path in sorted(self.platform.spool.glob("*/*.events")))
        return [record for segment in segments for record in segment.records]

    def places(self, unit: Unit) -> dict[str, int]:
        """How many rows of the unit each place has."""
        return {item.place.replace(str(self.folder), ""): item.rows for item in self.look(unit).found}


def unit_of(record: bytes) -> tuple[str, str]:
    fields = msgspec.json.decode(record)
    return fields["unit_type"], fields["unit_id"]


def row(unit: Unit, moment: datetime, number: int, **fields: Any) -> tuple[Any, ...]:
    """A row of exp.events of this unit."""
    values = list(event(moment, number, unit=unit.unit_id, **fields))
    values[2] = unit.unit_type
    return tuple(values)


def record(unit: Unit, number: int) -> Event:
    """An event that is not stored yet."""
    values = row(unit, FIRST, number)
    return Event(values[0], "exposure", unit.unit_type, unit.unit_id, [], {"name": "Ann"}, {}, None, FIRST, [], FIRST)


def platform_in(folder: Path) -> Platform:
    """Where a world stores everything."""
    return Platform(
        ObjectStore(str(folder / "store")),
        ObjectStore(str(folder / "datasets")),
        folder / "spool",
        f"sqlite:///{folder / 'mlflow.db'}",
        folder / "config",
        FIRST.date(),
    )


def new_world(url: str, folder: Path) -> World:
    """A world with partitions and a configuration, but no data."""
    (folder / "config").mkdir()
    (folder / "config" / "experiments.yml").write_text(CONFIG)
    world = World(url, folder, platform_in(folder))
    with world.connect() as connection:
        prepare(connection)
    return world


def fill(world: World) -> None:
    """Give every unit 30 events in two archived and cleaned days, one event that is not archived, one in history, an assignment,
    an override, a dead letter, and two spooled events of a dead writer. The first day is only in the archive."""
    moments = [FIRST + timedelta(minutes=90 * step) for step in range(30)]
    payloads = [{"plan_id": "p", "reconstructed": True}, {"plan_id": "p", "name": "Ann"}]
    rows = [
        row(unit, moment + timedelta(seconds=place), 1000 * place + step, payload=payloads[step % 2])
        for place, unit in enumerate(UNITS)
        for step, moment in enumerate([*moments, HISTORY, FIRST + 2 * DAY + HOUR])
    ]
    with world.connect() as connection:
        insert(connection, rows)
        archive_hours(connection, world.store, FIRST, FIRST + 2 * DAY)
        archive_history(connection, world.store, FIRST.date())
        for day in (FIRST, FIRST + DAY):
            clean_day(world.store, day.date())
        clean_history(world.store)
        connection.execute("DELETE FROM exp.events WHERE timestamp >= %s AND timestamp < %s", (FIRST, FIRST + DAY))
        connection.execute(
            "UPDATE exp.archived_hours SET database_rows = 0, checksum = 0 WHERE hour >= %s AND hour < %s", (FIRST, FIRST + DAY)
        )  # fmt: skip
        _enrol(connection)
        for number, unit in enumerate(UNITS):
            connection.execute(
                'INSERT INTO exp.dead_letters (event_id, "timestamp", event, error, tries, received_at) VALUES (%s, %s, %s, %s, 3, now())',
                (row(unit, FIRST, 7000 + number)[0], FIRST, msgspec.json.encode(record(unit, 7000 + number)), "no"),
            )
    writer = SpoolWriter(world.platform.spool, 2**20)
    encoded = [msgspec.json.encode(record(unit, 8000 + number)) for number, unit in enumerate(UNITS * 2)]
    writer.append(encoded[:5])
    writer.seal()
    writer.append(encoded[5:])
    writer.close()


def _enrol(connection: psycopg.Connection[Any]) -> None:
    overrides = json.dumps({unit.unit_id: "red" for unit in UNITS})
    for kind, number in (("user", 0), ("household", 1), ("session", 2)):
        run, control, red = (f"{number}{name[1:]}" for name in (RUN, CONTROL, TREATMENT))
        connection.execute(
            "INSERT INTO exp.experiments (id, name, status, unit_type) VALUES (%s, %s, 'active', %s)", (run, f"cards_{kind}", kind)
        )  # fmt: skip
        for place, (variant, name) in enumerate(((control, "control"), (red, "red"))):
            connection.execute(
                "INSERT INTO exp.variants (id, experiment_id, name, position, role, allocation) VALUES (%s, %s, %s, %s, %s, 0.5)",
                (variant, run, name, place, "treatment" if place else "control"),
            )
        connection.execute(
            "INSERT INTO exp.allocation_epochs (experiment_id, epoch, allocations) VALUES (%s, 1, '{}')", (run,)
        )
        for unit in UNITS:
            if unit.unit_type == kind:
                connection.execute(
                    "INSERT INTO exp.assignments (experiment_id, unit_type, unit_id, variant_id, epoch, propensity) "
                    "VALUES (%s, %s, %s, %s, 1, 0.5)",
                    (run, kind, unit.unit_id, control),
                )
        connection.execute("UPDATE exp.experiments SET overrides = %s WHERE id = %s", (overrides, run))
