"""Configuration files: what they say, and every broken rule with its file and line."""

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from ground_support import NO_EXPERIMENTS, config_of

from experimentation.config.files import read_config
from experimentation.config.yaml_nodes import ConfigError
from foundation.settings import PROJECT_ROOT

EXPERIMENT = """\
experiments:
  - name: cards
    unit_type: user
    status: active
    variants:
      - name: control
        allocation: 0.29
        config: {feature_enabled: false, colours: [red, 1, 0.5, null]}
      - name: with_cards
        allocation: 0.71
"""
POLICY = """\
policies:
  - name: planner_policy
    versions:
      - version: 1
        mlflow_model_name: planner_model
        mlflow_model_version: 1
"""


def problems(folder: Path, experiments: str = NO_EXPERIMENTS, policies: str = POLICY) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config_of(folder, experiments, policies)
    return str(caught.value).replace(f"{folder}/", "").splitlines()


def test_the_projects_own_files_can_be_read() -> None:
    read = read_config(PROJECT_ROOT / "config")
    weekly, cards = read.experiments
    assert (weekly.name, weekly.unit_type, weekly.status) == ("weekly_planner", "household", "active")
    assert [(variant.name, variant.allocation) for variant in weekly.variants] == [("control", Decimal(1))]
    assert weekly.variants[0].policy is not None
    assert weekly.variants[0].policy.label == "planner_policy@1"
    assert [variant.config for variant in cards.variants] == [{"feature_enabled": False}, {"feature_enabled": True}]
    assert [(policy.name, policy.versions[0].mlflow_model_version) for policy in read.policies] == [
        ("planner_policy", 1)
    ]


def test_allocations_are_the_decimals_that_stand_in_the_file(tmp_path: Path) -> None:
    (entry,) = config_of(tmp_path, EXPERIMENT, POLICY).experiments
    assert [variant.allocation for variant in entry.variants] == [Decimal("0.29"), Decimal("0.71")]
    assert entry.variants[0].config == {"feature_enabled": False, "colours": ["red", 1, 0.5, None]}
    assert [variant.role for variant in entry.variants] == ["control", "treatment"]


def test_without_a_variant_called_control_the_first_one_is_it(tmp_path: Path) -> None:
    text = EXPERIMENT.replace("name: control", "name: remainder").replace("draft", "active")
    (entry,) = config_of(tmp_path, text, POLICY).experiments
    assert [variant.role for variant in entry.variants] == ["remainder", "control"]


def test_times_are_taken_to_utc(tmp_path: Path) -> None:
    text = EXPERIMENT.replace(
        "    status: active\n", "    start_at: 2025-01-31T08:00:00+02:00\n    end_at: 2025-03-01 00:00:00Z\n"
    )
    (entry,) = config_of(tmp_path, text, POLICY).experiments
    assert (entry.start_at, entry.end_at, entry.status) == (
        datetime(2025, 1, 31, 6, tzinfo=UTC),
        datetime(2025, 3, 1, tzinfo=UTC),
        "draft",
    )


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "0.71",
            "0.7",
            "6: The allocations of cards sum to 0.9900: they must sum to 1 when it is active.",
        ),
        (
            "0.71",
            "0.71001",
            "10: The allocation of cards's variant with_cards must be a number from 0 to 1 of at most 4 decimals: "
            "0.71001 has more than 4 decimals.",
        ),
        (
            "0.71",
            "1.5",
            "10: The allocation of cards's variant with_cards must be a number from 0 to 1 of at most 4 decimals: "
            "1.5 is not between 0 and 1.",
        ),
        ("0.71", '"0.71"', "10: The allocation of cards's variant with_cards must be a number from 0 to 1, not text."),
        (
            "unit_type: user",
            "unit_type: person",
            "3: The unit_type of cards must be one of user, household, session, not person.",
        ),
        (
            "status: active",
            "status: live",
            "4: The status of cards must be one of draft, active, paused, completed, not live.",
        ),
        ("    unit_type: user\n", "", "2: An experiment needs unit_type."),
        (
            "status: active",
            "stat: active",
            "4: An experiment has no key 'stat': it may have name, unit_type, variants, description, status, start_at, end_at, "
            "layer, targeting, overrides.",
        ),
        ("status: active", "name: again", "4: An experiment has the key 'name' twice."),
        ("name: cards", "name: 7", "2: The name of an experiment must be text, not a number: put it in quotes."),
        ("name: cards", "name: on", "2: The name of an experiment must be text, not yes or no: put it in quotes."),
        ("name: cards", 'name: ""', "2: The name of an experiment is empty."),
        ("name: cards", "name: cards/new", "2: The name of experiment cards/new must have no /: it stands in URLs."),
        (
            "name: cards",
            'name: " cards"',
            "2: The name of an experiment must be one line of at most 255 characters, without blanks around it.",
        ),
        ("name: with_cards", "name: control", "9: In cards, the variant control stands here twice."),
        (
            "status: active",
            "start_at: 2025-01-31",
            "4: start_at of cards must name its offset from UTC, like 2025-01-31T08:00:00Z.",
        ),
        ("status: active", "start_at: soon", "4: start_at of cards must be a time like 2025-01-31T08:00:00Z."),
        (
            "status: active",
            "start_at: 2025-01-31T08:00:00Z\n    end_at: 2025-01-31T08:00:00Z",
            "5: end_at of cards must be after its start_at.",
        ),
        (
            "feature_enabled: false",
            "from: 2025-01-31",
            "8: The config of cards's variant control can't hold 2025-01-31, which JSON does not know: put it in quotes.",
        ),
        (
            "feature_enabled: false",
            "rate: .nan",
            "8: The config of cards's variant control can't hold .nan, which JSON does not know: put it in quotes.",
        ),
        (
            "feature_enabled: false",
            "1: one",
            "8: The config of cards's variant control must have text as keys, each once: '1' is not.",
        ),
        ("feature_enabled: false", "params: 3", "8: The params of cards's variant control must be a mapping."),
        (
            "feature_enabled: false",
            "policy: planner_policy@1",
            "8: `policy: planner_policy@1` of cards's variant control stands beside its config, not in it.",
        ),
        (
            "feature_enabled: false",
            "policy_version_id: 17",
            "8: The policy_version_id of cards's variant control must be a UUID: name the version as `policy: name@1`.",
        ),
        (
            "        allocation: 0.71\n",
            "        allocation: 0.71\n        policy: planner_policy\n",
            "11: The policy of cards's variant with_cards must be like planner_policy@3, not planner_policy.",
        ),
        ("  - name: cards", "  - nothing\n  - name: cards", "2: An experiment must be a mapping, not text."),
        ("experiments:", "experiment:", "1: experiments.yml has no key 'experiment': it may have experiments, layers."),
        ("    status: active", "  status: active", "4: This is not YAML: expected <block end>, but found '?'."),
    ],
)
def test_a_broken_rule_is_told_with_file_and_line(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert old in EXPERIMENT
    assert problems(tmp_path, EXPERIMENT.replace(old, new))[0] == f"experiments.yml:{expected}"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "version: 1\n        mlflow_model_name",
            "version: 0\n        mlflow_model_name",
            "4: A version of planner_policy must be a whole number from 1 on, not 0.",
        ),
        (
            "mlflow_model_version: 1",
            "mlflow_model_version: latest",
            "6: The mlflow_model_version of planner_policy@1 must be a whole number from 1 on, not latest.",
        ),
        (
            "name: planner_policy",
            "name: planner policy",
            "2: The name of policy planner policy must have no blanks and no @.",
        ),
        ("        mlflow_model_name: planner_model\n", "", "4: A version of planner_policy needs mlflow_model_name."),
        (
            "mlflow_model_version: 1",
            "mlflow_model_version: 1\n        status: draft",
            "7: The status of planner_policy@1 must be one of active, deprecated, archived, not draft.",
        ),
        (
            "mlflow_model_version: 1",
            "mlflow_model_version: 1\n      - {version: 1, mlflow_model_name: m, mlflow_model_version: 2}",
            "7: In planner_policy, version 1 stands here twice.",
        ),
    ],
)
def test_a_broken_rule_of_a_policy_is_told_too(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert old in POLICY
    assert problems(tmp_path, policies=POLICY.replace(old, new))[0] == f"policies.yml:{expected}"


def test_every_problem_of_both_files_is_told_at_once(tmp_path: Path) -> None:
    experiments = EXPERIMENT.replace("user", "person").replace("experiments:\n", "experiments:\n  - name: x\n")
    assert problems(tmp_path, experiments, "policies: [1]\n") == [
        "policies.yml:1: A policy must be a mapping, not a number.",
        "experiments.yml:2: An experiment needs unit_type and variants.",
        "experiments.yml:4: The unit_type of cards must be one of user, household, session, not person.",
    ]


def test_a_policy_version_is_named_once(tmp_path: Path) -> None:
    text = EXPERIMENT.replace("{feature_enabled: false,", "{policy_version_id: 6F9619FF-8B86-D011-B42D-00C04FC964FF,")
    (entry,) = config_of(tmp_path, text, POLICY).experiments
    assert entry.variants[0].config["policy_version_id"] == "6f9619ff-8b86-d011-b42d-00c04fc964ff"
    twice = text.replace("allocation: 0.29", "allocation: 0.29\n        policy: planner_policy@1")
    assert problems(tmp_path, twice) == [
        "experiments.yml:9: cards's variant control names its policy version twice: keep `policy` or `policy_version_id`."
    ]


def test_flags_need_no_policies(tmp_path: Path) -> None:
    config_of(tmp_path, EXPERIMENT)
    (tmp_path / "policies.yml").unlink()
    read = read_config(tmp_path)
    assert ([entry.name for entry in read.experiments], read.policies) == (["cards"], ())
    (tmp_path / "experiments.yml").write_text(EXPERIMENT + "        policy: planner_policy@1\n")
    with pytest.raises(ConfigError) as caught:
        read_config(tmp_path)
    assert [(Path(problem.place.file).name, problem.rule) for problem in caught.value.problems] == [
        ("policies.yml", "The file does not exist: make it, or name its folder with LIFECYCLE_CONFIG_DIR.")
    ]


def test_who_adds_a_variant_is_told_what_the_others_shrink_to(tmp_path: Path) -> None:
    assert problems(tmp_path, EXPERIMENT + "      - {name: late, allocation: 0.1}\n") == [
        "experiments.yml:6: The allocations of cards sum to 1.1000: they must sum to 1 when it is active; to make room for late, shrink "
        "control to 0.2610, with_cards to 0.6390."
    ]


def test_missing_and_empty_files_are_told(tmp_path: Path) -> None:
    (tmp_path / "policies.yml").write_text("# nothing yet\n")
    with pytest.raises(ConfigError) as caught:
        read_config(tmp_path)
    assert str(caught.value).replace(f"{tmp_path}/", "").splitlines() == [
        "policies.yml:1: The file is empty: it needs a list `policies`.",
        "experiments.yml:1: The file does not exist: make it, or name its folder with LIFECYCLE_CONFIG_DIR.",
    ]


def test_a_config_that_contains_itself_is_refused(tmp_path: Path) -> None:
    text = EXPERIMENT.replace("{feature_enabled: false, colours: [red, 1, 0.5, null]}", "&own {again: *own}")
    assert problems(tmp_path, text) == ["experiments.yml:8: The config of cards's variant control contains itself."]
