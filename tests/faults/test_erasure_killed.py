"""An erasure that is killed, again and again, each time a bit later: run once more it ends where one that was never killed ends."""

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
    # module, function, which of its calls is the last
    ("orchestration.erasure.archive", "wait_for_archive", 1, "PostgreSQL is done"),
    ("orchestration.erasure.spools", "rewrite", 1, "in the spool"),
    ("orchestration.erasure.spools", "drop", 1, "before the dead letters"),
    ("orchestration.erasure.archive", "rewrite_period", 3, "between two hours of the archive"),
    ("eventlog.archive.rewrite", "record_files", 4, "between an hour's file and its manifest"),
    ("eventlog.archive.manifest", "_write", 2, "between an hour's row and its manifest"),
    ("orchestration.erasure.archive", "record_late", 2, "before an hour's file"),
    ("orchestration.erasure.archive", "_rewritten_frame", 2, "between two cleaned days"),
    ("orchestration.erasure.database", "forget_pseudonym", 1, "nothing is left but to say so"),
)
SCRIPT = """
import importlib, os, signal, sys
from pathlib import Path
import psycopg
from erasure_support import UNITS, platform_in, quiet
from orchestration.erasure import erase as module

place, name, last, url, folder, pseudonymise = sys.argv[1:]
target = importlib.import_module(place)
whole, calls = getattr(target, name), []

def dying(*arguments, **options):
    calls.append(1)
    if len(calls) == int(last):
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(*arguments, **options)

setattr(target, name, dying)
with psycopg.connect(url, autocommit=True) as connection:
    module.erase(
        connection, platform_in(Path(folder)), UNITS[0], pseudonymise=pseudonymise == "yes", files=False, told=quiet, by="a test"
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
    """All rows and files of events, the pseudonym replaced, as that is drawn anew in each world."""
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
    assert len(names) <= 1, "a kill must not make two of one"
    return next(iter(names), None)


def require_consistent_archive(world: World) -> None:
    """Every file is the one that its row and its manifest tell of: it can be restored, and nothing is to be archived again."""
    keys = archived_keys(world.store)
    noted = {file.key: file.sha256 for key in keys for file in read_manifest(world.store, folder_of(key))}
    rows = dict(world.rows("SELECT key, sha256 FROM exp.archived_hours WHERE NOT late"))
    files = {key: facts.sha256 for key in keys if (facts := world.store.facts(key))}
    assert len(files) > 40 and files == noted == rows


@pytest.mark.parametrize("pseudonymise", [False, True], ids=["removed", "pseudonymised"])
def test_killed_anywhere_and_run_again_it_ends_as_if_never_killed(
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
    assert counted == [(16,)], "the log tells of all that was done, whichever run did it"
