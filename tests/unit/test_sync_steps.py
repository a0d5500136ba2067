"""The difference between files and database, as steps: pure, without a database."""

from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from ground_support import config_of, every_model_exists
from sync_support import POLICIES, SPLIT

from experimentation.config import steps
from experimentation.config.difference import Difference, State, difference
from experimentation.runs.run import Policy, PolicyVersion, Role, Run, RunStatus, Variant

EMPTY: dict[str, Any] = {
    "policies": {}, "versions": {}, "versions_by_id": {}, "uses": {}, "layers": {}, "runs": {}, "open_names": (),
}  # fmt: skip
POLICY = Policy(UUID(int=1), "planner_policy")
VERSION = PolicyVersion(
    UUID(int=2), POLICY.id, POLICY.name, 1, "planner_model", "1", {"temperature": 0.0, "exploration_rate": 0.05}
)
STORED: dict[str, Any] = {
    **EMPTY,
    "policies": {POLICY.name: POLICY},
    "versions": {(POLICY.name, 1): VERSION},
}


def stored_variant(position: int, name: str, role: Role, shown: bool) -> Variant:
    config = {"feature_enabled": shown}
    return Variant(name, role, Decimal("0.5"), config, id=UUID(int=10 + position), position=position)


def stored_run(status: RunStatus = "active") -> Run:
    variants = (stored_variant(0, "control", "control", False), stored_variant(1, "with_cards", "treatment", True))
    return Run(UUID(int=3), "cards", 1, status, "user", "file", variants)


def compared(folder: Path, experiments: str, state: dict[str, Any], policies: str = POLICIES) -> Difference:
    return difference(config_of(folder, experiments, policies), State(**state), every_model_exists)


def test_empty_database_gets_everything_in_the_order_to_apply_it(tmp_path: Path) -> None:
    result = compared(tmp_path, SPLIT, EMPTY)
    assert [type(step) for step in result.steps] == [steps.AddPolicy, steps.AddVersion, steps.CreateRun]
    assert (result.notes, result.problems) == ([], [])


def test_equal_files_and_database_need_no_step(tmp_path: Path) -> None:
    result = compared(tmp_path, SPLIT, {**STORED, "runs": {"cards": [stored_run()]}})
    assert result == Difference()


@pytest.mark.parametrize(
    ("old", "new", "kinds"),
    [
        ("active", "paused", [steps.SetStatus]),
        ("unit_type: user", "unit_type: user\n    description: x\n    targeting: context.a == 1", [steps.UpdateRun]),
        ("unit_type: user", "unit_type: user\n    overrides: {u: control}", [steps.SetOverrides]),
        ("- name: with_cards", "- name: with_cards\n        description: x", [steps.Describe]),
    ],
)
def test_each_difference_is_one_step(tmp_path: Path, old: str, new: str, kinds: list[type[steps.Step]]) -> None:
    result = compared(tmp_path, SPLIT.replace(old, new), {**STORED, "runs": {"cards": [stored_run()]}})
    assert [type(step) for step in result.steps] == kinds
    assert all(step.sentences for step in result.steps)


def test_added_variant_is_one_step_that_says_how_the_others_shrink(tmp_path: Path) -> None:
    text = SPLIT.replace("0.5", "0.45") + "      - {name: late, allocation: 0.1}\n"
    result = compared(tmp_path, text, {**STORED, "runs": {"cards": [stored_run()]}})
    (step,) = result.steps
    assert isinstance(step, steps.AddVariant)
    assert "control 0.4500, with_cards 0.4500, late 0.1000" in step.sentences[0]


def test_draft_status_of_a_started_run_is_a_problem_without_steps(tmp_path: Path) -> None:
    result = compared(tmp_path, SPLIT.replace("active", "draft"), {**STORED, "runs": {"cards": [stored_run()]}})
    assert result.steps == [] and [problem.place.line for problem in result.problems] == [2]


def test_version_in_use_is_not_archived(tmp_path: Path) -> None:
    state = {**STORED, "runs": {"cards": [stored_run()]}, "uses": {VERSION.id: ["cards run 1 serves it as control"]}}
    result = compared(tmp_path, SPLIT, state, POLICIES + "        status: archived\n")
    (problem,) = result.problems
    assert problem.place.line == 4 and "cards run 1 serves it" in problem.rule and result.steps == []
