"""The assignment rules in their order, as pure functions over what is known of a run and a unit."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from experimentation.assignments.bucketing import BUCKETS, VariantWalk, bucket_of, bucket_of_text
from experimentation.assignments.targeting import Asker, Targeting

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
class ServedLayer:
    """The buckets of a layer that a run may enrol: from `first` on and before `end`. Those below `holdout` get none of its runs."""

    id: UUID
    holdout: int
    first: int
    end: int

    @classmethod
    def of(cls, layer_id: UUID, holdout: Decimal, first: int, end: int) -> "ServedLayer":
        """`holdout` as a share."""
        return cls(layer_id, int(holdout * BUCKETS), first, end)

    def keeps_out(self, unit_id: str) -> str | None:
        """Why the unit gets no experiment of this range, if so. Raises UnicodeEncodeError for a lone surrogate."""
        bucket = bucket_of(self.id, unit_id)
        if bucket < self.holdout:
            return HOLDOUT
        return None if self.first <= bucket < self.end else LAYER_EXCLUDED


@dataclass(frozen=True, slots=True)
class Decision:
    """One answer. Without a variant it is skipped, for `reason`. With `new`, the row must be committed before it is answered."""

    reason: str
    variant: ServedVariant | None = None
    enrolled: bool = False
    new: bool = False


@dataclass(frozen=True)
class ServedRun:
    """One run of an experiment, with its variants in walking order, its current epoch (0: none yet) and its window (UTC, ends served).

    `overrides` maps unit ids to names of variants. `fingerprint` differs wherever anything that is served does. `as_stored` is what a unit
    is answered that has a row of the variant at that place, `as_new` one whose bucket falls on it.
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
    over: Decision = field(init=False, repr=False, compare=False)
    as_stored: tuple[Decision, ...] = field(init=False, repr=False, compare=False)
    as_new: tuple[Decision, ...] = field(init=False, repr=False, compare=False)
    as_peeked: tuple[Decision, ...] = field(init=False, repr=False, compare=False)
    places: Mapping[UUID, int] = field(init=False, repr=False, compare=False)
    hashed_with: str = field(init=False, repr=False, compare=False)
    cache_key: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Derive what each request would otherwise compute again. A run without any allocation gets no walk."""
        roles = {variant.role: variant for variant in reversed(self.variants)}
        allocations = [variant.allocation for variant in self.variants]
        walk = VariantWalk(allocations) if any(allocation > 0 for allocation in allocations) else None
        object.__setattr__(self, "by_id", {variant.id: variant for variant in self.variants})
        object.__setattr__(self, "walk", walk)
        object.__setattr__(self, "control", roles.get("control"))
        by_name = {variant.name: variant for variant in self.variants if variant.servable}
        overridden = {name: Decision(OVERRIDE, variant) for name, variant in by_name.items()}
        shown = {unit: overridden[name] for unit, name in self.overrides.items() if name in overridden}
        object.__setattr__(self, "overridden", shown)
        shipped = next((variant for variant in self.variants if variant.id == self.shipped_variant_id), None)
        over = Decision(SHIPPED, shipped) if shipped is not None and shipped.servable else Decision(NOT_ACTIVE)
        object.__setattr__(self, "over", over)
        as_stored = tuple(
            Decision(ASSIGNED, variant, enrolled=True) if _is_served(variant) else _baseline(self)
            for variant in self.variants
        )
        object.__setattr__(self, "as_stored", as_stored)
        object.__setattr__(self, "as_new", tuple(_of_new(self, variant) for variant in self.variants))
        object.__setattr__(self, "as_peeked", tuple(Decision(NOT_ENROLLED, variant) for variant in self.variants))
        object.__setattr__(self, "hashed_with", f"{self.id}:")
        object.__setattr__(self, "places", {variant.id: place for place, variant in enumerate(self.variants)})
        object.__setattr__(self, "cache_key", f"assignment:{self.id}:")


@dataclass(frozen=True)
class Catalogue:
    """What can be asked for: the run that answers for each name, every variant there is with its run, every run by its id."""

    runs: Mapping[str, ServedRun]
    variants: Mapping[UUID, UUID]
    by_id: Mapping[UUID, ServedRun] = field(default_factory=dict)

    @classmethod
    def of(cls, runs: Iterable[ServedRun]) -> "Catalogue":
        """From all runs of all names: the latest started one answers for its name, a draft only where none has started."""
        every = sorted(runs, key=lambda run: (run.status != "draft", run.run))
        return cls(
            {run.name: run for run in every},
            {variant.id: run.id for run in every for variant in run.variants},
            {run.id: run for run in every},
        )


def judge_run(run: ServedRun | None, unit_type: str, unit_id: str, now: datetime) -> Decision | None:
    """The rules that need no stored row; None when the row decides."""
    if run is None:
        return Decision(NOT_FOUND)
    if run.unit_type != unit_type:
        return Decision(UNIT_TYPE_MISMATCH)
    if run.status == "draft":
        return Decision(NOT_ACTIVE)
    if run.status == "completed":
        return run.over
    # Before the window: who looks at a variant wants to see it before its users do.
    if run.overridden and unit_id in run.overridden:
        return run.overridden[unit_id]
    return _outside_window(run, now)


def judge_stored(run: ServedRun, stored_variant_id: UUID) -> Decision:
    """The rules for a unit that has a row, for a run that `judge_run` left open.

    Raises StaleCatalogueError when the row names a variant that the run is not known to have.
    """
    place = run.places.get(stored_variant_id)
    if place is None:
        raise StaleCatalogueError(f"Variant {stored_variant_id} of {run.name} run {run.run} is not known yet.")
    return run.as_stored[place]


def judge_new(run: ServedRun, unit_id: str, asker: Asker) -> Decision:
    """The rules for a unit without a row, for a run that `judge_run` left open.

    `new` in the answer means: it holds only once its row is stored. Raises UnicodeEncodeError when `unit_id` holds a lone surrogate.
    """
    shut_out = _shut_out(run, unit_id, asker)
    if shut_out is not None or run.walk is None:
        return Decision(shut_out or NOT_ACTIVE)
    return run.as_new[run.walk.choose(bucket_of_text(run.hashed_with + unit_id))]


def peeked(run: ServedRun, decision: Decision) -> Decision:
    """The same answer for who only looks: what the unit would get, and it is not enrolled."""
    return run.as_peeked[run.places[decision.variant.id]] if decision.new and decision.variant else decision


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


def _shut_out(run: ServedRun, unit_id: str, asker: Asker) -> str | None:
    """Why a unit without a row is not looked at any further."""
    if run.status == "paused":
        return PAUSED
    if run.walk is None or run.epoch < 1:
        return NOT_ACTIVE
    kept_out = None if run.layer is None else run.layer.keeps_out(unit_id)
    if kept_out is not None or run.targeting is None:
        return kept_out
    targeted = run.targeting.holds(asker)
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
    """What a unit is answered whose bucket falls on the variant."""
    if not _is_served(variant):
        return _baseline(run)
    if variant.role == "remainder":
        return Decision(REMAINDER, variant)
    return Decision(ASSIGNED, variant, enrolled=True, new=True)


def _baseline(run: ServedRun) -> Decision:
    """What units of a withdrawn variant get: control's config, outside of the experiment. Skipped when there is none to serve."""
    if run.control is None or not run.control.servable:
        return Decision(NOT_ACTIVE)
    return Decision(WITHDRAWN, run.control)
