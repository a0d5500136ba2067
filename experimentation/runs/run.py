"""Policies, layers, runs and variants as small frozen records."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal
from uuid import UUID

from foundation.errors import LifecycleError

PolicyVersionStatus = Literal["active", "deprecated", "archived"]
RunStatus = Literal["draft", "active", "paused", "completed"]
UnitType = Literal["user", "household", "session"]
Role = Literal["control", "treatment", "remainder"]
MadeBy = Literal["file", "promotion"]
Json = Mapping[str, Any]


class ExperimentationError(LifecycleError):
    """A change of policies, experiments or layers that can't be made; the message says why and what to do."""


@dataclass(frozen=True)
class Policy:
    """A versioned way of serving a product. Units outside of any experiment get the version `production_version_id`."""

    id: UUID
    name: str
    description: str | None = None
    production_version_id: UUID | None = None


@dataclass(frozen=True)
class PolicyVersion:
    """A version of a policy, permanently pinned to a registered model version and default params."""

    id: UUID
    policy_id: UUID
    policy_name: str
    version: int
    mlflow_model_name: str
    mlflow_model_version: str
    config_defaults: Json = field(default_factory=dict)
    status: PolicyVersionStatus = "active"
    description: str | None = None

    @property
    def label(self) -> str:
        """`planner_policy@3`, as configuration files name it."""
        return f"{self.policy_name}@{self.version}"

    @property
    def model_uri(self) -> str:
        """`models:/planner_model/4`."""
        return f"models:/{self.mlflow_model_name}/{self.mlflow_model_version}"


@dataclass(frozen=True)
class Layer:
    """Experiments that exclude each other. Units in its first `holdout` × 10,000 buckets get none of them."""

    id: UUID
    name: str
    holdout: Decimal = Decimal(0)
    description: str | None = None


@dataclass(frozen=True)
class LayerRange:
    """The buckets [first, end) of a layer, whose units an experiment may enrol: 0 ≤ first < end ≤ 10,000."""

    layer: str
    first: int
    end: int


@dataclass(frozen=True)
class NewVariant:
    """A variant to be created. `allocation` is an exact share of units in [0, 1] with at most 4 decimals."""

    name: str
    role: Role
    allocation: Decimal
    config: Json = field(default_factory=dict)
    description: str | None = None


@dataclass(frozen=True, kw_only=True)
class Variant(NewVariant):
    """A variant of a run. `config` is as stored: with `policy_version_id` and `params` if it serves a model."""

    id: UUID
    position: int
    withdrawn_at: datetime | None = None


@dataclass(frozen=True)
class Run:
    """A run of an experiment, with its variants in the order of their buckets.

    `targeting` is a rule in CEL (targeting.py), `overrides` maps unit ids to names of variants.
    """

    id: UUID
    name: str
    run: int
    status: RunStatus
    unit_type: UnitType
    made_by: MadeBy
    variants: tuple[Variant, ...] = ()
    description: str | None = None
    policy_id: UUID | None = None
    shipped_variant_id: UUID | None = None
    start_at: datetime | None = None
    end_at: datetime | None = None
    targeting: str | None = None
    layer: LayerRange | None = None
    overrides: Mapping[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """`weekly_planner run 2`."""
        return f"{self.name} run {self.run}"

    @property
    def control(self) -> Variant:
        """The variant that the others are compared with. Every run has one."""
        return next(variant for variant in self.variants if variant.role == "control")

    @property
    def shipped(self) -> Variant | None:
        """The variant that every unit gets since the run was completed; None if none was shipped."""
        return next((variant for variant in self.variants if variant.id == self.shipped_variant_id), None)

    def variant(self, name: str) -> Variant:
        """The variant of that name. Raises KeyError."""
        for variant in self.variants:
            if variant.name == name:
                return variant
        raise KeyError(f"{self.label} has no variant {name!r}.")


@dataclass(frozen=True)
class CandidateRun:
    """The result of opening a candidate's run, with a sentence about it.

    `state` is `opened` (`run` was opened now), `existing` (`run` was opened for the candidate earlier), or `waits` (`run`, of another
    candidate or comparison, has to end first; nothing was changed).
    """

    state: Literal["opened", "existing", "waits"]
    run: Run
    message: str
