"""A process is killed between writing and publishing: the old data stays, nothing incomplete shows, and the next run succeeds."""

import os
import signal
import subprocess
import sys
import textwrap
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from assets.datasets.build import versions
from eventlog.archive.archiving import archive_hours
from eventlog.archive.files import archived_keys, hour_key, read_archive
from eventlog.archive.manifest import day_manifest
from eventlog.partitions import ensure_event_partitions
from foundation.object_store import STAGING, FileFacts, ObjectStore, StoreError

ROOT = Path(__file__).resolve().parents[2]


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a Python script in a separate process."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def run_killed(script: str, *arguments: str) -> None:
    """Run a script that must kill itself."""
    process = run(script, *arguments)
    assert process.returncode == -signal.SIGKILL, process.stderr


def left_in_staging(folder: Path) -> int:
    return len(list((folder / STAGING).iterdir()))


def test_old_object_stays_when_a_write_is_killed(tmp_path: Path) -> None:
    store = ObjectStore(str(tmp_path))
    store.write("a/b", b"old")
    run_killed(
        """
        import os, signal, sys
        from foundation.object_store import ObjectStore
        ObjectStore(sys.argv[1]).write("a/b", b"new" * 1000, verify=lambda stored: os.kill(os.getpid(), signal.SIGKILL))
        """,
        str(tmp_path),
    )
    assert left_in_staging(tmp_path) == 1
    assert store.list() == ["a/b"]
    assert store.read("a/b") == b"old"
    store.write("a/b", b"newer")
    assert store.sweep(older_than_s=-1) == 1
    assert store.read("a/b") == b"newer"


def test_next_archive_run_succeeds_when_a_run_was_killed(database_url: str, tmp_path: Path) -> None:
    first = (datetime.now(UTC) - timedelta(days=3)).replace(hour=0, minute=0, second=0, microsecond=0)
    with psycopg.connect(database_url) as connection:
        ensure_event_partitions(connection, first.date())
        connection.execute(
            """
            INSERT INTO exp.events (id, event_type, unit_type, unit_id, experiments, context, metrics, "timestamp")
            SELECT md5(n::text)::uuid, 'exposure', 'user', 'u', '[]', '{}', '{}', %s + n * interval '10 minutes'
            FROM generate_series(0, 143) n
            """,
            [first],
        )
        connection.commit()
        run_killed(
            """
            import os, signal, sys
            from datetime import datetime, timedelta
            import psycopg
            from eventlog.archive import archiving as archive
            from foundation.object_store import ObjectStore

            class Fragile(ObjectStore):
                def _publish(self, staged, key, data, exclusive):
                    if key.endswith("/13/events.parquet"):
                        os.kill(os.getpid(), signal.SIGKILL)
                    super()._publish(staged, key, data, exclusive)

            first = datetime.fromisoformat(sys.argv[3])
            with psycopg.connect(sys.argv[1]) as connection:
                archive.archive_hours(connection, Fragile(sys.argv[2]), first, first + timedelta(hours=24))
            """,
            database_url, str(tmp_path), first.isoformat(),
        )  # fmt: skip
        store = ObjectStore(str(tmp_path))
        shown = archived_keys(store)
        assert hour_key(first + timedelta(hours=13)) not in shown
        assert all(read_archive(store, key).num_rows == 6 for key in shown)
        assert day_manifest(store, first.date()) == []
        assert left_in_staging(tmp_path) > 0
        hours = archive_hours(connection, store, first, first + timedelta(hours=24))
    assert [hour.rows for hour in hours] == [6] * 24
    assert len(archived_keys(store)) == 24
    manifest = day_manifest(store, first.date())
    assert [hour.file_rows for hour in manifest] == [6] * 24
    assert all(store.facts(hour.key) == FileFacts(hour.bytes, hour.sha256) for hour in manifest)


def test_hour_stays_as_it_was_when_archiving_late_events_is_killed(database_url: str, tmp_path: Path) -> None:
    first = (datetime.now(UTC) - timedelta(days=3)).replace(hour=0, minute=0, second=0, microsecond=0)
    add = """
    INSERT INTO exp.events (event_type, unit_type, unit_id, "timestamp")
    SELECT 'exposure', 'user', 'u', %s + n * interval '1 second' FROM generate_series(1, %s) n
    """
    store = ObjectStore(str(tmp_path))
    with psycopg.connect(database_url) as connection:
        ensure_event_partitions(connection, first.date())
        connection.execute(add, (first, 100))
        connection.commit()
        archive_hours(connection, store, first, first + timedelta(hours=1))
        (before,) = day_manifest(store, first.date())
        connection.execute(add, (first + timedelta(minutes=30), 5))
        connection.commit()
        run_killed(
            """
            import os, signal, sys
            from datetime import datetime, timedelta
            import psycopg
            from eventlog.archive import archiving as archive
            from eventlog.archive.period_file import PeriodFile
            from foundation.object_store import ObjectStore

            PeriodFile.publish = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
            first = datetime.fromisoformat(sys.argv[3])
            with psycopg.connect(sys.argv[1]) as connection:
                archive.archive_hours(connection, ObjectStore(sys.argv[2]), first, first + timedelta(hours=1))
            """,
            database_url, str(tmp_path), first.isoformat(),
        )  # fmt: skip
        assert store.facts(before.key) == FileFacts(before.bytes, before.sha256)
        assert day_manifest(store, first.date()) == [before]
        # The killed run's lock ended with its connection.
        (hour,) = archive_hours(connection, store, first, first + timedelta(hours=1))
    assert (hour.rows, hour.written) == (105, True)


BUILD = """
import os, signal, sys
from datetime import date
from assets.datasets.build import build_dataset
from foundation.object_store import ObjectStore
from planner.catalogue import sample_catalogue
from planner.meal_planner import MealPlanner
from product.protocol import RowWindow
from planner.rows import planner_rows
from planner.sessions import events_frame
from planner.simulator import simulate

class Fragile(ObjectStore):
    def _publish(self, staged, key, data, exclusive):
        if key.endswith(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        super()._publish(staged, key, data, exclusive)

sample = simulate(sample_catalogue(), seed=2, households=8, weeks=2, end=date(2025, 6, 1))
window = RowWindow(sample.start, sample.end, 28)
rows = planner_rows(events_frame(sample.events), sample.tables, window)
print(build_dataset(rows, store=Fragile(sys.argv[1]), product=MealPlanner(), window=window).digest)
"""


@pytest.mark.parametrize("dies_at", ["dataset_summary.md", "training.parquet"])
def test_dataset_is_not_a_version_when_its_build_is_killed(tmp_path: Path, dies_at: str) -> None:
    complete = run(BUILD, str(tmp_path / "complete"), "never")
    assert complete.returncode == 0, complete.stderr
    folder = tmp_path / "datasets"
    script = BUILD.replace("key.endswith(sys.argv[2])", f"key.endswith({dies_at!r}) and sys.argv[2] == 'die'")
    run_killed(script, str(folder), "die")
    assert versions(ObjectStore(str(folder)), "planner") == []
    again = run(script, str(folder), "live")
    assert again.stdout == complete.stdout, again.stderr
    name = "planner/2025-06-01"
    for file in ("training.parquet", "schema.json", "dataset_summary.md"):
        assert (folder / name / file).read_bytes() == (tmp_path / "complete" / name / file).read_bytes()


def test_write_fails_with_a_message_and_leaves_nothing_when_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ObjectStore(str(tmp_path))
    store.write("a", b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="the disk is full"):
        store.write("a", b"new")
    monkeypatch.undo()
    assert (store.read("a"), left_in_staging(tmp_path)) == (b"old", 0)
