"""`lifecycle erase-unit` as a person runs it: its list, question, result, messages and exit codes."""

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


def test_erase_unit_lists_asks_and_erases(lifecycle: Any, world: World) -> None:
    name = f"{HOSTILE.unit_type}:{HOSTILE.unit_id}"
    before, files = world.rows("SELECT e::text FROM exp.events e ORDER BY 1"), world.files()
    listed = lifecycle(name, "--check", "--pseudonymise")
    assert listed.returncode == 0, listed.stderr
    for place, rows, done in (
        ("exp.events", 16, "pseudonymised"),
        ("exp.experiments, overrides", 1, "removed"),
        (f"{world.store.root}/events, 31 files", 31, "pseudonymised"),
    ):
        line = next(line for line in listed.stdout.splitlines() if f" {place} " in line)
        assert line.split("│")[2].strip() == str(rows) and line.split("│")[3].strip() == done
    assert "would be done" in listed.stdout
    refused = lifecycle(name, answer="n\n")
    assert refused.returncode == 1
    table, asked, _ = refused.stdout.partition(f"Remove {name} for good? [y/N]: ")
    assert asked and "would be done" in table and " exp.events " in table
    assert world.rows("SELECT e::text FROM exp.events e ORDER BY 1") == before and world.files() == files
    assert world.rows("SELECT count(*) FROM exp.erased_units") == [(0,)]

    done = lifecycle(name, answer="y\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Aggregates to rebuild: 3 days" in done.stdout
    assert "may still answer from its memory or from Redis for up to 3,600 s" in done.stdout
    assert world.places(HOSTILE) == {}
    assert world.rows("SELECT DISTINCT actor FROM exp.audit_log") == [("lifecycle erase-unit by ann",)]
    again = lifecycle(name, "--yes")
    assert (again.returncode, again.stdout) == (
        0,
        f"{name} was found nowhere. It is recorded as erased all the same.\n",
    )


def test_a_broken_archive_file_is_reported_and_the_next_run_completes_the_erasure(lifecycle: Any, world: World) -> None:
    broken = hour_key(FIRST)
    whole = world.store.read(broken)
    world.store.write(broken, b"no Parquet")
    done = lifecycle("user:1", "--yes", "--datasets")
    assert done.returncode == 1 and "exp.events" in done.stdout
    assert done.stderr.startswith(
        f"lifecycle: event archive: {world.store.root}/{broken} can't be read ("
    ) and done.stderr.endswith("Run the same command again to complete it.\n")
    assert len(done.stderr.splitlines()) == 2
    world.store.write(broken, whole)
    assert lifecycle("user:1", "--yes").returncode == 0
    assert world.places(USER) == {}


def test_an_unknown_unit_type_is_a_one_line_error(lifecycle: Any) -> None:
    refused = lifecycle("person:1", "--yes")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == (
        "lifecycle: 'person:1' is not a unit: write its type (household, session, user), a colon and its id, such as user:123.\n"
    )
