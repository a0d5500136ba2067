"""Configuration files: what they say, and every broken rule with its file and line."""

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from ground_support import NO_EXPERIMENTS, assert_problem, config_of

from experimentation.config.files import read_config
from foundation.settings import PROJECT_ROOT
from foundation.yaml_files import ConfigError

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


def test_own_configuration_files_can_be_read() -> None:
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


def test_allocations_are_exactly_the_decimals_of_the_file(tmp_path: Path) -> None:
    (entry,) = config_of(tmp_path, EXPERIMENT, POLICY).experiments
    assert [variant.allocation for variant in entry.variants] == [Decimal("0.29"), Decimal("0.71")]
    assert entry.variants[0].config == {"feature_enabled": False, "colours": ["red", 1, 0.5, None]}
    assert [variant.role for variant in entry.variants] == ["control", "treatment"]


def test_first_variant_is_the_control_when_no_variant_is_called_control(tmp_path: Path) -> None:
    text = EXPERIMENT.replace("name: control", "name: remainder").replace("draft", "active")
    (entry,) = config_of(tmp_path, text, POLICY).experiments
    assert [variant.role for variant in entry.variants] == ["remainder", "control"]


def test_times_are_converted_to_utc(tmp_path: Path) -> None:
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
    ("old", "new", "line", "words"),
    [
        ("0.71", "0.7", 6, "cards variants sum to 0.9900 must sum to 1"),
        ("0.71", "0.71001", 10, "with_cards allocation at most 4 decimals 0.71001"),
        ("0.71", "1.5", 10, "with_cards allocation 1.5 is not between 0 and 1"),
        ("0.71", '"0.71"', 10, "with_cards allocation must be a number from 0 to 1, not text"),
        ("unit_type: user", "unit_type: person", 3, "cards unit_type user household session not person"),
        ("status: active", "status: live", 4, "cards status draft active paused completed not live"),
        ("    unit_type: user\n", "", 2, "cards needs unit_type"),
        ("status: active", "stat: active", 4, "Unknown key stat. Did you mean status?"),
        ("status: active", "name: again", 4, "key name is repeated"),
        ("name: cards", "name: 7", 2, "name must be text, not a number quotes"),
        ("name: cards", "name: on", 2, "name must be text, not yes or no quotes"),
        ("name: cards", 'name: ""', 2, "name is empty"),
        ("name: cards", "name: cards/new", 2, "name must not contain / URLs"),
        ("name: cards", 'name: " cards"', 2, "name one line at most 255 without blanks"),
        ("name: with_cards", "name: control", 9, "name control is repeated"),
        ("status: active", "start_at: 2025-01-31", 4, "start_at offset from UTC 2025-01-31T08:00:00Z"),
        ("status: active", "start_at: soon", 4, "start_at time like 2025-01-31T08:00:00Z"),
        (
            "status: active",
            "start_at: 2025-01-31T08:00:00Z\n    end_at: 2025-01-31T08:00:00Z",
            5,
            "end_at must be after start_at",
        ),
        ("feature_enabled: false", "from: 2025-01-31", 8, "control config can't contain 2025-01-31 quotes"),
        ("feature_enabled: false", "rate: .nan", 8, "control config can't contain .nan quotes"),
        ("feature_enabled: false", "1: one", 8, "control config text as keys, not a number"),
        ("feature_enabled: false", "params: 3", 8, "control config params mapping"),
        ("feature_enabled: false", "policy: planner_policy@1", 8, "control config `policy: planner_policy@1` next to"),
        (
            "feature_enabled: false",
            "policy_version_id: 17",
            8,
            "control config policy_version_id UUID `policy: name@1`",
        ),
        (
            "        allocation: 0.71\n",
            "        allocation: 0.71\n        policy: planner_policy\n",
            11,
            "with_cards policy like planner_policy@3, not planner_policy.",
        ),
        ("  - name: cards", "  - nothing\n  - name: cards", 2, "experiments[0] must be a mapping, not text"),
        ("experiments:", "experiment:", 1, "Unknown key experiment. Did you mean experiments?"),
        ("    status: active", "  status: active", 4, "not YAML expected <block end>"),
    ],
)
def test_experiments_file_is_refused_with_line_and_rule(
    tmp_path: Path, old: str, new: str, line: int, words: str
) -> None:
    assert old in EXPERIMENT
    assert_problem(problems(tmp_path, EXPERIMENT.replace(old, new)), f"experiments.yml:{line}: ", words)


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("version: 1\n        mlflow_model_name", "version: 0\n        mlflow_model_name", 4, "version 1, not 0"),
        ("mlflow_model_version: 1", "mlflow_model_version: latest", 6, "mlflow_model_version whole number, not latest"),
        ("name: planner_policy", "name: planner policy", 2, "planner policy must not contain blanks or @"),
        ("        mlflow_model_name: planner_model\n", "", 4, "planner_policy versions needs mlflow_model_name"),
        (
            "mlflow_model_version: 1",
            "mlflow_model_version: 1\n        status: draft",
            7,
            "status active deprecated archived not draft",
        ),
        (
            "mlflow_model_version: 1",
            "mlflow_model_version: 1\n      - {version: 1, mlflow_model_name: m, mlflow_model_version: 2}",
            7,
            "version 1 is repeated",
        ),
    ],
)
def test_policies_file_is_refused_with_line_and_rule(tmp_path: Path, old: str, new: str, line: int, words: str) -> None:
    assert old in POLICY
    assert_problem(problems(tmp_path, policies=POLICY.replace(old, new)), f"policies.yml:{line}: ", words)


def test_every_problem_of_both_files_is_reported_at_once(tmp_path: Path) -> None:
    experiments = EXPERIMENT.replace("user", "person").replace("experiments:\n", "experiments:\n  - name: x\n")
    experiments = experiments.replace("0.71", "most").replace("false", ".inf")
    assert problems(tmp_path, experiments, "policies: [1]\n") == [
        "policies.yml:1: policies[0] must be a mapping, not a number.",
        "experiments.yml:2: experiments[x] needs unit_type.",
        "experiments.yml:2: experiments[x] needs variants.",
        "experiments.yml:4: experiments[cards].unit_type must be 'user', 'household' or 'session', not person.",
        "experiments.yml:9: experiments[cards].variants[control].config can't contain .inf, which JSON does not have: put it in quotes.",
        "experiments.yml:11: experiments[cards].variants[with_cards].allocation must be a number from 0 to 1, not text.",
    ]


def test_names_and_ranges_are_compared_although_an_entry_is_unusable(tmp_path: Path) -> None:
    """What one entry breaks does not hide what two of them break together."""
    layer = "    layer: {name: page, from: 0, to: 10}\n"
    entry = "  - name: cards\n    unit_type: person\n" + layer + "    variants: [{name: a, allocation: 1}]\n"
    lines = problems(tmp_path, f"layers: [{{name: page}}]\nexperiments:\n{entry}{entry}")
    assert [line.partition(": ")[0] for line in lines] == [f"experiments.yml:{line}" for line in (4, 7, 8, 9)]
    assert "overlap" in lines[3] and "name cards is repeated" in lines[1]


def test_policy_version_is_refused_when_it_is_given_twice(tmp_path: Path) -> None:
    text = EXPERIMENT.replace("{feature_enabled: false,", "{policy_version_id: 6F9619FF-8B86-D011-B42D-00C04FC964FF,")
    (entry,) = config_of(tmp_path, text, POLICY).experiments
    assert entry.variants[0].config["policy_version_id"] == "6f9619ff-8b86-d011-b42d-00c04fc964ff"
    twice = text.replace("allocation: 0.29", "allocation: 0.29\n        policy: planner_policy@1")
    assert_problem(problems(tmp_path, twice), "experiments.yml:9: ", "control policy `policy` or `policy_version_id`")


def test_flags_need_no_policies(tmp_path: Path) -> None:
    config_of(tmp_path, EXPERIMENT)
    (tmp_path / "policies.yml").unlink()
    read = read_config(tmp_path)
    assert ([entry.name for entry in read.experiments], read.policies) == (["cards"], ())
    (tmp_path / "experiments.yml").write_text(EXPERIMENT + "        policy: planner_policy@1\n")
    with pytest.raises(ConfigError) as caught:
        read_config(tmp_path)
    (problem,) = caught.value.problems
    assert Path(problem.place.file).name == "policies.yml"
    assert "does not exist" in problem.rule and "LIFECYCLE_CONFIG_DIR" in problem.rule


def test_added_variant_is_refused_with_the_shares_that_make_room_for_it(tmp_path: Path) -> None:
    lines = problems(tmp_path, EXPERIMENT + "      - {name: late, allocation: 0.1}\n")
    assert_problem(lines, "experiments.yml:6: ", "sum to 1.1000 room for late control to 0.2610, with_cards to 0.6390")


def test_missing_and_empty_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "policies.yml").write_text("# nothing yet\n")
    with pytest.raises(ConfigError) as caught:
        read_config(tmp_path)
    assert str(caught.value).replace(f"{tmp_path}/", "").splitlines() == [
        "policies.yml:1: The file needs policies.",
        "experiments.yml:1: The file does not exist: create it, or set LIFECYCLE_CONFIG_DIR to the folder that has it.",
    ]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("&own {again: *own}", "contains itself"),
        ("{a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1], b: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a, *a], "
         "c: &c [*b, *b, *b, *b, *b, *b, *b, *b, *b, *b], d: [*c, *c, *c, *c, *c, *c, *c, *c, *c, *c]}", "Aliases repeat"),
        ("[" * 5000 + "]" * 5000, "nested too deeply"),
        ("{rate: !rate 3}", "tag"),
        ("{rate: !!int many}", "number"),
        ("{feature_enabled: true, feature_enabled: true}", "repeated"),
    ],
    ids=["recursion", "aliases", "depth", "tag", "wrong tag", "repeated key"],
)  # fmt: skip
def test_hostile_config_is_refused(tmp_path: Path, config: str, words: str) -> None:
    text = EXPERIMENT.replace("{feature_enabled: false, colours: [red, 1, 0.5, null]}", config)
    (problem,) = problems(tmp_path, text)
    assert words in problem


def test_aliases_are_followed(tmp_path: Path) -> None:
    text = EXPERIMENT.replace("config: {", "config: &shared {") + "        config: *shared\n"
    control, with_cards = config_of(tmp_path, text, POLICY).experiments[0].variants
    assert control.config == with_cards.config
