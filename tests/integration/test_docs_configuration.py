"""Applies the files and evaluates the rules that docs/configuration.md shows."""

from typing import Any

import pytest
from docs_support import snippets
from sync_support import Files

from experimentation.assignments.bucketing import BUCKETS, bucket_of
from experimentation.assignments.targeting import Targeting, TargetingInput
from experimentation.runs.layers import find_layer

pytest_plugins = ["sync_support"]

PAGE = "docs/configuration.md"
CONTEXT = {
    "platform": "ios", "region": "north", "weeks": 4, "guest": False, "app_version": "2.1", "tags": ["quick", "vegan"],
}  # fmt: skip


def test_files_on_the_page_are_applied(files: Files) -> None:
    policies, experiments = snippets(PAGE, "yaml")
    report = files.apply(experiments, policies)
    assert [line.partition(":")[0] for line in report.changes] == [
        "+ policy planner_policy",
        "+ policy version planner_policy@1 (active)",
        "+ layer plan_page",
        "+ experiment recipe_cards run 1 (user, active)",
        "+ experiment shorter_plans run 1 (household, active)",
        "+ experiment colours run 1 (user, draft)",
    ]
    assert files.apply(experiments, policies).lines() == ["Files and database agree."]


@pytest.mark.parametrize("rule", snippets(PAGE, "cel")[0].splitlines())
def test_rules_on_the_page_accept_and_reject(rule: str) -> None:
    targeting = Targeting(rule)
    assert targeting.holds(TargetingInput("user", CONTEXT)) is True
    other: dict[str, Any] = {
        "platform": "web",
        "region": "east",
        "weeks": 3,
        "guest": False,
        "app_version": "3",
        "tags": [],
    }
    assert targeting.holds(TargetingInput("user", other)) is False
    assert targeting.holds(TargetingInput("user", {})) is False


def test_first_buckets_are_the_holdout(files: Files) -> None:
    policies, experiments = snippets(PAGE, "yaml")
    files.apply(experiments, policies)
    layer = find_layer(files.connection, "plan_page")
    assert layer is not None and int(layer.holdout * BUCKETS) == 500
    # Computed by PostgreSQL instead of our own code.
    digest = "encode(substr(sha256((id::text || ':u0001')::bytea), 1, 8), 'hex')"
    row = files.connection.execute(f"SELECT {digest} FROM exp.layers").fetchone()
    assert row is not None and int(row[0], 16) % 10_000 == bucket_of(layer.id, "u0001")
