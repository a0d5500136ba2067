"""A candidate's run: whether it can start, its baseline, and what its arms serve."""

from collections.abc import Sequence
from typing import Any

import psycopg

from experimentation.policies import production_version
from experimentation.runs.run import ExperimentationError, PolicyVersion, Run


def has_treatment(run: Run, version: PolicyVersion) -> bool:
    """Whether a treatment of the run serves the version."""
    served = {variant.config.get("policy_version_id") for variant in run.variants if variant.role == "treatment"}
    return str(version.id) in served


def is_comparison(run: Run) -> bool:
    """Whether the run compares anything. A run that serves only its control can be ended at any time."""
    return any(
        variant.role == "treatment" and variant.withdrawn_at is None and variant.allocation for variant in run.variants
    )


def require_started(runs: Sequence[Run], name: str) -> Run:
    """The last run, which a candidate's run can follow. Raises ExperimentationError if there is none or it is a draft."""
    if not runs:
        raise ExperimentationError(
            f"No experiment is called {name}: add it to config/experiments.yml and run `lifecycle sync`."
        )
    if runs[-1].status == "draft":
        raise ExperimentationError(f"{runs[-1].label} is a draft: set its status to active and run `lifecycle sync`.")
    return runs[-1]


def find_baseline(connection: psycopg.Connection[Any], candidate: PolicyVersion) -> PolicyVersion:
    """The version in production, which a candidate is compared with. Raises ExperimentationError if the version can't be a candidate."""
    production = production_version(connection, candidate.policy_name)
    if candidate.status != "active":
        raise ExperimentationError(
            f"{candidate.label} is {candidate.status}: only an active version can be a candidate."
        )
    if production is None:
        raise ExperimentationError(
            f"{candidate.policy_name} has no version in production to compare {candidate.label} with."
        )
    if production.id == candidate.id:
        raise ExperimentationError(f"{candidate.label} is in production already, so there is nothing to try.")
    return production


def arm_config(latest: Run, version: PolicyVersion) -> dict[str, Any]:
    """The config that the experiment served before, with this version: both arms get the same params."""
    return {**(latest.shipped or latest.control).config, "policy_version_id": str(version.id)}
