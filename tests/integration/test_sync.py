"""Configuration files applied to a real database: the difference in lines, all of it or nothing, promotion's things left alone."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest
from ground_support import (
    NO_EXPERIMENTS,
    config_of,
    every_model_exists,
    first_planner_version,
    next_planner_version,
    sync_project_config,
)

from experimentation.experiments import complete_run, open_candidate_run, runs_of
from experimentation.policies import find_policy, get_version, production_version
from experimentation.sync import SyncReport, sync
from experimentation.yaml_nodes import ConfigError

BY = {"actor": "test", "reason": "Because of the test."}
POLICIES = """\
policies:
  - name: planner_policy
    versions:
      - version: 1
        mlflow_model_name: planner_model
        mlflow_model_version: 1
        config_defaults: {temperature: 0.0, exploration_rate: 0.05}
"""
SPLIT = """\
experiments:
  - name: cards
    unit_type: user
    status: active
    variants:
      - name: control
        allocation: 0.5
        config: {feature_enabled: false}
      - name: with_cards
        allocation: 0.5
        config: {feature_enabled: true}
"""
SECOND_VERSION = """\
      - version: 2
        mlflow_model_name: planner_model
        mlflow_model_version: 2
"""


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection to a database of this test's own."""
    with psycopg.connect(database_url, autocommit=True) as opened:
        yield opened


class Files:
    """Applies texts as the two files, and tells problems without the folder's name."""

    def __init__(self, connection: psycopg.Connection[Any], folder: Path) -> None:
        self.connection, self.folder = connection, folder

    def apply(self, experiments: str = SPLIT, policies: str = POLICIES, **options: Any) -> SyncReport:
        files = config_of(self.folder, experiments, policies)
        return sync(self.connection, files, **{"model_stage": every_model_exists, "actor": "test", **options})

    def problems(self, experiments: str = SPLIT, policies: str = POLICIES, **options: Any) -> list[str]:
        state = everything(self.connection)
        with pytest.raises(ConfigError) as caught:
            self.apply(experiments, policies, **options)
        assert everything(self.connection) == state
        return str(caught.value).replace(f"{self.folder}/", "").splitlines()


@pytest.fixture
def files(connection: psycopg.Connection[Any], tmp_path: Path) -> Files:
    """The two files over the database of `connection`."""
    return Files(connection, tmp_path)


def everything(connection: psycopg.Connection[Any]) -> list[Any]:
    return [
        connection.execute(f"SELECT * FROM exp.{table} ORDER BY 1, 2").fetchall()
        for table in ("experiments", "variants", "allocation_epochs", "audit_log", "policy_versions", "policies")
    ]


def allocations(connection: psycopg.Connection[Any], name: str = "cards") -> dict[str, Decimal]:
    return {variant.name: variant.allocation for variant in runs_of(connection, name)[-1].variants}


def test_the_projects_own_files_make_a_fresh_installation(connection: psycopg.Connection[Any]) -> None:
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


def test_again_changes_nothing_at_all(connection: psycopg.Connection[Any]) -> None:
    sync_project_config(connection)
    state = everything(connection)
    report = sync_project_config(connection)
    assert (report.changes, report.lines()) == ((), ["Files and database agree."])
    assert everything(connection) == state


def test_a_check_tells_the_same_and_changes_nothing(connection: psycopg.Connection[Any]) -> None:
    state = everything(connection)
    checked = sync_project_config(connection, check=True)
    assert everything(connection) == state
    applied = sync_project_config(connection)
    assert (checked.changes, checked.applied, applied.applied) == (applied.changes, False, True)
    assert sync_project_config(connection, check=True).changes == ()


def test_a_check_does_not_commit_in_a_callers_transaction_either(database_url: str) -> None:
    with psycopg.connect(database_url) as own:
        sync_project_config(own, check=True)
    with psycopg.connect(database_url) as own:
        assert find_policy(own, "planner_policy") is None


def test_processes_that_sync_at_once_agree(connection: psycopg.Connection[Any], database_url: str) -> None:
    def apply(_: int) -> int:
        with psycopg.connect(database_url) as own:
            return len(sync_project_config(own).changes)

    with ThreadPoolExecutor(3) as pool:
        assert sorted(pool.map(apply, range(3))) == [0, 0, 4]


def test_every_change_is_audited_with_who_made_it(files: Files) -> None:
    files.apply(actor="somebody")
    files.apply(SPLIT.replace("status: active", "status: paused"), actor="another")
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


def test_a_draft_may_change_in_everything(files: Files) -> None:
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


def test_a_status_is_followed(files: Files) -> None:
    lines = []
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


def test_descriptions_and_times_of_a_running_experiment_may_change(files: Files) -> None:
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


def test_a_further_policy_version_is_added_and_not_put_into_production(files: Files) -> None:
    files.apply()
    assert files.apply(policies=POLICIES + SECOND_VERSION).changes == (
        "+ policy version planner_policy@2 (active): models:/planner_model/2",
    )
    served = production_version(files.connection, "planner_policy")
    assert served is not None and served.version == 1


def test_a_policy_version_may_be_deprecated_and_archived(files: Files) -> None:
    files.apply(policies=POLICIES + SECOND_VERSION)
    for status, before in (("deprecated", "active"), ("archived", "deprecated"), ("active", "archived")):
        text = POLICIES + SECOND_VERSION + f"        status: {status}\n"
        assert files.apply(policies=text).changes == (f"~ policy version planner_policy@2: status {before} → {status}",)


def test_what_the_files_do_not_name_is_left_alone(files: Files) -> None:
    files.apply()
    report = files.apply(NO_EXPERIMENTS, "policies: []\n")
    assert report.lines() == ["Files and database agree.", "  (cards is in the database only, and is left alone)"]
    assert get_version(files.connection, "planner_policy", 1) is not None


def test_a_small_variant_may_join_a_running_split(files: Files) -> None:
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


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "feature_enabled: true",
            "feature_enabled: 1",
            "experiments.yml:9: with_cards of cards run 1 can't change while it is active: complete it first.",
        ),
        (
            "name: with_cards",
            "name: renamed",
            "experiments.yml:6: cards run 1 is active with the variants control, with_cards: they stay, in this order, "
            "and a new one comes last.",
        ),
        (
            "        config: {feature_enabled: false}\n",
            "",
            "experiments.yml:6: control of cards run 1 can't change while it is active: complete it first.",
        ),
        (
            "unit_type: user",
            "unit_type: session",
            "experiments.yml:2: cards run 1 is active: only a draft's unit_type can be changed.",
        ),
        (
            "status: active",
            "status: draft",
            "experiments.yml:2: cards run 1 is active: a started run does not become a draft again.",
        ),
    ],
)
def test_a_running_experiment_keeps_its_variants(files: Files, old: str, new: str, expected: str) -> None:
    files.apply()
    assert files.problems(SPLIT.replace(old, new)) == [expected]


def test_allocations_of_a_running_experiment_are_promotions(files: Files) -> None:
    files.apply()
    for status in ("active", "paused"):
        files.apply(SPLIT.replace("active", status))
        text = SPLIT.replace("active", status).replace("0.5", "0.6", 1).replace("0.5", "0.4")
        assert files.problems(text) == [
            f"experiments.yml:6: control of cards run 1 has 0.5000 while it is {status}, not 0.6000: "
            "allocations of a running experiment change through promotion."
        ]


def test_a_variant_that_joins_gets_a_tenth_at_most_and_the_others_shrink_in_proportion(files: Files) -> None:
    files.apply()
    large = SPLIT.replace("0.5", "0.4") + "      - {name: late, allocation: 0.2}\n"
    assert files.problems(large) == [
        "experiments.yml:12: late starts with 0.2000 while cards run 1 is active: a new treatment gets at most 0.10."
    ]
    lopsided = SPLIT.replace("0.5", "0.4", 1) + "      - {name: late, allocation: 0.1}\n"
    assert files.problems(lopsided) == [
        "experiments.yml:6: late makes control shrink in proportion, to 0.4500, not 0.4000."
    ]
    two = SPLIT.replace("0.5", "0.4") + "      - {name: a, allocation: 0.1}\n      - {name: b, allocation: 0.1}\n"
    assert files.problems(two) == ["experiments.yml:13: cards run 1 is active: add one variant at a time."]


def test_a_version_needs_a_model_that_mlflow_has_and_did_not_archive(files: Files) -> None:
    stages: dict[tuple[str, int], str] = {("planner_model", 1): "production"}
    ask = {"model_stage": lambda name, version: stages.get((name, version))}
    assert files.problems(policies=POLICIES + SECOND_VERSION, **ask) == [
        "policies.yml:8: planner_policy@2 names models:/planner_model/2, which MLflow does not have: register the model version first."
    ]
    stages["planner_model", 2] = "archived"
    assert files.problems(policies=POLICIES + SECOND_VERSION, **ask) == [
        "policies.yml:8: planner_policy@2 names models:/planner_model/2, which is archived in MLflow: name another model version."
    ]
    stages["planner_model", 2] = "none"
    files.apply(policies=POLICIES + SECOND_VERSION, **ask)
    # A promotion archives the model before it; the file that named it stays right.
    stages["planner_model", 1] = "archived"
    assert files.apply(policies=POLICIES + SECOND_VERSION, **ask).changes == ()


def test_a_version_never_changes(files: Files) -> None:
    files.apply()
    other_model = POLICIES.replace("mlflow_model_version: 1", "mlflow_model_version: 2")
    other_defaults = POLICIES.replace("0.05", "0.1")
    assert files.problems(policies=other_model) == [
        "policies.yml:4: planner_policy@1 is models:/planner_model/1 for good, not models:/planner_model/2: add a version instead."
    ]
    assert files.problems(policies=other_defaults) == [
        "policies.yml:4: The config_defaults of planner_policy@1 can't change: add a version instead."
    ]
    assert files.problems(policies=POLICIES + "        status: archived\n") == [
        "policies.yml:4: planner_policy@1 can't be archived while planner_policy has it in production."
    ]


def test_a_number_that_promotion_took_is_promotions(files: Files) -> None:
    files.apply()
    next_planner_version(files.connection, model_version=5)
    assert files.problems(policies=POLICIES + SECOND_VERSION) == [
        "policies.yml:8: planner_policy@2 is models:/planner_model/5 for good, not models:/planner_model/2: add a version instead."
    ]


def test_a_variant_names_a_version_that_can_be_served(files: Files) -> None:
    def naming(line: str) -> str:
        return SPLIT.replace("config: {feature_enabled: true}", line)

    policies = POLICIES + SECOND_VERSION
    assert files.problems(naming("policy: planner_policy@7"), policies) == [
        "experiments.yml:9: with_cards names planner_policy@7, which is neither in policies.yml nor in the database."
    ]
    assert files.problems(naming("policy: planner_policy@2"), policies + "        status: archived\n") == [
        "experiments.yml:9: with_cards names planner_policy@2, which is archived and can't be served."
    ]
    unknown = "6f9619ff-8b86-d011-b42d-00c04fc964ff"
    assert files.problems(naming(f"config: {{policy_version_id: {unknown}}}"), policies) == [
        f"experiments.yml:9: with_cards names the policy version {unknown}, which the database does not have."
    ]
    report = files.apply(naming("policy: planner_policy@2"), policies + "        status: deprecated\n")
    assert report.notes == ("with_cards names planner_policy@2, which is deprecated: it works, and should be replaced",)
    made = get_version(files.connection, "planner_policy", 2)
    assert made is not None
    # The same version by its id is no change.
    assert (
        files.apply(
            naming(f"config: {{policy_version_id: {made.id}}}"), policies + "        status: deprecated\n"
        ).changes
        == ()
    )


def test_all_problems_are_told_and_nothing_of_the_files_is_applied(files: Files) -> None:
    text = SPLIT + SPLIT.removeprefix("experiments:\n").replace("name: cards", "name: others").replace(
        "config: {feature_enabled: true}", "policy: planner_policy@7"
    )
    assert files.problems(
        text, POLICIES + SECOND_VERSION, model_stage=lambda name, version: "none" if version == 1 else None
    ) == [
        "policies.yml:8: planner_policy@2 names models:/planner_model/2, which MLflow does not have: register the model version first.",
        "experiments.yml:19: with_cards names planner_policy@7, which is neither in policies.yml nor in the database.",
    ]
    assert runs_of(files.connection, "cards") == []


# what promotion made


def test_an_experiment_is_promotions_from_its_first_candidate_on(connection: psycopg.Connection[Any]) -> None:
    sync_project_config(connection)
    candidate = next_planner_version(connection)
    run = open_candidate_run(
        connection,
        experiment_name="weekly_planner",
        policy_version_id=candidate.id,
        treatment_name="candidate_v2",
        **BY,
    ).run
    for status in ("active", "completed"):
        state = everything(connection)
        report = sync_project_config(connection)
        assert report.changes == ()
        assert report.notes == (
            f"weekly_planner run 2 ({status}) is promotion's: the file's weekly_planner is left alone",
        )
        assert everything(connection) == state
        if status == "active":
            complete_run(connection, run.id, shipped="control", **BY)


def test_a_completed_experiment_is_not_reopened(files: Files) -> None:
    files.apply()
    complete_run(files.connection, runs_of(files.connection, "cards")[0].id, shipped="with_cards", **BY)
    report = files.apply()
    assert report.changes == ()
    assert report.notes == ("cards run 1 is completed for good: to try anew, give the experiment another name",)


def test_an_experiment_that_never_ran_here_is_not_made_completed(files: Files) -> None:
    report = files.apply(SPLIT.replace("active", "completed"))
    assert report.notes == ("cards is completed and never ran here: nothing is made for it",)
    assert runs_of(files.connection, "cards") == []
