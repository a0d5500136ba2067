"""What `lifecycle sync` refuses: it applies all changes or none, and leaves runs of promotion unchanged."""

from typing import Any

import psycopg
import pytest
from ground_support import (
    BY,
    next_planner_version,
    sync_project_config,
)
from sync_support import POLICIES, SECOND_VERSION, SPLIT, Files, everything

from experimentation.policies import get_version
from experimentation.promotion.candidates import open_candidate_run
from experimentation.runs.lifecycle import complete_run, runs_of

pytest_plugins = ["sync_support"]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "feature_enabled: true",
            "feature_enabled: 1",
            "experiments.yml:9: with_cards of cards run 1 can't change any more, since cards run 1 was started: "
            "give a new experiment another name.",
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
            "experiments.yml:6: control of cards run 1 can't change any more, since cards run 1 was started: "
            "give a new experiment another name.",
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
def test_change_of_a_running_variant_is_refused(files: Files, old: str, new: str, expected: str) -> None:
    files.apply()
    assert files.problems(SPLIT.replace(old, new)) == [expected]


def test_change_of_running_allocations_is_refused(files: Files) -> None:
    files.apply()
    for status in ("active", "paused"):
        files.apply(SPLIT.replace("active", status))
        text = SPLIT.replace("active", status).replace("0.5", "0.6", 1).replace("0.5", "0.4")
        assert files.problems(text) == [
            f"experiments.yml:6: control of cards run 1 has 0.5000 while it is {status}, not 0.6000: "
            "a running experiment's arms grow by `lifecycle experiment ramp cards --to SHARE --reason TEXT`, and the file says so "
            "afterwards."
        ]


def test_joining_variant_is_refused_unless_it_is_small_and_the_others_shrink_in_proportion(files: Files) -> None:
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


def test_version_is_refused_when_mlflow_lacks_or_archived_its_model(files: Files) -> None:
    stages: dict[tuple[str, int], str] = {("planner_model", 1): "production"}
    ask: dict[str, Any] = {"model_stage": lambda name, version: stages.get((name, version))}
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


def test_change_of_a_version_is_refused(files: Files) -> None:
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


def test_version_number_that_promotion_took_is_refused(files: Files) -> None:
    files.apply()
    next_planner_version(files.connection, model_version=5)
    assert files.problems(policies=POLICIES + SECOND_VERSION) == [
        "policies.yml:8: planner_policy@2 is models:/planner_model/5 for good, not models:/planner_model/2: add a version instead."
    ]


def test_variant_is_refused_when_its_version_cannot_be_served(files: Files) -> None:
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
    version = get_version(files.connection, "planner_policy", 2)
    assert version is not None
    # The same version by its id is no change.
    assert (
        files.apply(
            naming(f"config: {{policy_version_id: {version.id}}}"), policies + "        status: deprecated\n"
        ).changes
        == ()
    )


def test_refused_version_is_not_reported_again_as_missing(files: Files) -> None:
    naming = SPLIT.replace("config: {feature_enabled: true}", "policy: planner_policy@2")
    policies = POLICIES + SECOND_VERSION
    assert files.problems(naming, policies, model_stage=lambda name, version: "none" if version == 1 else None) == [
        "policies.yml:8: planner_policy@2 names models:/planner_model/2, which MLflow does not have: register the model version first."
    ]
    # What was made before is there, though the file is wrong about it.
    files.apply(naming, policies)
    assert files.problems(naming, policies.replace("mlflow_model_version: 2", "mlflow_model_version: 3")) == [
        "policies.yml:8: planner_policy@2 is models:/planner_model/2 for good, not models:/planner_model/3: add a version instead."
    ]


def test_all_problems_are_reported_and_nothing_is_applied(files: Files) -> None:
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


def test_experiment_is_left_alone_once_promotion_opened_a_candidate_run(connection: psycopg.Connection[Any]) -> None:
    sync_project_config(connection)
    candidate = next_planner_version(connection)
    run = open_candidate_run(
        connection,
        experiment_name="weekly_planner",
        policy_version_id=candidate.id,
        treatment_name="candidate_v2",
        change=BY,
    ).run
    for status in ("active", "completed"):
        state = everything(connection)
        report = sync_project_config(connection)
        assert report.changes == ()
        but = ", but for its overrides" if status == "active" else ""
        assert report.notes == (
            f"weekly_planner run 2 ({status}) is promotion's: the file's weekly_planner is left alone{but}",
        )
        assert everything(connection) == state
        if status == "active":
            complete_run(connection, run.id, shipped="control", change=BY)


def test_completed_experiment_is_not_reopened(files: Files) -> None:
    files.apply()
    complete_run(files.connection, runs_of(files.connection, "cards")[0].id, shipped="with_cards", change=BY)
    report = files.apply()
    assert report.changes == ()
    assert report.notes == ("cards run 1 is completed for good: to run it again, give the experiment another name",)


def test_completed_experiment_is_not_created_when_it_never_ran_here(files: Files) -> None:
    report = files.apply(SPLIT.replace("active", "completed"))
    assert report.notes == ("cards is completed and never ran here: nothing is made for it",)
    assert runs_of(files.connection, "cards") == []
