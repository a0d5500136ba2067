"""The assignment rules in order, as pure functions of a run and a unit."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from experimentation.assignments.bucketing import BUCKETS, VariantWalk, bucket_of, bucket_of_text
from experimentation.assignments.targeting import Targeting, TargetingInput

ASSIGNED, SHIPPED, WITHDRAWN, REMAINDER, OVERRIDE, NOT_ENROLLED = (
    "assigned",
    "shipped",
    "withdrawn",
    "remainder",
    "override",
    "not_enrolled",
)
ANSWERS = (ASSIGNED, SHIPPED, WITHDRAWN, REMAINDER, OVERRIDE, NOT_ENROLLED)
NOT_FOUND, UNIT_TYPE_MISMATCH, NOT_ACTIVE, NOT_STARTED, ENDED, PAUSED = (
    "not_found",
    "unit_type_mismatch",
    "not_active",
    "not_started",
    "ended",
    "paused",
)
HOLDOUT, LAYER_EXCLUDED, NOT_TARGETED, TARGETING_ERROR = (
    "holdout",
    "layer_excluded",
    "not_targeted",
    "targeting_error",
)
SKIPS = (
    NOT_FOUND, UNIT_TYPE_MISMATCH, NOT_ACTIVE, NOT_STARTED, ENDED, PAUSED, HOLDOUT, LAYER_EXCLUDED, NOT_TARGETED, TARGETING_ERROR,
)  # fmt: skip


class StaleExperimentsError(Exception):
    """The experiments changed in the database after they were loaded. Load them again and repeat the decision."""


@dataclass(frozen=True)
class ServedVariant:
    """A variant as clients get it. `config` is complete; `servable` is false if its policy version is archived or unknown."""

    id: UUID
    name: str
    role: str
    allocation: Decimal
    config: Mapping[str, Any]
    withdrawn: bool = False
    servable: bool = True


@dataclass(frozen=True)
class ServedLayer:
    """The buckets of a layer that a run may enrol: `first` ≤ bucket < `end`. Buckets below `holdout` get no run of the layer."""

    id: UUID
    holdout: int
    first: int
    end: int

    @classmethod
    def of(cls, layer_id: UUID, holdout: Decimal, first: int, end: int) -> "ServedLayer":
        """The layer with `holdout` given as a share from 0 to 1."""
        return cls(layer_id, int(holdout * BUCKETS), first, end)

    def exclusion(self, unit_id: str) -> str | None:
        """Why the unit is outside this range, or None if it is inside. Raises UnicodeEncodeError if `unit_id` holds a lone surrogate."""
        bucket = bucket_of(self.id, unit_id)
        if bucket < self.holdout:
            return HOLDOUT
        return None if self.first <= bucket < self.end else LAYER_EXCLUDED


@dataclass(frozen=True, slots=True)
class Decision:
    """One answer. Without a variant, the experiment is skipped for `reason`. If `new`, commit the unit's row before answering."""

    reason: str
    variant: ServedVariant | None = None
    enrolled: bool = False
    new: bool = False


@dataclass(frozen=True)
class ServedRun:
    """One run of an experiment: its variants in the order of `position`, its current epoch (0: none yet) and its window (UTC, inclusive).

    `overrides` maps unit ids to variant names. `fingerprint` changes with anything that clients can see. Three tuples hold one decision
    per variant: `as_stored` for a unit whose row has that variant, `as_new` for a unit whose bucket falls on it, and `as_peeked` for a
    unit that would get it but is not enrolled.
    """

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
    targeting: Targeting | None = None
    layer: ServedLayer | None = None
    overrides: Mapping[str, str] = field(default_factory=dict)
    fingerprint: str = ""
    by_id: Mapping[UUID, ServedVariant] = field(init=False, repr=False, compare=False)
    walk: VariantWalk | None = field(init=False, repr=False, compare=False)
    control: ServedVariant | None = field(init=False, repr=False, compare=False)
    overridden: Mapping[str, Decision] = field(init=False, repr=False, compare=False)
    when_completed: Decision = field(init=False, repr=False, compare=False)
    as_stored: tuple[Decision, ...] = field(init=False, repr=False, compare=False)
    as_new: tuple[Decision, ...] = field(init=False, repr=False, compare=False)
    as_peeked: tuple[Decision, ...] = field(init=False, repr=False, compare=False)
    index_of: Mapping[UUID, int] = field(init=False, repr=False, compare=False)
    bucket_prefix: str = field(init=False, repr=False, compare=False)
    cache_key: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Precompute what each request needs. A run with no nonzero allocation has no walk."""
        roles = {variant.role: variant for variant in reversed(self.variants)}
        allocations = [variant.allocation for variant in self.variants]
        walk = VariantWalk(allocations) if any(allocation > 0 for allocation in allocations) else None
        object.__setattr__(self, "by_id", {variant.id: variant for variant in self.variants})
        object.__setattr__(self, "walk", walk)
        object.__setattr__(self, "control", roles.get("control"))
        by_name = {variant.name: variant for variant in self.variants if variant.servable}
        overridden = {name: Decision(OVERRIDE, variant) for name, variant in by_name.items()}
        by_unit = {unit: overridden[name] for unit, name in self.overrides.items() if name in overridden}
        object.__setattr__(self, "overridden", by_unit)
        shipped = next((variant for variant in self.variants if variant.id == self.shipped_variant_id), None)
        completed = Decision(SHIPPED, shipped) if shipped is not None and shipped.servable else Decision(NOT_ACTIVE)
        object.__setattr__(self, "when_completed", completed)
        as_stored = tuple(
            Decision(ASSIGNED, variant, enrolled=True) if _is_served(variant) else _baseline(self)
            for variant in self.variants
        )
        object.__setattr__(self, "as_stored", as_stored)
        object.__setattr__(self, "as_new", tuple(_of_new(self, variant) for variant in self.variants))
        object.__setattr__(self, "as_peeked", tuple(Decision(NOT_ENROLLED, variant) for variant in self.variants))
        object.__setattr__(self, "bucket_prefix", f"{self.id}:")
        object.__setattr__(self, "index_of", {variant.id: index for index, variant in enumerate(self.variants)})
        object.__setattr__(self, "cache_key", f"assignment:{self.id}:")


@dataclass(frozen=True)
class ServedExperiments:
    """All experiments at one moment: the answering run of each name, the run id of each variant, and every run by its id."""

    runs: Mapping[str, ServedRun]
    variants: Mapping[UUID, UUID]
    by_id: Mapping[UUID, ServedRun] = field(default_factory=dict)

    @classmethod
    def of(cls, runs: Iterable[ServedRun]) -> "ServedExperiments":
        """From all runs. The latest started run answers for its name; a draft answers only if no run has started."""
        ordered = sorted(runs, key=lambda run: (run.status != "draft", run.run))
        return cls(
            {run.name: run for run in ordered},
            {variant.id: run.id for run in ordered for variant in run.variants},
            {run.id: run for run in ordered},
        )


def judge_run(run: ServedRun | None, unit_type: str, unit_id: str, now: datetime) -> Decision | None:
    """Applies the rules that need no stored row. Returns None if the decision depends on the row."""
    if run is None:
        return Decision(NOT_FOUND)
    if run.unit_type != unit_type:
        return Decision(UNIT_TYPE_MISMATCH)
    if run.status == "draft":
        return Decision(NOT_ACTIVE)
    if run.status == "completed":
        return run.when_completed
    # Overrides come before the window: testers want to see a variant before users do.
    if run.overridden and unit_id in run.overridden:
        return run.overridden[unit_id]
    return _outside_window(run, now)


def judge_stored(run: ServedRun, stored_variant_id: UUID) -> Decision:
    """Applies the rules for a unit that has a row, after `judge_run` returned None.

    Raises StaleExperimentsError if the loaded run does not have the row's variant.
    """
    index = run.index_of.get(stored_variant_id)
    if index is None:
        raise StaleExperimentsError(
            f"Variant {stored_variant_id} of {run.name} run {run.run} is newer than the loaded run."
        )
    return run.as_stored[index]


def judge_new(run: ServedRun, unit_id: str, targeting_input: TargetingInput) -> Decision:
    """Applies the rules for a unit without a row, after `judge_run` returned None.

    A decision with `new` is valid only once its row is stored. Raises UnicodeEncodeError if `unit_id` holds a lone surrogate.
    """
    excluded = _exclusion(run, unit_id, targeting_input)
    if excluded is not None or run.walk is None:
        return Decision(excluded or NOT_ACTIVE)
    return run.as_new[run.walk.choose(bucket_of_text(run.bucket_prefix + unit_id))]


def peeked(run: ServedRun, decision: Decision) -> Decision:
    """The same answer for a request that does not enrol: the variant that the unit would get."""
    return run.as_peeked[run.index_of[decision.variant.id]] if decision.new and decision.variant else decision


def complete_config(
    config: Mapping[str, Any], defaults: Mapping[str, Any], model_name: str, model_version: str
) -> dict[str, Any]:
    """The variant's config with the params and the model of its policy version. The variant's params override the defaults."""
    return {
        **config,
        "params": {**defaults, **(config.get("params") or {})},
        "mlflow_model_name": model_name,
        "mlflow_model_version": model_version,
        "mlflow_model_uri": f"models:/{model_name}/{model_version}",
    }


def _exclusion(run: ServedRun, unit_id: str, targeting_input: TargetingInput) -> str | None:
    """Why a unit without a row gets no variant, or None if it may get one."""
    if run.status == "paused":
        return PAUSED
    if run.walk is None or run.epoch < 1:
        return NOT_ACTIVE
    layer_exclusion = None if run.layer is None else run.layer.exclusion(unit_id)
    if layer_exclusion is not None or run.targeting is None:
        return layer_exclusion
    targeted = run.targeting.holds(targeting_input)
    if targeted is None:
        return TARGETING_ERROR
    return None if targeted else NOT_TARGETED


def _outside_window(run: ServedRun, now: datetime) -> Decision | None:
    if run.start_at is not None and now < run.start_at:
        return Decision(NOT_STARTED)
    if run.end_at is not None and now > run.end_at:
        return Decision(ENDED)
    return None


def _is_served(variant: ServedVariant) -> bool:
    return variant.servable and not variant.withdrawn


def _of_new(run: ServedRun, variant: ServedVariant) -> Decision:
    """The decision for a new unit whose bucket falls on the variant."""
    if not _is_served(variant):
        return _baseline(run)
    if variant.role == "remainder":
        return Decision(REMAINDER, variant)
    return Decision(ASSIGNED, variant, enrolled=True, new=True)


def _baseline(run: ServedRun) -> Decision:
    """The decision for units of a withdrawn variant: control, without enrolment. Skipped if control is not servable."""
    if run.control is None or not run.control.servable:
        return Decision(NOT_ACTIVE)
    return Decision(WITHDRAWN, run.control)
