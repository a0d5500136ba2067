"""What makes a candidate's run: whether there can be one, what it is held against, and what its arms serve."""

from collections.abc import Sequence
from typing import Any

import psycopg

from experimentation.policies import production_version
from experimentation.runs.run import ExperimentationError, PolicyVersion, Run


def tries(run: Run, version: PolicyVersion) -> bool:
    """Whether a treatment of the run serves the version."""
    named = {variant.config.get("policy_version_id") for variant in run.variants if variant.role == "treatment"}
    return str(version.id) in named


def compares(run: Run) -> bool:
    """Whether ending the run would end a comparison: one that serves its control alone can be closed at any time."""
    return any(
        variant.role == "treatment" and variant.withdrawn_at is None and variant.allocation for variant in run.variants
    )


def startable(runs: Sequence[Run], name: str) -> Run:
    """The last run of a name, which a candidate's run may follow. Raises ExperimentationError when there is none, or it is a draft."""
    if not runs:
        raise ExperimentationError(
            f"No experiment is called {name}: add it to config/experiments.yml and run `lifecycle sync`."
        )
    if runs[-1].status == "draft":
        raise ExperimentationError(f"{runs[-1].label} is a draft: set its status to active and run `lifecycle sync`.")
    return runs[-1]


def baseline_of(connection: psycopg.Connection[Any], candidate: PolicyVersion) -> PolicyVersion:
    """The version in production, which the candidate is held against. Raises ExperimentationError when it can't be a candidate."""
    production = production_version(connection, candidate.policy_name)
    if candidate.status != "active":
        raise ExperimentationError(
            f"{candidate.label} is {candidate.status}: only an active version can be a candidate."
        )
    if production is None:
        raise ExperimentationError(
            f"{candidate.policy_name} has no version in production for {candidate.label} to be held against."
        )
    if production.id == candidate.id:
        raise ExperimentationError(f"{candidate.label} is in production already, so there is nothing to try.")
    return production


def arm_config(latest: Run, version: PolicyVersion) -> dict[str, Any]:
    """What the experiment served before, with this version in it: both arms get the same params."""
    return {**(latest.shipped or latest.control).config, "policy_version_id": str(version.id)}
