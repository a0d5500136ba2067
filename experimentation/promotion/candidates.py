"""Opening a candidate's run: whether it can start or has to wait, its baseline, and what its arms serve."""

from collections.abc import Sequence
from decimal import Decimal
from typing import Any
from uuid import UUID

import psycopg

from experimentation.policies import production_version, version_by_id
from experimentation.runs import store as run_store
from experimentation.runs.allocations import MOST_FOR_A_NEW_TREATMENT, candidate_split
from experimentation.runs.layers import lock_layer
from experimentation.runs.lifecycle import complete_run, create_run, overrides_for, runs_of, start_run
from experimentation.runs.run import CandidateRun, ExperimentationError, NewVariant, PolicyVersion, Run
from foundation.audit import Change


def open_candidate_run(
    connection: psycopg.Connection[Any],
    *,
    experiment_name: str,
    policy_version_id: UUID,
    treatment_name: str,
    share: Decimal = MOST_FOR_A_NEW_TREATMENT,
    change: Change,
) -> CandidateRun:
    """Try a policy version: complete the last run with its control shipped, and open the next run, in one transaction.

    The new run has two equal arms of `share` (the control, which is the version in production, and the treatment) and a remainder that is
    not enrolled. It is for the same units: it keeps the last run's targeting, range of the layer, and overrides to variants that it has
    too. Called again for the same version, it returns the run opened for it, whatever its status. While another run of the experiment
    compares anything, nothing is changed and the candidate waits. Raises ExperimentationError for a share above 10 %, an experiment that
    does not exist or was never started, a version that can't be a candidate, and (LayerError) a range that another run has taken since.
    """
    try:
        shares = candidate_split(share)
    except ValueError as error:
        raise ExperimentationError(f"{treatment_name} of {experiment_name} can't start: {error}.") from None
    with connection.transaction():
        run_store.lock_name(connection, experiment_name)
        runs = runs_of(connection, experiment_name)
        candidate = version_by_id(connection, policy_version_id)
        for run in runs:
            if run.made_by == "promotion" and has_treatment(run, candidate):
                return CandidateRun(
                    "existing", run, f"{run.label} was opened for {candidate.label} and is {run.status}."
                )
        latest = require_started(runs, experiment_name)
        production = find_baseline(connection, candidate)
        if latest.status != "completed" and is_comparison(latest):
            return CandidateRun("waits", latest, f"{candidate.label} waits until {latest.label} ends.")
        if latest.layer is not None:
            lock_layer(connection, latest.layer.layer)
        if latest.status != "completed":
            complete_run(connection, latest.id, shipped=latest.control.name, change=change)
        baseline, trial = (arm_config(latest, version) for version in (production, candidate))
        arms = [
            NewVariant("control", "control", shares[0], baseline, f"{production.label}, in production"),
            NewVariant("remainder", "remainder", shares[1], baseline, "Not enrolled: served the baseline"),
            NewVariant(treatment_name, "treatment", shares[2], trial, f"{candidate.label}, the candidate"),
        ]
        opened = create_run(
            connection,
            name=experiment_name,
            unit_type=latest.unit_type,
            description=f"{candidate.label} against {production.label}.",
            made_by="promotion",
            policy_id=candidate.policy_id,
            variants=arms,
            targeting=latest.targeting,
            layer=latest.layer,
            overrides=overrides_for(latest, arms),
            change=change,
        )
        opened = start_run(connection, opened.id, change=change)
    percent = f"{(shares[2] * 100).normalize():f} %"
    return CandidateRun("opened", opened, f"{opened.label} gives {candidate.label} {percent} of the units.")


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
