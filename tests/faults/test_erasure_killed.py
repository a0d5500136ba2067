"""An erasure that is killed again and again, each time a bit later: the last run ends in the same state as one without kills."""

import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from erasure_support import UNITS, World

from eventlog.archive.files import archived_keys
from eventlog.archive.manifest import folder_of, read_manifest

pytest_plugins = ["erasure_worlds"]

ROOT = Path(__file__).resolve().parents[2]
USER = UNITS[0]
DIES_BEFORE = (
    # module, function, the call of it that is killed, where that is
    ("orchestration.erasure.archive", "wait_for_archive", 1, "after PostgreSQL"),
    ("orchestration.erasure.spools", "rewrite_segment", 1, "in the spool"),
    ("orchestration.erasure.spools", "delete_dead_letters", 1, "before the dead letters"),
    ("orchestration.erasure.archive", "rewrite_period", 3, "between two hours of the archive"),
    ("eventlog.archive.row_removal", "record_files", 4, "between an hour's file and its manifest"),
    ("eventlog.archive.manifest", "_write", 2, "between an hour's row and its manifest"),
    ("orchestration.erasure.archive", "record_late", 2, "before an hour's file"),
    ("orchestration.erasure.archive", "_rewritten_frame", 2, "between two cleaned days"),
    ("orchestration.erasure.database", "forget_pseudonym", 1, "before the pseudonym is forgotten"),
)
SCRIPT = """
import importlib, os, signal, sys
from pathlib import Path
import psycopg
from erasure_support import UNITS, platform_in, quiet
from orchestration.erasure import erase as module

place, name, last, url, folder, pseudonymise = sys.argv[1:]
target = importlib.import_module(place)
original, calls = getattr(target, name), []

def dying(*arguments, **options):
    calls.append(1)
    if len(calls) == int(last):
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments, **options)

setattr(target, name, dying)
with psycopg.connect(url, autocommit=True) as connection:
    module.erase(
        connection, platform_in(Path(folder)), UNITS[0], pseudonymise=pseudonymise == "yes", files=False, on_progress=quiet, by="a test"
    )
"""


def killed(world: World, place: str, name: str, last: int, pseudonymise: bool) -> None:
    arguments = [place, name, str(last), world.url, str(world.folder), "yes" if pseudonymise else "no"]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), *arguments],
        cwd=ROOT, env={"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "PATH": "/usr/bin:/bin"}, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, (name, done.stderr)


def everything(world: World, name: str | None) -> dict[str, Any]:
    """All rows and files of events, with the pseudonym replaced, which is random in each world."""
    columns = "id, unit_type, replace(unit_id, %s, 'X') AS unit, experiments, context, metrics, payload, timestamp, created_at, flags"
    tables = {
        "events": f"SELECT e::text FROM (SELECT {columns} FROM exp.events) e",
        "assignments": "SELECT id::text || unit_type || replace(unit_id, %s, 'X') FROM exp.assignments",
        "overridden": "SELECT experiment_id::text || replace(unit_id, %s, 'X') FROM exp.overridden_units",
        "overrides": "SELECT overrides::text || %s FROM exp.experiments",
        "letters": "SELECT d::text || left(%s, 0) FROM exp.dead_letters d",
        "hours": "SELECT hour::text || database_rows || '/' || file_rows || left(%s, 0) FROM exp.archived_hours",
    }
    picture: dict[str, Any] = {table: sorted(world.rows(query, name or "no name")) for table, query in tables.items()}
    picture["overrides"] = [row[0].replace(name or "no name", "") for row in picture["overrides"]]
    for key, frame in world.frames().items():
        picture[key] = frame.with_columns(pl.col("unit_id").str.replace(name or "no name", "X", literal=True)).rows()
    return {**picture, "spool": world.spooled()}


def pseudonym(world: World) -> str | None:
    names = {
        name
        for frame in world.frames().values()
        for name in frame.filter(pl.col("unit_id").str.starts_with("erased-"))["unit_id"]
    }
    assert len(names) <= 1, "a kill must not lead to two pseudonyms"
    return next(iter(names), None)


def require_consistent_archive(world: World) -> None:
    """Every file matches its row and its manifest: it can be restored, and nothing has to be archived again."""
    keys = archived_keys(world.store)
    noted = {file.key: file.sha256 for key in keys for file in read_manifest(world.store, folder_of(key))}
    rows = dict(world.rows("SELECT key, sha256 FROM exp.archived_hours WHERE NOT late"))
    files = {key: facts.sha256 for key in keys if (facts := world.store.facts(key))}
    assert len(files) > 40 and files == noted == rows


@pytest.mark.parametrize("pseudonymise", [False, True], ids=["removed", "pseudonymised"])
def test_an_erasure_killed_anywhere_is_completed_by_the_next_run(
    make_world: Callable[[], World], pseudonymise: bool
) -> None:
    world, never_killed = make_world(), make_world()
    others = world.of_others(USER)
    assert not never_killed.erase(USER, pseudonymise=pseudonymise).left
    for place, name, last, _ in DIES_BEFORE:
        killed(world, place, name, last, pseudonymise)
        assert pseudonymise or world.of_others(USER) == others
    assert not world.erase(USER, pseudonymise=pseudonymise).left
    assert everything(world, pseudonym(world)) == everything(never_killed, pseudonym(never_killed))
    assert world.places(USER) == {}
    require_consistent_archive(world)
    counted = world.rows(
        "SELECT sum((after -> 'rows' ->> 'exp.events')::int) FROM exp.audit_log WHERE action = 'unit.erasing'"
    )
    assert counted == [(16,)], "the log shows everything that was erased, no matter which run did it"
