"""`lifecycle erase-unit` as a person runs it: what it lists, asks, does and says, and its exit codes."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from archive_support import FIRST
from demo_support import LIFECYCLE
from erasure_support import UNITS, World

from eventlog.archive.files import hour_key

pytest_plugins = ["erasure_worlds"]

USER, _, _, HOSTILE = UNITS


@pytest.fixture
def lifecycle(world: World, home: Path) -> Any:
    environment = {
        **os.environ,
        "DATABASE_URL": world.url,
        "MLFLOW_TRACKING_URI": world.platform.tracking_uri,
        "LIFECYCLE_STORE": world.store.root,
        "LIFECYCLE_DATASETS": world.platform.datasets.root,
        "LIFECYCLE_SPOOL_DIR": str(world.platform.spool),
        "LIFECYCLE_CONFIG_DIR": str(world.platform.config),
        "LIFECYCLE_FIRST_DAY": str(FIRST.date()),
        "USER": "ann",
    }

    def run(*arguments: str, answer: str = "") -> subprocess.CompletedProcess[str]:
        command = [str(LIFECYCLE), "erase-unit", *arguments]
        return subprocess.run(
            command, env=environment, input=answer, capture_output=True, text=True, check=False, timeout=120
        )

    return run


def test_it_lists_asks_erases_and_says_what_is_to_know(lifecycle: Any, world: World) -> None:
    named = f"{HOSTILE.unit_type}:{HOSTILE.unit_id}"
    before, files = world.rows("SELECT e::text FROM exp.events e ORDER BY 1"), world.files()
    listed = lifecycle(named, "--check", "--pseudonymise")
    assert listed.returncode == 0, listed.stderr
    for place, rows, done in (
        ("exp.events", 16, "pseudonymised"),
        ("exp.experiments, overrides", 1, "removed"),
        (f"{world.store.root}/events, 31 files", 31, "pseudonymised"),
    ):
        line = next(line for line in listed.stdout.splitlines() if f" {place} " in line)
        assert line.split("│")[2].strip() == str(rows) and line.split("│")[3].strip() == done
    assert "would be done" in listed.stdout
    refused = lifecycle(named, answer="n\n")
    assert refused.returncode == 1
    table, asked, _ = refused.stdout.partition(f"Remove {named} for good? [y/N]: ")
    assert asked and "would be done" in table and " exp.events " in table
    assert world.rows("SELECT e::text FROM exp.events e ORDER BY 1") == before and world.files() == files
    assert world.rows("SELECT count(*) FROM exp.erased_units") == [(0,)]

    done = lifecycle(named, answer="y\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Aggregates to be made anew: 3 days" in done.stdout
    assert "may still answer from its memory, or Redis, for up to 3,600 s" in done.stdout
    assert world.places(HOSTILE) == {}
    assert world.rows("SELECT DISTINCT actor FROM exp.audit_log") == [("lifecycle erase-unit by ann",)]
    again = lifecycle(named, "--yes")
    assert (again.returncode, again.stdout) == (0, f"{named} was found nowhere. It is noted as erased all the same.\n")


def test_what_can_not_be_reached_is_a_sentence_and_the_next_run_completes_it(lifecycle: Any, world: World) -> None:
    broken = hour_key(FIRST)
    whole = world.store.read(broken)
    world.store.write(broken, b"no Parquet")
    done = lifecycle("user:1", "--yes", "--datasets")
    assert done.returncode == 1 and "exp.events" in done.stdout
    assert done.stderr.startswith(
        f"lifecycle: event archive: {world.store.root}/{broken} can't be read ("
    ) and done.stderr.endswith("Run the same again to complete it.\n")
    assert len(done.stderr.splitlines()) == 2
    world.store.write(broken, whole)
    assert lifecycle("user:1", "--yes").returncode == 0
    assert world.places(USER) == {}


def test_what_is_no_unit_is_one_sentence(lifecycle: Any) -> None:
    refused = lifecycle("person:1", "--yes")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == (
        "lifecycle: 'person:1' names no unit: write its type (household, session, user), a colon and its id, such as user:123.\n"
    )
