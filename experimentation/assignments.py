"""The assignment rules in their order, as pure functions over what is known of a run and a unit.

Belongs here: which rule answers, and the complete configuration of a variant. Does not belong here: SQL (assignment_store.py), HTTP.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from experimentation.bucketing import VariantWalk, bucket_of

ASSIGNED, SHIPPED, WITHDRAWN, REMAINDER = "assigned", "shipped", "withdrawn", "remainder"
NOT_FOUND, UNIT_TYPE_MISMATCH, NOT_ACTIVE, NOT_STARTED, ENDED, PAUSED = (
    "not_found",
    "unit_type_mismatch",
    "not_active",
    "not_started",
    "ended",
    "paused",
)


class StaleCatalogueError(Exception):
    """The database has moved on from the catalogue that was decided with: load it again and decide again."""


@dataclass(frozen=True)
class ServedVariant:
    """A variant as it is served. `config` is complete; `servable` is false when its policy version is archived or unknown."""

    id: UUID
    name: str
    role: str
    allocation: Decimal
    config: Mapping[str, Any]
    withdrawn: bool = False
    servable: bool = True


@dataclass(frozen=True)
class ServedRun:
    """One run of an experiment, with its variants in walking order, its current epoch (0: none yet) and its window (UTC, ends served)."""

    id: UUID
    name: str
    run: int
    status: str
    unit_type: str
    variants: tuple[ServedVariant, ...]
    epoch: int = 1
    start_at: datetime | None = None
    end_at: datetime | None = None
    shipped_variant_id: UUID | None = None
    by_id: Mapping[UUID, ServedVariant] = field(init=False, repr=False, compare=False)
    walk: VariantWalk | None = field(init=False, repr=False, compare=False)
    control: ServedVariant | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Derive what each request would otherwise compute again. A run without any allocation gets no walk."""
        roles = {variant.role: variant for variant in reversed(self.variants)}
        allocations = [variant.allocation for variant in self.variants]
        walk = VariantWalk(allocations) if any(allocation > 0 for allocation in allocations) else None
        object.__setattr__(self, "by_id", {variant.id: variant for variant in self.variants})
        object.__setattr__(self, "walk", walk)
        object.__setattr__(self, "control", roles.get("control"))


@dataclass(frozen=True)
class Catalogue:
    """What can be asked for: the run that answers for each name, and every variant there is with its run."""

    runs: Mapping[str, ServedRun]
    variants: Mapping[UUID, UUID]
    run_ids: frozenset[UUID] = frozenset()

    @classmethod
    def of(cls, runs: Iterable[ServedRun]) -> "Catalogue":
        """From all runs of all names: the latest started one answers for its name, a draft only where none has started."""
        every = sorted(runs, key=lambda run: (run.status != "draft", run.run))
        return cls(
            {run.name: run for run in every},
            {variant.id: run.id for run in every for variant in run.variants},
            frozenset(run.id for run in every),
        )


@dataclass(frozen=True, slots=True)
class Decision:
    """One answer. Without a variant it is skipped, for `reason`. With `new`, the row must be committed before it is answered."""

    reason: str
    variant: ServedVariant | None = None
    enrolled: bool = False
    new: bool = False


def judge_run(run: ServedRun | None, unit_type: str, now: datetime) -> Decision | None:
    """The rules that hold for every unit alike; None when the unit itself decides."""
    if run is None:
        return Decision(NOT_FOUND)
    if run.unit_type != unit_type:
        return Decision(UNIT_TYPE_MISMATCH)
    if run.status == "draft":
        return Decision(NOT_ACTIVE)
    if run.status == "completed":
        shipped = run.by_id.get(run.shipped_variant_id) if run.shipped_variant_id else None
        return Decision(SHIPPED, shipped) if shipped is not None and shipped.servable else Decision(NOT_ACTIVE)
    return _outside_window(run, now)


def judge_unit(run: ServedRun, unit_id: str, stored_variant_id: UUID | None) -> Decision:
    """The rules that look at the unit and its stored row, for a run that `judge_run` left open.

    Raises StaleCatalogueError when the row names a variant that the run is not known to have.
    """
    if stored_variant_id is not None:
        stored = run.by_id.get(stored_variant_id)
        if stored is None:
            raise StaleCatalogueError(f"Variant {stored_variant_id} of {run.name} run {run.run} is not known yet.")
        return Decision(ASSIGNED, stored, enrolled=True) if _is_served(stored) else _baseline(run)
    if run.status == "paused":
        return Decision(PAUSED)
    if run.walk is None or run.epoch < 1:
        return Decision(NOT_ACTIVE)
    variant = run.variants[run.walk.choose(bucket_of(run.id, unit_id))]
    if not _is_served(variant):
        return _baseline(run)
    if variant.role == "remainder":
        return Decision(REMAINDER, variant)
    return Decision(ASSIGNED, variant, enrolled=True, new=True)


def complete_config(
    config: Mapping[str, Any], defaults: Mapping[str, Any], model_name: str, model_version: str
) -> dict[str, Any]:
    """The variant's config with the params and the model of its policy version; a param of the variant wins over a default."""
    return {
        **config,
        "params": {**defaults, **(config.get("params") or {})},
        "mlflow_model_name": model_name,
        "mlflow_model_version": model_version,
        "mlflow_model_uri": f"models:/{model_name}/{model_version}",
    }


def _outside_window(run: ServedRun, now: datetime) -> Decision | None:
    if run.start_at is not None and now < run.start_at:
        return Decision(NOT_STARTED)
    if run.end_at is not None and now > run.end_at:
        return Decision(ENDED)
    return None


def _is_served(variant: ServedVariant) -> bool:
    return variant.servable and not variant.withdrawn


def _baseline(run: ServedRun) -> Decision:
    """What units of a withdrawn variant get: control's config, outside of the experiment. Skipped when there is none to serve."""
    if run.control is None or not run.control.servable:
        return Decision(NOT_ACTIVE)
    return Decision(WITHDRAWN, run.control)
