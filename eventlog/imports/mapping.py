"""What a mapping says: where each field of an event comes from, and the experiment that the rows belong to."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal
from zoneinfo import ZoneInfo

from pydantic import Field, ValidationInfo, field_validator

from experimentation.config.files import ExperimentName, Share
from experimentation.runs.allocations import WHOLE
from experimentation.runs.run import NewVariant, Role, UnitType
from foundation.yaml_files import Moment as Instant
from foundation.yaml_files import Name, Place, Text, YamlModel

Kind = Literal["text", "number", "flag", "json", "hash"]
EPOCHS = {"epoch_s": 1_000_000, "epoch_ms": 1_000, "epoch_us": 1}
"""Formats that count from 1970, and how many microseconds one of them has."""
OBJECTS = ("context", "metrics", "payload")
WHOLE_OBJECT = "*"
"""The key under context, metrics or payload that stands for all that an object of the row holds."""


@dataclass(frozen=True)
class Value:
    """One value of each row: a `constant`, or what stands in `columns` (several are joined by a blank).

    `choices` says what each text becomes, and refuses others; `default` stands in for nothing. `place` is where the mapping says so.
    """

    place: Place
    columns: tuple[str, ...] = ()
    constant: Any = None
    choices: Mapping[str, Any] | None = None
    default: Any = None
    kind: Kind | None = None


@dataclass(frozen=True)
class Moment:
    """A point in time: its value, `iso`, one of EPOCHS or a pattern of strptime, and the zone of times that name no offset."""

    value: Value
    format: str = "iso"
    zone: ZoneInfo | None = None


@dataclass(frozen=True)
class EventEntry:
    """How a row becomes one event. A row that has not one of the texts of `where` in each of its columns gives none."""

    event_type: Value
    unit_type: Value
    unit_id: Value
    timestamp: Moment
    event_id: Value | None = None
    context: Mapping[str, Value] = field(default_factory=dict)
    metrics: Mapping[str, Value] = field(default_factory=dict)
    payload: Mapping[str, Value] = field(default_factory=dict)
    where: Mapping[str, frozenset[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class NamedExperiment:
    """Experiments that the database has, by name. `run` is the latest one unless it is said."""

    name: Value
    run: int | None = None


class DeclaredVariant(YamlModel):
    """A variant of an experiment that ran elsewhere. Its name is its key in the file."""

    role: Role
    allocation: Share
    description: Text | None = None

    @field_validator("allocation")
    @classmethod
    def _not_empty(cls, share: Decimal) -> Decimal:
        if not share:
            raise ValueError("is 0: then no unit can have been enrolled")
        return share


class DeclaredExperiment(YamlModel):
    """A finished experiment that ran elsewhere. Units of its remainder were not enrolled, so rows don't name it."""

    name: ExperimentName
    unit_type: UnitType
    started: Instant
    ended: Instant
    split: dict[Name, DeclaredVariant] = Field(alias="variants")
    description: Text | None = None

    @field_validator("ended")
    @classmethod
    def _after_start(cls, ended: Any, info: ValidationInfo) -> Any:
        if "started" in info.data and ended <= info.data["started"]:
            raise ValueError("must be after started")
        return ended

    @field_validator("split")
    @classmethod
    def _a_whole_split(cls, variants: dict[str, DeclaredVariant]) -> dict[str, DeclaredVariant]:
        if sum(variant.allocation for variant in variants.values()) != WHOLE:
            raise ValueError(
                "must have allocations that sum to 1: give what nobody was enrolled in as a variant with the role remainder"
            )
        if [variant.role for variant in variants.values()].count("control") != 1:
            raise ValueError("need exactly one variant with the role control")
        return variants

    @property
    def variants(self) -> tuple[NewVariant, ...]:
        """The variants, in the order of the file."""
        return tuple(
            NewVariant(name, variant.role, variant.allocation, description=variant.description)
            for name, variant in self.split.items()
        )


@dataclass(frozen=True)
class EventMapping:
    """All that a mapping says. `nulls` are texts that mean nothing, `header` names the columns of a CSV file that has no header.

    `assigned_at` is when a unit got its variant, where that is not its earliest event. `digest` changes with what is said, not with
    comments.
    """

    path: Path
    digest: str
    events: tuple[EventEntry, ...]
    experiment: NamedExperiment | DeclaredExperiment | None = None
    variant: Value | None = None
    assigned_at: Moment | None = None
    nulls: frozenset[str] = frozenset()
    header: tuple[str, ...] = ()

    @property
    def declared(self) -> DeclaredExperiment | None:
        """The experiment that the mapping makes, where it makes one."""
        return self.experiment if isinstance(self.experiment, DeclaredExperiment) else None

    def columns(self) -> dict[str, Place]:
        """Every column that is read, and the first place that names it."""
        found: dict[str, Place] = {}
        for value in self._values():
            for column in value.columns:
                found.setdefault(column, value.place)
        for event in self.events:
            for column in event.where:
                found.setdefault(column, event.event_type.place)
        return found

    def _values(self) -> Iterator[Value]:
        for event in self.events:
            yield from (event.event_type, event.unit_type, event.unit_id, event.timestamp.value)
            yield from (*event.context.values(), *event.metrics.values(), *event.payload.values())
            if event.event_id is not None:
                yield event.event_id
        if isinstance(self.experiment, NamedExperiment):
            yield self.experiment.name
        if self.variant is not None:
            yield self.variant
        if self.assigned_at is not None:
            yield self.assigned_at.value
