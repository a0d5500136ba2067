"""`lifecycle experiment …` and `lifecycle keys rotate` as a person runs them: output, errors, and what the next sync will do."""

import os
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest
from ground_support import BY, config_of, every_model_exists, next_planner_version, sync_project_config

from experimentation.config.files import read_config
from experimentation.config.outlook import sync_outlook
from experimentation.config.sync import sync
from experimentation.promotion.candidates import open_candidate_run
from experimentation.runs.lifecycle import (
    complete_run,
    pause_run,
    ramp_run,
    resume_run,
    runs_of,
    start_run,
)
from experimentation.runs.run import ExperimentationError
from experimentation.runs.store import epochs_of
from foundation.migrate import schema_state
from foundation.yaml_files import ConfigError

FILE = """\
experiments:
  - name: cards
    unit_type: user
    status: active
    targeting: context.tags.exists(t, t == "[new]")
    variants:
      - {name: control, allocation: 0.5, config: {shown: [bold]}}
      - {name: with_cards, allocation: 0.5}
"""


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection to a database of this test's own."""
    with psycopg.connect(database_url, autocommit=True) as opened:
        yield opened


@pytest.fixture
def lifecycle(home: Path, tmp_path: Path, database_url: str) -> Any:
    """Runs a command on that database, with the configuration files of `tmp_path`."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "orchestration.cli", *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True,
            env={**os.environ, "DATABASE_URL": database_url, "LIFECYCLE_CONFIG_DIR": str(tmp_path), "USER": "ann"},
            check=False, timeout=120,
        )  # fmt: skip

    return run


def apply(connection: psycopg.Connection[Any], folder: Path, text: str = FILE) -> None:
    sync(connection, config_of(folder, text), model_stage=every_model_exists, by="test")


def test_commands_take_a_run_through_all_its_states(
    lifecycle: Any, connection: psycopg.Connection[Any], tmp_path: Path
) -> None:
    apply(connection, tmp_path, FILE.replace("active", "draft"))
    (tmp_path / "experiments.yml").write_text(FILE)
    messages = []
    for words in (["start"], ["pause"], ["resume"], ["complete", "--ship", "with_cards"]):
        done = lifecycle("experiment", words[0], "cards", *words[1:], "--reason", f"To {words[0]} [it].")
        assert done.returncode == 0 and done.stderr == "", done.stderr
        messages.append(done.stdout.replace(str(tmp_path), "config"))
    assert messages == [
        "cards run 1 is active: units are assigned from now on.\n",
        "cards run 1 is paused: units that have a variant keep it, new ones get none. config/experiments.yml:2 says active, so the next "
        "`lifecycle sync` makes it active: change the file too.\n",
        "cards run 1 is active again: new units are assigned, too.\n",
        "cards run 1 is completed: every unit gets with_cards from now on. config/experiments.yml:2 says active, but `lifecycle sync` "
        "leaves a completed run as it is.\n",
    ]
    (run,) = runs_of(connection, "cards")
    assert (run.status, run.shipped and run.shipped.name) == ("completed", "with_cards")
    rows = connection.execute("SELECT action, actor, reason FROM exp.audit_log ORDER BY id DESC LIMIT 4").fetchall()
    assert rows == [
        (f"experiment.{did}", "lifecycle experiment by ann", f"To {word} [it].")
        for word, did in (
            ("complete", "completed"), ("resume", "resumed"), ("pause", "paused"), ("start", "started"),
        )
    ]  # fmt: skip

    shown = lifecycle("experiment", "show", "cards").stdout
    for part in (
        "completed, shipped with_cards; user; made by the file; no window; targeting context.tags.exists(t, t == \"[new]\")",
        '{"shown": ["bold"]}',
        "To complete [it].",
        "units enrolled",
        "control 0.5000, with_cards 0.5000",
    ):  # fmt: skip
        assert part in shown, f"{part} is not in\n{shown}"
    assert lifecycle("experiment", "list").stdout == (
        "cards run 1: completed, shipped with_cards (user): control 0.5000, with_cards 0.5000; "
        'targeting context.tags.exists(t, t == "[new]")\n'
    )


def test_a_refused_command_is_a_one_line_error(
    lifecycle: Any, connection: psycopg.Connection[Any], tmp_path: Path
) -> None:
    assert lifecycle("experiment", "list").stdout == (
        f"There are no experiments yet: write one into {tmp_path}/experiments.yml and run `lifecycle sync`.\n"
    )
    apply(connection, tmp_path)
    for words, sentence in (
        (["resume", "cards"], "cards run 1 is active already."),
        (["pause", "nobody"], "No experiment is called nobody: `lifecycle experiment list` shows them."),
        (
            ["complete", "cards", "--ship", "red"],
            "cards run 1 has no variant red to ship: it has control, with_cards.",
        ),
    ):
        refused = lifecycle("experiment", *words, "--reason", "Why not.")
        assert (refused.returncode, refused.stdout, refused.stderr) == (1, "", f"lifecycle: {sentence}\n")
    refused = lifecycle("experiment", "show", "nobody")
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert [lifecycle("experiment", "pause", "cards", *words).returncode for words in ([], ["--reason", " "])] == [2, 2]
    assert runs_of(connection, "cards")[0].status == "active"


def test_pause_works_when_the_configuration_files_cannot_be_read(
    lifecycle: Any, connection: psycopg.Connection[Any], tmp_path: Path
) -> None:
    apply(connection, tmp_path)
    (tmp_path / "experiments.yml").write_text("experiments: 3\n")
    done = lifecycle("experiment", "pause", "cards", "--reason", "At once.")
    assert done.returncode == 0 and done.stdout.startswith("cards run 1 is paused: ")
    assert "so the next `lifecycle sync` changes nothing: " in done.stdout and "must be a list" in done.stdout
    assert runs_of(connection, "cards")[0].status == "paused"


def test_show_names_policy_versions_and_enrolled_units(lifecycle: Any, connection: psycopg.Connection[Any]) -> None:
    sync_project_config(connection)
    version = next_planner_version(connection)
    run = open_candidate_run(
        connection,
        experiment_name="weekly_planner",
        policy_version_id=version.id,
        treatment_name="candidate_v2",
        change=BY,
    ).run
    connection.execute(
        "INSERT INTO exp.assignments (experiment_id, unit_type, unit_id, variant_id, epoch, propensity) "
        "SELECT %s, 'household', 'h' || g, %s, 1, 0.1 FROM generate_series(1, 7) g",
        (run.id, run.variant("candidate_v2").id),
    )
    lines = lifecycle("experiment", "show", "weekly_planner").stdout.splitlines()
    (row,) = [line for line in lines if "candidate_v2" in line and "treatment" in line]
    assert [cell.strip() for cell in row.strip("│").split("│")] == [
        "candidate_v2", "treatment", "0.1000", "planner_policy@2", "", "7",
    ]  # fmt: skip
    assert [line.partition(":")[0] for line in lines if line.startswith("weekly_planner run")] == [
        "weekly_planner run 1",
        "weekly_planner run 2",
    ]


@pytest.mark.parametrize("says", ["draft", "active", "paused", "completed"])
@pytest.mark.parametrize("steps", [[start_run], [start_run, pause_run], [start_run, pause_run, resume_run]])
def test_outlook_predicts_the_next_sync(
    connection: psycopg.Connection[Any], tmp_path: Path, says: str, steps: list[Any]
) -> None:
    apply(connection, tmp_path, FILE.replace("active", "draft"))
    run = runs_of(connection, "cards")[0]
    for step in steps:
        run = step(connection, run.id, change=BY)
    files = config_of(tmp_path, FILE.replace("active", says))
    before = connection.execute("SELECT count(*) FROM exp.audit_log").fetchone()
    outlook = sync_outlook(connection, files, "cards")
    assert connection.execute("SELECT count(*) FROM exp.audit_log").fetchone() == before
    place = f"{tmp_path}/experiments.yml:2"
    try:
        sync(connection, files, model_stage=every_model_exists, by="test")
    except ConfigError as error:
        assert says == "draft" and outlook == f"The next `lifecycle sync` refuses the files: {error}"
        return
    after = runs_of(connection, "cards")[0].status
    assert says != "draft" and after == says
    expected = f"{place} says {says}, so the next `lifecycle sync` makes it {after}: change the file too."
    assert outlook == (None if after == run.status else expected)


def test_outlook_is_empty_when_the_files_do_not_control_the_run(
    connection: psycopg.Connection[Any], tmp_path: Path
) -> None:
    apply(connection, tmp_path)
    run = pause_run(connection, runs_of(connection, "cards")[0].id, change=BY)
    assert sync_outlook(connection, config_of(tmp_path), "cards") is None
    connection.execute("UPDATE exp.experiments SET made_by = 'promotion'")
    assert sync_outlook(connection, config_of(tmp_path, FILE), "cards") is None
    complete_run(connection, run.id, change=BY)
    assert sync_outlook(connection, read_config(tmp_path), "cards") is None


def test_a_key_is_rotated_and_listed(lifecycle: Any) -> None:
    old = lifecycle("keys", "make", "shop").stdout.strip()
    rotated = lifecycle("keys", "rotate", "shop", "--grace-minutes", "90")
    assert rotated.returncode == 0 and rotated.stdout.count("\n") == 1, "the key stands alone on stdout"
    new = rotated.stdout.strip()
    assert new != old and new.startswith(old.rpartition("_")[0])
    until = rotated.stderr.partition("the old one works until ")[2].partition(" UTC")[0]
    listed = lifecycle("keys", "list").stdout
    assert until and f"{until} UTC" in listed and new not in listed

    at_once = lifecycle("keys", "rotate", "shop")
    assert "the old one no longer works" in at_once.stderr
    assert f"{until} UTC" not in lifecycle("keys", "list").stdout
    refused = lifecycle("keys", "rotate", "shop", "--grace-minutes", "10081")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == "lifecycle: --grace-minutes is 10081: give 0 to 10080 (a week).\n"
    unknown = lifecycle("keys", "rotate", "shops")
    assert unknown.returncode == 1 and unknown.stderr.count("\n") == 1 and "no API key named shops" in unknown.stderr


GROWS = """\
experiments:
  - name: grows
    unit_type: user
    status: active
    layer: {name: page, from: 0, to: 5000}
    start_at: 2026-01-05T00:00:00Z
    variants:
      - {name: control, allocation: 0.1}
      - {name: remainder, allocation: 0.8}
      - {name: late, allocation: 0.1}
layers:
  - name: page
"""


def test_ramp_changes_a_split_with_a_remainder_and_sync_accepts_the_updated_file(
    lifecycle: Any, connection: psycopg.Connection[Any], tmp_path: Path
) -> None:
    apply(connection, tmp_path, GROWS)
    done = lifecycle("experiment", "ramp", "grows", "--to", "0.25", "--reason", "It is [good].")
    assert done.returncode == 0, done.stderr
    assert done.stdout.replace(str(tmp_path), "config") == (
        "grows run 1 is ramped: control 0.2500, remainder 0.5000, late 0.2500; write these allocations into experiments.yml. "
        "The next `lifecycle sync` refuses the files: config/experiments.yml:8: control of grows run 1 has 0.2500 while it is active, "
        "not 0.1000: a running experiment's arms grow by `lifecycle experiment ramp grows --to SHARE --reason TEXT`, and the file says so "
        "afterwards.\n"
    )
    (run,) = runs_of(connection, "grows")
    epochs = [epoch.allocations for epoch in epochs_of(connection, run.id)]
    ids = {variant.name: str(variant.id) for variant in run.variants}
    assert epochs == [
        {ids["control"]: "0.1000", ids["remainder"]: "0.8000", ids["late"]: "0.1000"},
        {ids["control"]: "0.2500", ids["remainder"]: "0.5000", ids["late"]: "0.2500"},
    ]
    audit = connection.execute(
        "SELECT action, reason, before -> 'allocations' ->> 'late' FROM exp.audit_log ORDER BY id DESC"
    )
    assert audit.fetchone() == ("experiment.ramped", "It is [good].", "0.1000")
    text = GROWS.replace("0.1}", "0.25}").replace("0.8", "0.5")
    assert sync(connection, config_of(tmp_path, text), model_stage=every_model_exists, by="test").changes == ()
    assert lifecycle("experiment", "list").stdout == (
        "grows run 1: active (user): control 0.2500, remainder 0.5000, late 0.2500; layer page 0–5000; "
        "from 2026-01-05 00:00 UTC to its end\n"
    )


def test_a_refused_ramp_changes_nothing(lifecycle: Any, connection: psycopg.Connection[Any], tmp_path: Path) -> None:
    apply(connection, tmp_path, GROWS.replace("active", "draft"))
    draft = runs_of(connection, "grows")[0]
    quarter = Decimal("0.25")
    with pytest.raises(ExperimentationError, match="grows run 1 is draft: only a running experiment is ramped"):
        ramp_run(connection, draft.id, quarter, change=BY)
    start_run(connection, draft.id, change=BY)
    ramp_run(connection, pause_run(connection, draft.id, change=BY).id, quarter, change=BY)
    before = runs_of(connection, "grows")[0]
    for to, why in (
        ("0.2", "arms only grow"),
        ("0.25", "the arms have that share already"),
        ("0.51", "1.0200 of the units"),
        ("2", "between"),
    ):
        refused = lifecycle("experiment", "ramp", "grows", "--to", to, "--reason", "Why not.")
        assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (1, "", 1) and why in refused.stderr
    assert runs_of(connection, "grows")[0] == before and len(epochs_of(connection, draft.id)) == 2
    connection.execute("UPDATE exp.experiments SET made_by = 'promotion'")
    with pytest.raises(
        ExperimentationError,
        match="grows run 1 belongs to promotion",
    ):
        ramp_run(connection, draft.id, Decimal("0.3"), change=BY)
    apply(connection, tmp_path)
    with pytest.raises(
        ExperimentationError, match=r"cards run 1 has no remainder, so .*give the next experiment a remainder"
    ):
        ramp_run(connection, runs_of(connection, "cards")[0].id, quarter, change=BY)


@pytest.mark.parametrize("state", ["missing", "behind"])
def test_commands_report_an_unmigrated_database_and_do_not_migrate_it(
    lifecycle: Any, connection: psycopg.Connection[Any], state: str
) -> None:
    connection.execute(
        "DROP SCHEMA exp CASCADE" if state == "missing" else "UPDATE exp.alembic_version SET version_num = '0001'"
    )
    for words in (
        ["keys", "list"],
        ["keys", "make", "shop"],
        ["experiment", "list"],
        ["experiment", "show", "cards"],
        ["experiment", "pause", "cards", "--reason", "Why not."],
        ["sync", "--check"],
        ["sync"],
    ):
        refused = lifecycle(*words)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert refused.stderr.startswith("lifecycle: The database ")
        assert refused.stderr.endswith(" is not migrated: run `lifecycle db migrate`.\n")
    assert schema_state(connection) == state
