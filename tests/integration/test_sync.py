"""Configuration files applied to a real database: reported, audited, and applied once."""

from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
from ground_support import (
    BY,
    NO_EXPERIMENTS,
    first_planner_version,
    next_planner_version,
    sync_project_config,
)
from local_support import wait_until
from sync_support import POLICIES, SECOND_VERSION, SPLIT, Files, allocations, everything

from experimentation.policies import find_policy, get_version, production_version
from experimentation.promotion.candidates import open_candidate_run
from experimentation.runs.lifecycle import runs_of

pytest_plugins = ["sync_support"]

WAITS_FOR_A_LOCK = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


def test_own_files_set_up_a_fresh_installation(connection: psycopg.Connection[Any]) -> None:
    report = sync_project_config(connection)
    assert report.changes == (
        "+ policy planner_policy",
        "+ policy version planner_policy@1 (active): models:/planner_model/1",
        "+ experiment weekly_planner run 1 (household, active): control 1.0000",
        "+ experiment recipe_cards run 1 (user, active): control 0.5000, with_cards 0.5000",
    )
    version = first_planner_version(connection)
    assert production_version(connection, "planner_policy") == version
    (run,) = runs_of(connection, "weekly_planner")
    assert (run.status, run.made_by, run.unit_type, run.policy_id) == ("active", "file", "household", version.policy_id)
    assert run.control.config == {"policy_version_id": str(version.id)}
    (cards,) = runs_of(connection, "recipe_cards")
    assert (cards.policy_id, [variant.config for variant in cards.variants]) == (
        None,
        [{"feature_enabled": False}, {"feature_enabled": True}],
    )
    epochs = connection.execute("SELECT count(*), max(epoch) FROM exp.allocation_epochs").fetchone()
    assert epochs == (2, 1)


def test_second_sync_changes_nothing(connection: psycopg.Connection[Any]) -> None:
    sync_project_config(connection)
    state = everything(connection)
    report = sync_project_config(connection)
    assert (report.changes, report.lines()) == ((), ["Files and database agree."])
    assert everything(connection) == state


def test_check_reports_the_same_changes_and_applies_none(connection: psycopg.Connection[Any]) -> None:
    state = everything(connection)
    checked = sync_project_config(connection, check=True)
    assert everything(connection) == state
    applied = sync_project_config(connection)
    assert (checked.changes, checked.applied, applied.applied) == (applied.changes, False, True)
    assert sync_project_config(connection, check=True).changes == ()


def test_check_does_not_commit_in_the_transaction_of_the_caller(database_url: str) -> None:
    with psycopg.connect(database_url) as own:
        sync_project_config(own, check=True)
    with psycopg.connect(database_url) as own:
        assert find_policy(own, "planner_policy") is None


def test_concurrent_syncs_apply_the_files_once(connection: psycopg.Connection[Any], database_url: str) -> None:
    def apply(_: int) -> int:
        with psycopg.connect(database_url) as own:
            return len(sync_project_config(own).changes)

    with ThreadPoolExecutor(3) as pool:
        assert sorted(pool.map(apply, range(3))) == [0, 0, 4]


def test_every_change_is_audited_with_its_author(files: Files) -> None:
    files.apply(by="somebody")
    files.apply(SPLIT.replace("status: active", "status: paused"), by="another")
    rows = files.connection.execute("SELECT actor, action, subject FROM exp.audit_log ORDER BY id").fetchall()
    assert rows == [
        ("somebody", "policy.created", "planner_policy"),
        ("somebody", "policy_version.created", "planner_policy@1"),
        ("somebody", "policy.production_changed", "planner_policy"),
        ("somebody", "experiment.created", "cards run 1"),
        ("somebody", "experiment.started", "cards run 1"),
        ("another", "experiment.paused", "cards run 1"),
    ]


# what a file may change


def test_draft_may_change_entirely(files: Files) -> None:
    draft = SPLIT.replace("status: active", "status: draft").replace("allocation: 0.5", "allocation: 0.2")
    files.apply(draft)
    changed = draft.replace("user", "session").replace("name: with_cards", "name: other").replace("true", "1")
    assert files.apply(changed).changes == (
        "~ experiment cards run 1: unit_type",
        "~ experiment cards run 1, a draft: control 0.2000, other 0.2000",
    )
    assert files.apply(changed).changes == ()
    # `true` and 1 are equal to Python, and not to a client.
    assert files.apply(changed.replace("enabled: 1", "enabled: true")).changes == (
        "~ experiment cards run 1, a draft: control 0.2000, other 0.2000",
    )


def test_status_of_the_run_follows_the_file(files: Files) -> None:
    lines: list[str] = []
    for status in ("draft", "active", "paused", "active", "completed"):
        lines += files.apply(SPLIT.replace("active", status)).changes[-1:]
    assert lines == [
        "+ experiment cards run 1 (user, draft): control 0.5000, with_cards 0.5000",
        "~ experiment cards run 1: status draft → active",
        "~ experiment cards run 1: status active → paused",
        "~ experiment cards run 1: status paused → active",
        "~ experiment cards run 1: status active → completed",
    ]
    assert files.apply(SPLIT.replace("active", "completed")).lines() == ["Files and database agree."]


def test_descriptions_and_times_may_change_while_an_experiment_runs(files: Files) -> None:
    files.apply()
    text = SPLIT.replace("    variants:", "    description: Cards.\n    end_at: 2030-01-01T00:00:00Z\n    variants:")
    text = text.replace("      - name: with_cards\n", "      - name: with_cards\n        description: Shown.\n")
    policies = POLICIES.replace("    versions:", "    description: Plans.\n    versions:")
    policies = policies.replace("      - version: 1\n", "      - version: 1\n        description: First.\n")
    assert files.apply(text, policies).changes == (
        "~ policy planner_policy: description",
        "~ policy version planner_policy@1: description",
        "~ experiment cards run 1: description, end_at",
        "~ experiment cards run 1: description of with_cards",
    )


def test_second_policy_version_is_added_but_not_put_into_production(files: Files) -> None:
    files.apply()
    assert files.apply(policies=POLICIES + SECOND_VERSION).changes == (
        "+ policy version planner_policy@2 (active): models:/planner_model/2",
    )
    served = production_version(files.connection, "planner_policy")
    assert served is not None and served.version == 1


def test_policy_version_may_be_deprecated_and_archived(files: Files) -> None:
    files.apply(policies=POLICIES + SECOND_VERSION)
    for status, before in (("deprecated", "active"), ("archived", "deprecated"), ("active", "archived")):
        text = POLICIES + SECOND_VERSION + f"        status: {status}\n"
        assert files.apply(policies=text).changes == (f"~ policy version planner_policy@2: status {before} → {status}",)


def test_sync_keeps_experiments_and_policies_that_the_files_do_not_name(files: Files) -> None:
    files.apply()
    report = files.apply(NO_EXPERIMENTS, "policies: []\n")
    assert report.lines() == ["Files and database agree.", "  (cards is in the database only, and is left alone)"]
    assert get_version(files.connection, "planner_policy", 1) is not None


def test_small_variant_may_join_a_running_split(files: Files) -> None:
    files.apply()
    joined = SPLIT.replace("0.5", "0.45") + "      - {name: late, allocation: 0.1, config: {feature_enabled: maybe}}\n"
    assert files.apply(joined).changes == (
        "~ experiment cards run 1 gets late: control 0.5000, with_cards 0.5000 → control 0.4500, with_cards 0.4500, late 0.1000",
    )
    assert allocations(files.connection) == {
        "control": Decimal("0.45"),
        "with_cards": Decimal("0.45"),
        "late": Decimal("0.1"),
    }
    assert files.connection.execute("SELECT max(epoch) FROM exp.allocation_epochs").fetchone() == (2,)
    assert files.apply(joined).changes == ()


# what a file may not change


def test_sync_waits_for_a_candidate_that_is_being_opened(database_url: str, tmp_path: Path) -> None:
    """It would otherwise work with the run that the candidate's run replaces."""
    plain = SPLIT[: SPLIT.index("      - name: with_cards")].replace("0.5", "1")
    plain = plain.replace("config: {feature_enabled: false}", "policy: planner_policy@1")
    described = plain.replace("    variants", "    description: Another.\n    variants")
    with psycopg.connect(database_url) as opening, psycopg.connect(database_url) as syncing:
        Files(opening, tmp_path).apply(plain)
        version = next_planner_version(opening)
        opening.commit()
        with ThreadPoolExecutor() as pool, psycopg.connect(database_url, autocommit=True) as watching:
            with opening.transaction():
                open_candidate_run(
                    opening,
                    experiment_name="cards",
                    policy_version_id=version.id,
                    treatment_name="candidate_v2",
                    change=BY,
                )
                report = pool.submit(Files(syncing, tmp_path).apply, described)
                wait_until(lambda: watching.execute(WAITS_FOR_A_LOCK).fetchone() is not None, "sync to wait", 30)
            assert report.result(30).changes == ()
        assert [run.made_by for run in runs_of(syncing, "cards")] == ["file", "promotion"]
        assert runs_of(syncing, "cards")[0].description is None
