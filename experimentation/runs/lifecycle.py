"""The lifecycle of runs: creating, changing, starting, pausing and completing them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import psycopg

from experimentation.assignments.targeting import Targeting, TargetingError
from experimentation.runs import store as run_store
from experimentation.runs.allocations import (
    MOST_FOR_A_NEW_TREATMENT,
    WHOLE,
    ramp_shares,
    shrink_shares,
)
from experimentation.runs.audit_trail import audit_run_change
from experimentation.runs.layers import LayerError, check_range, lock_layer
from experimentation.runs.run import (
    ExperimentationError,
    LayerRange,
    MadeBy,
    NewVariant,
    Run,
    RunStatus,
    UnitType,
)
from experimentation.runs.store import load_run, runs_of
from foundation.audit import Change

__all__ = [
    "add_variant",
    "complete_run",
    "create_run",
    "load_run",
    "pause_run",
    "ramp_run",
    "replace_variants",
    "resume_run",
    "runs_of",
    "set_overrides",
    "start_run",
    "update_run",
]


def create_run(
    connection: psycopg.Connection[Any],
    *,
    name: str,
    unit_type: UnitType,
    variants: Sequence[NewVariant],
    description: str | None = None,
    made_by: MadeBy = "file",
    policy_id: UUID | None = None,
    start_at: datetime | None = None,
    end_at: datetime | None = None,
    targeting: str | None = None,
    layer: LayerRange | None = None,
    overrides: Mapping[str, str] | None = None,
    leaving: Collection[UUID] = (),
    change: Change,
) -> Run:
    """Create the next run of an experiment, as a draft. Runs `leaving` their range of the layer do so in this transaction.

    Raises ExperimentationError if the experiment has a run that is not completed, `targeting` is invalid, an override names an unknown
    variant, or (LayerError) the range is not free.
    """
    with connection.transaction():
        run_store.lock_name(connection, name)
        for run in runs_of(connection, name):
            if run.status != "completed":
                raise ExperimentationError(f"{run.label} is {run.status}: complete it before creating another run.")
        _check_targeting(name, targeting)
        _check_overrides(name, overrides or {}, variants)
        if layer is not None:
            check_range(connection, layer, name, leaving=leaving)
        run_id = run_store.insert_run(
            connection,
            name=name,
            unit_type=unit_type,
            made_by=made_by,
            description=description,
            policy_id=policy_id,
            start_at=start_at,
            end_at=end_at,
            targeting=targeting,
            layer=layer,
            overrides=overrides or {},
        )
        run_store.insert_variants(connection, run_id, variants)
        return audit_run_change(connection, None, run_id, "experiment.created", change)


def update_run(
    connection: psycopg.Connection[Any],
    run_id: UUID,
    *,
    description: str | None,
    unit_type: UnitType,
    start_at: datetime | None,
    end_at: datetime | None,
    targeting: str | None,
    layer: LayerRange | None,
    overrides: Mapping[str, str],
    leaving: Collection[UUID] = (),
    change: Change,
) -> Run:
    """Change everything but the variants; changing the `targeting` of a started run opens an epoch.

    Raises ExperimentationError when changing the unit type, layer or range (LayerError) of a started run, or the targeting of a completed
    run; and as `create_run` does.
    """
    with connection.transaction():
        if layer is not None:
            # The layer is locked before the run, as in `open_candidate_run`.
            lock_layer(connection, layer.layer)
        before = load_run(connection, run_id, hold=True)
        if unit_type != before.unit_type and before.status != "draft":
            raise ExperimentationError(f"{before.label} is {before.status}: only a draft's unit_type can be changed.")
        if layer != before.layer and before.status != "draft":
            raise LayerError(
                f"{before.label} is {before.status}: only a draft's layer and range can be changed, or units would be in two "
                "experiments of the layer."
            )
        if layer is not None and layer != before.layer:
            check_range(connection, layer, before.label, leaving={*leaving, run_id})
        if targeting != before.targeting:
            if before.status == "completed":
                raise ExperimentationError(f"{before.label} is completed, so its targeting can't change any more.")
            _check_targeting(before.label, targeting)
        if overrides != before.overrides:
            _check_overrides(before.label, overrides, before.variants)
        after = replace(
            before,
            description=description,
            unit_type=unit_type,
            start_at=start_at,
            end_at=end_at,
            targeting=targeting,
            layer=layer,
            overrides=overrides,
        )
        run_store.set_details(connection, after)
        if targeting != before.targeting and before.status != "draft":
            run_store.open_epoch(connection, run_id)
        return audit_run_change(connection, before, run_id, "experiment.updated", change)


def set_overrides(
    connection: psycopg.Connection[Any], run_id: UUID, overrides: Mapping[str, str], *, change: Change
) -> Run:
    """Change a run's overrides, and nothing else. Raises ExperimentationError for an unknown variant."""
    with connection.transaction():
        before = load_run(connection, run_id, hold=True)
        _check_overrides(before.label, overrides, before.variants)
        run_store.set_details(connection, replace(before, overrides=overrides))
        return audit_run_change(connection, before, run_id, "experiment.updated", change)


def replace_variants(
    connection: psycopg.Connection[Any],
    run_id: UUID,
    variants: Sequence[NewVariant],
    policy_id: UUID | None,
    *,
    change: Change,
) -> Run:
    """Replace a draft's variants, and drop overrides to removed ones. Raises ExperimentationError if the run was started."""
    with connection.transaction():
        before = load_run(connection, run_id, hold=True)
        if before.status != "draft":
            raise ExperimentationError(f"{before.label} is {before.status}: only a draft's variants can be replaced.")
        run_store.delete_variants(connection, run_id)
        run_store.insert_variants(connection, run_id, variants)
        kept = overrides_for(before, variants)
        run_store.set_details(connection, replace(before, policy_id=policy_id, overrides=kept))
        return audit_run_change(connection, before, run_id, "experiment.variants_replaced", change)


def add_variant(connection: psycopg.Connection[Any], run_id: UUID, variant: NewVariant, *, change: Change) -> Run:
    """Add a treatment to a running split without a remainder: the other variants shrink in proportion, and an epoch opens.

    Raises ExperimentationError for a draft, a completed run, or a share above 10 %.
    """
    with connection.transaction():
        before = load_run(connection, run_id, hold=True)
        if before.status not in ("active", "paused"):
            raise ExperimentationError(
                f"{before.label} is {before.status}: variants can only be added to a running experiment."
            )
        if variant.allocation > MOST_FOR_A_NEW_TREATMENT:
            raise ExperimentationError(
                f"{variant.name} of {before.label} starts with {variant.allocation}: a new treatment gets at most "
                f"{MOST_FOR_A_NEW_TREATMENT}."
            )
        shares = shrink_shares([other.allocation for other in before.variants], variant.allocation)
        for other, share in zip(before.variants, shares, strict=True):
            run_store.set_allocation(connection, other.id, share)
        run_store.insert_variants(connection, run_id, [variant], before.variants[-1].position + 1)
        run_store.open_epoch(connection, run_id)
        run_store.set_details(connection, before)
        return audit_run_change(connection, before, run_id, "experiment.variant_added", change)


def ramp_run(connection: psycopg.Connection[Any], run_id: UUID, share: Decimal, *, change: Change) -> Run:
    """Ramp every arm of a running run of the file to this share, out of the remainder; an epoch opens. Withdrawn arms keep their share.

    Raises ExperimentationError for any other run, a run without a remainder, or a share at which an arm would shrink or a unit move.
    """
    with connection.transaction():
        before = load_run(connection, run_id, hold=True)
        if before.made_by != "file":
            raise ExperimentationError(
                f"{before.label} belongs to promotion: only runs of config/experiments.yml can be ramped by hand."
            )
        if before.status not in ("active", "paused"):
            raise ExperimentationError(f"{before.label} is {before.status}: only a running experiment is ramped.")
        roles = [variant.role for variant in before.variants]
        if roles.count("remainder") != 1:
            raise ExperimentationError(
                f"{before.label} has no remainder, so its arms can't grow without moving units: give the next experiment a remainder."
            )
        kept = {place for place, variant in enumerate(before.variants) if variant.withdrawn_at is not None}
        try:
            allocations = [variant.allocation for variant in before.variants]
            shares = ramp_shares(allocations, share, roles.index("remainder"), kept)
        except ValueError as error:
            raise ExperimentationError(f"{before.label} can't be ramped to {share}: {error}.") from None
        for variant, allocation in zip(before.variants, shares, strict=True):
            run_store.set_allocation(connection, variant.id, allocation)
        run_store.open_epoch(connection, run_id)
        run_store.set_details(connection, before)
        return audit_run_change(connection, before, run_id, "experiment.ramped", change)


def start_run(connection: psycopg.Connection[Any], run_id: UUID, *, change: Change) -> Run:
    """Draft → active, with epoch 1. Raises ExperimentationError unless allocations sum to 1 and exactly one variant is the control."""
    with connection.transaction():
        run = load_run(connection, run_id, hold=True)
        total = sum(variant.allocation for variant in run.variants)
        if total != WHOLE:
            raise ExperimentationError(f"The allocations of {run.label} sum to {total}, not to 1: correct them first.")
        if [variant.role for variant in run.variants].count("control") != 1:
            raise ExperimentationError(f"{run.label} can't start without exactly one control: correct its variants.")
        if run.status == "draft":
            run_store.open_epoch(connection, run_id)
        return _set_status(connection, run, ("draft",), "active", None, "experiment.started", change)


def pause_run(connection: psycopg.Connection[Any], run_id: UUID, *, change: Change) -> Run:
    """Active → paused: enrolled units keep their variant, new units are skipped. Raises ExperimentationError."""
    with connection.transaction():
        run = load_run(connection, run_id, hold=True)
        return _set_status(connection, run, ("active",), "paused", None, "experiment.paused", change)


def resume_run(connection: psycopg.Connection[Any], run_id: UUID, *, change: Change) -> Run:
    """Paused → active. Raises ExperimentationError."""
    with connection.transaction():
        run = load_run(connection, run_id, hold=True)
        return _set_status(connection, run, ("paused",), "active", None, "experiment.resumed", change)


def complete_run(
    connection: psycopg.Connection[Any], run_id: UUID, *, shipped: str | None = None, change: Change
) -> Run:
    """Active or paused → completed, for good. From then on every unit gets the `shipped` variant, or none if nothing is shipped.

    Raises ExperimentationError if the run is a draft or completed, or has no such variant.
    """
    with connection.transaction():
        run = load_run(connection, run_id, hold=True)
        if shipped is not None and shipped not in {variant.name for variant in run.variants}:
            names = ", ".join(variant.name for variant in run.variants)
            raise ExperimentationError(f"{run.label} has no variant {shipped} to ship: it has {names}.")
        variant_id = None if shipped is None else run.variant(shipped).id
        return _set_status(
            connection, run, ("active", "paused"), "completed", variant_id, "experiment.completed", change
        )


def _check_targeting(name: str, rule: str | None) -> None:
    try:
        if rule is not None:
            Targeting(rule)
    except TargetingError as error:
        raise ExperimentationError(f"The targeting of {name} can't be used: {error}.") from None


def _check_overrides(name: str, overrides: Mapping[str, str], variants: Sequence[NewVariant]) -> None:
    for unit_id, variant in overrides.items():
        if variant not in {existing.name for existing in variants}:
            raise ExperimentationError(
                f"An override of {name} gives {unit_id} the variant {variant}, which it does not have."
            )


def overrides_for(run: Run, variants: Sequence[NewVariant]) -> dict[str, str]:
    """The run's overrides to these variants."""
    names = {variant.name for variant in variants}
    return {unit_id: name for unit_id, name in run.overrides.items() if name in names}


def _set_status(
    connection: psycopg.Connection[Any],
    run: Run,
    allowed: tuple[RunStatus, ...],
    status: RunStatus,
    shipped_variant_id: UUID | None,
    action: str,
    change: Change,
) -> Run:
    if run.status == status:
        raise ExperimentationError(f"{run.label} is {status} already.")
    if run.status not in allowed:
        raise ExperimentationError(f"{run.label} is {run.status}, so it can't become {status}.")
    run_store.set_status(connection, run.id, status, shipped_variant_id)
    return audit_run_change(connection, run, run.id, action, change)
