"""Erasing a unit on a real database, archive and spool: it is removed everywhere, and no other unit's data changes."""

import re
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import msgspec
import polars as pl
import psycopg
import pytest
from archive_support import DAY, FIRST, HOUR, insert
from erasure_support import HISTORY, UNITS, World, record, row

from eventlog.archive.archiving import archive_hours
from eventlog.archive.cleaning import clean_day, day_key
from eventlog.archive.files import hour_key
from eventlog.archive.hours import archive_lock, record_dropped, waiting_hours
from eventlog.archive.retention import apply_retention
from eventlog.erased_units import erased_units
from eventlog.partitions import LeavingDay, detach_day, leaving_days
from eventlog.spool import SpoolWriter, read_segment, remove_segment
from orchestration.erasure import spools
from orchestration.erasure.findings import ErasureError, Unit

USER, LONGER, HOUSEHOLD, HOSTILE = UNITS
# 30 events, 16 of them of the first day, which is only in the archive; one of history; one that is not archived.
EVERYWHERE = {
    "exp.events": 16,
    "exp.assignments": 1,
    "exp.overridden_units": 1,
    "exp.experiments, overrides": 1,
    "spool /spool": 2,
    "exp.dead_letters": 1,
    "/store/events, 31 files": 31,
    "/store/cleaned, 3 files": 31,
}


pytest_plugins = ["erasure_worlds"]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.unit_type + str(len(unit.unit_id)))
def test_erase_removes_the_unit_everywhere_and_nothing_else(world: World, unit: Unit) -> None:
    before, files = world.of_others(unit), world.files()
    assert world.places(unit) == EVERYWHERE
    assert world.files() == files, "looking changes nothing"
    report = world.erase(unit)
    assert not report.left
    assert {item.place.replace(str(world.folder), ""): item.rows for item in report.found} == EVERYWHERE
    assert world.places(unit) == {}
    assert world.of_others(unit) == before
    with world.connect() as connection:
        assert erased_units(connection).cover(unit.unit_type, unit.unit_id, datetime(2020, 1, 1, tzinfo=UTC))
        assert waiting_hours(connection, FIRST.date(), FIRST + 2 * DAY) == []
        # Cleaning the archive again gives the same file, byte for byte.
        cleaned = world.store.read(day_key(FIRST.date()))
        clean_day(world.store, FIRST.date())
        assert world.store.read(day_key(FIRST.date())) == cleaned
    audit_log = " ".join(str(entry) for (entry,) in world.rows("SELECT a::text FROM exp.audit_log a"))
    assert len(unit.unit_id) < 3 or unit.unit_id not in audit_log
    assert world.rows("SELECT action, count(*) FROM exp.audit_log GROUP BY 1 ORDER BY 1") == [
        ("unit.erased", 1), ("unit.erasing", 1),
    ]  # fmt: skip


@pytest.mark.parametrize("unit", [USER, HOSTILE], ids=["user", "hostile"])
def test_pseudonymised_events_are_kept_without_context_and_payload(world: World, unit: Unit) -> None:
    before, events = world.of_others(unit), world.rows("SELECT count(*) FROM exp.events")
    frames = world.frames()
    assert not world.erase(unit, pseudonymise=True).left
    assert world.places(unit) == {}
    ((name,),) = world.rows("SELECT DISTINCT unit_id FROM exp.events WHERE unit_id LIKE 'erased-%%'")
    assert re.fullmatch(r"erased-[0-9a-f-]{36}", name)
    renamed = Unit(unit.unit_type, name)
    assert world.of_others(renamed) == before
    assert world.rows("SELECT count(*) FROM exp.events") == events
    places = world.places(renamed)
    assert places == {
        place: rows for place, rows in EVERYWHERE.items() if not re.search("spool|dead|experiments", place)
    }
    kept = world.rows(
        "SELECT DISTINCT context::text, payload::text FROM exp.events WHERE unit_id = %s ORDER BY 2", name
    )
    assert kept == [('{"policy_version_id": "v1"}', '{"reconstructed": true}'), ('{"policy_version_id": "v1"}', None)]
    untouched = [
        column
        for column in frames[hour_key(FIRST)].columns
        if column not in {"unit_id", "context", "payload", "session_id", "plan_id"}
    ]
    for key, frame in world.frames().items():
        mine = (pl.col("unit_type") == unit.unit_type) & (pl.col("unit_id") == name)
        assert {*frame.filter(mine)["context"]} <= {'{"policy_version_id": "v1"}'}
        assert {*frame.filter(mine)["payload"]} <= {'{"reconstructed": true}', None}
        assert frame.filter(mine)["session_id"].is_null().all()
        columns = [column for column in untouched if column in frame.columns]
        assert frame.select(columns).equals(frames[key].select(columns)), key
    # PostgreSQL and the archive agree, and nothing links the unit to its pseudonym any more.
    with world.connect() as connection:
        assert not any(hour.written for hour in archive_hours(connection, world.store, FIRST + DAY, FIRST + 2 * DAY))
    assert world.rows("SELECT pseudonym FROM exp.erased_units") == [(None,)]
    insert(world.connect(), [row(unit, FIRST + 2 * DAY, 9999)])
    assert not world.erase(unit, pseudonymise=True).left
    ((count,),) = world.rows("SELECT count(DISTINCT unit_id) FROM exp.events WHERE unit_id LIKE 'erased-%%'")
    assert count == 2, "a unit that returns gets a new pseudonym"


def test_only_files_that_contain_the_unit_are_rewritten(world: World) -> None:
    other = FIRST + DAY + 6 * HOUR
    lonely = Unit("user", "lonely")
    with world.connect() as connection:
        insert(connection, [row(lonely, other + 5 * HOUR, 5000)])
        archive_hours(connection, world.store, other, other + 6 * HOUR)
    before = world.files()
    assert not world.erase(lonely).left
    changed = {key for key, data in world.files().items() if before[key] != data}
    key = hour_key(other + 5 * HOUR)
    assert changed == {key, f"{key.rsplit('/', 2)[0]}/manifest.json"}


def test_late_events_of_other_units_are_archived(world: World) -> None:
    hour = FIRST + HOUR + 30 * (HOUR / 60)
    with world.connect() as connection:
        insert(connection, [row(LONGER, FIRST + DAY + HOUR, number) for number in range(6000, 6050)])
        insert(connection, [row(LONGER, hour, 6100)])
    assert not world.erase(USER).left
    ids = {
        str(event_id) for (event_id,) in world.rows("SELECT id FROM exp.events WHERE timestamp < %s", FIRST + 2 * DAY)
    }
    archived = {
        event_id for key, frame in world.frames().items() if key.startswith("events/") for event_id in frame["event_id"]
    }
    assert ids <= archived
    assert any(HISTORY.strftime("%Y-%m") in key for key in world.frames())


def test_a_unit_without_data_is_recorded_as_erased(world: World) -> None:
    before = world.files()
    nobody = Unit("household", "nobody: 100%")
    report = world.erase(nobody)
    assert (report.found, report.left) == ([], {})
    with world.connect() as connection:
        assert erased_units(connection).cover("household", "nobody: 100%", FIRST)
    assert world.files() == before


def test_erase_waits_for_a_running_writer_and_then_reports_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spools, "WAIT_SECONDS", 0.0)
    writer = SpoolWriter(world.platform.spool, 2**20)
    others = msgspec.json.encode(record(LONGER, 1))
    writer.append([msgspec.json.encode(record(USER, 1)), others])
    (path,) = writer.seal()
    with pytest.raises(ErasureError, match=r"1 spooled events of the unit are still in .*: a running API drops them"):
        list(spools.spooled_events(world.platform.spool, USER, change=True, wait_seconds=0))
    path.unlink()
    assert list(spools.spooled_events(world.platform.spool, USER, change=True)) == []
    writer.close()
    assert msgspec.json.encode(record(LONGER, 8001)) in world.spooled()


def leave(world: World, state: str) -> LeavingDay:
    """Leave the second day as a killed retention run would leave it."""
    day = FIRST.date() + timedelta(days=1)
    with world.connect() as connection, psycopg.connect(world.url) as reader:
        if state == "detached":
            return detach_day(connection, day)
        connection.execute(f"ALTER TABLE exp.events_{day:%Y%m%d} RENAME TO events_{day:%Y%m%d}_leaving")
        if state == "pending":
            reader.execute("SELECT count(*) FROM exp.events")
            connection.execute("SET lock_timeout = '300ms'")
            with pytest.raises(psycopg.errors.LockNotAvailable):
                detach_day(connection, day)
        (leaving,) = leaving_days(connection)
        assert (leaving.attached, leaving.pending) == (True, state == "pending")
        return leaving


def retain(world: World) -> list[bool]:
    with world.connect() as connection:
        return [
            fate.dropped for fate in apply_retention(connection, world.store, 10, FIRST.date() + timedelta(days=12))
        ]


def archived_of(world: World, unit_type: str) -> set[str]:
    return {
        name
        for key, frame in world.frames().items()
        if key.startswith("events/")
        for name in frame.filter(pl.col("unit_type") == unit_type)["unit_id"]
    }


@pytest.mark.parametrize("pseudonymise", [False, True], ids=["removed", "pseudonymised"])
@pytest.mark.parametrize("state", ["renamed", "pending", "detached"])
def test_erase_removes_the_unit_from_a_day_that_retention_is_dropping(
    world: World, state: str, pseudonymise: bool
) -> None:
    leave(world, state)
    assert world.places(USER) == EVERYWHERE
    report = world.erase(USER, pseudonymise=pseudonymise)
    assert not report.left and report.found[0].rows == 16
    # dbt no longer sees that day, and would rebuild its aggregates as empty.
    assert report.days == (0 if pseudonymise else 2)
    assert world.rows("SELECT count(*) FROM exp.erased_days WHERE day = %s", FIRST + DAY) == [(0,)]
    assert world.places(USER) == {}
    assert retain(world)[0]
    assert "1" not in archived_of(world, "user") and "12" in archived_of(world, "user")
    assert world.rows("SELECT count(*) FROM exp.events WHERE timestamp >= %s AND timestamp < %s", FIRST + DAY, FIRST + 2 * DAY) == [
        (0,)
    ]  # fmt: skip


def test_erase_waits_while_a_day_is_being_dropped(world: World) -> None:
    leaving = leave(world, "detached")
    with world.connect() as holder, world.connect() as watcher, ThreadPoolExecutor(1) as pool:
        with archive_lock(holder, [leaving.day]):
            erasing = pool.submit(world.erase, USER)
            deadline = time.monotonic() + 60
            while not watcher.execute(
                "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'advisory'"
            ).fetchone():
                assert not erasing.done() and time.monotonic() < deadline
                time.sleep(0.02)
            assert watcher.execute("SELECT 1 FROM exp.erased_units").fetchone() is None
            archive_hours(holder, world.store, FIRST + DAY, FIRST + 2 * DAY, leaving.table)
            with holder.transaction():
                holder.execute(psycopg.sql.SQL("DROP TABLE {}").format(leaving.table))
                record_dropped(holder, leaving.day)
        assert not erasing.result(120).left
    assert "1" not in archived_of(world, "user")


def test_a_damaged_segment_with_the_unit_is_reported(world: World) -> None:
    spool = world.platform.spool
    writer = SpoolWriter(spool, 2**20)
    writer.append([msgspec.json.encode(record(LONGER, 1))])
    writer.append([msgspec.json.encode(record(USER, 1))])
    (path,) = writer.seal()
    path.write_bytes(b"spoilt" + path.read_bytes()[6:])
    remove_segment(spool, read_segment(path))
    assert list(spool.glob("damaged/*")) and not path.exists()
    assert world.places(USER)["spool /spool"] == 3
    with pytest.raises(ErasureError, match=r"1 spooled events of the unit are still in .*/damaged/.*damaged segment"):
        list(spools.spooled_events(spool, USER, change=True))


def test_overrides_in_the_audit_log_and_the_configuration_are_reported(world: World) -> None:
    audit = '{"unit_type": "user", "overrides": {"1": "red"}}'
    world.rows(
        "INSERT INTO exp.audit_log (actor, action, subject, before, reason) VALUES ('a', 'b', 'c', %s, 'd') RETURNING 1",
        audit,
    )
    config = world.platform.config / "experiments.yml"
    config.write_text(config.read_text() + '    overrides: {"1": red, "12": red}\n')
    kept = {item.place: item.done for item in world.erase(USER).found if item.kept}
    assert kept == {
        "exp.audit_log, overrides": "kept: the log is append only",
        f"{config}:8, overrides of cards": "kept: remove it before the next lifecycle sync",
    }


def test_a_broken_archive_file_is_reported_and_the_rest_is_erased(world: World) -> None:
    broken = hour_key(FIRST + 5 * HOUR)
    whole = world.store.read(broken)
    world.store.write(broken, b"no Parquet")
    report = world.erase(USER, pseudonymise=True)
    assert list(report.left) == ["event archive"]
    assert list(world.places(USER)) == []
    ((pseudonym,),) = world.rows("SELECT pseudonym FROM exp.erased_units")
    assert pseudonym is not None
    world.store.write(broken, whole)
    assert not world.erase(USER, pseudonymise=True).left
    names = {
        name for frame in world.frames().values() for name in frame.filter(pl.col("unit_type") == "user")["unit_id"]
    }
    assert names == {"12", f"erased-{pseudonym}"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("user", "'user' is not a unit"),
        ("person:1", r"household, session, user.*, a colon and its id"),
        ("user:", "it has 0 characters"),
        ("user:" + "x" * 256, "it has 256 characters"),
        ("user:a\0b", "A unit can't have this id"),
        ("user:\udcff", "A unit can't have this id"),
    ],
)
def test_invalid_units_are_refused(text: str, message: str) -> None:
    with pytest.raises(ErasureError, match=message):
        Unit.parse(text)


def test_an_id_may_contain_colons_and_spaces() -> None:
    assert Unit.parse("user:a:b ") == Unit("user", "a:b ")
