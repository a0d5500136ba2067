"""What the assignment client returns: assignments and skipped experiments, each with where it came from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Source = Literal["service", "cache", "stale", "default"]
"""`service`: answered just now. `cache`: answered earlier, still fresh. `stale`: the last known answer, because the service is away.
`default`: nothing is known."""

UNAVAILABLE = "unavailable"


@dataclass(frozen=True, slots=True)
class Assignment:
    """The variant that a unit is served. Ids are UUIDs as strings, as events expect them; `config` is the caller's own copy.

    `reason` is the service's word (`assigned`, `remainder`, `shipped`, `withdrawn`, `override`); later services may send others.
    """

    experiment: str
    variant_name: str
    config: Mapping[str, Any]
    enrolled: bool
    reason: str
    experiment_id: str
    run: int
    variant_id: str
    source: Source
    unit_type: str
    unit_id: str


@dataclass(frozen=True, slots=True)
class Skipped:
    """An experiment without a variant for the unit: use the default.

    `reason` is the service's word (`not_found`, `holdout`, …), or `unavailable` with the source `default` if it could not be asked.
    """

    experiment: str
    reason: str
    source: Source


@dataclass(frozen=True, slots=True)
class Assignments:
    """Each experiment of the question by name, either in `assigned` or in `skipped`."""

    assigned: Mapping[str, Assignment]
    skipped: Mapping[str, Skipped]

    def variant(self, experiment: str, default: str) -> str:
        """Name of the variant, or `default` if there is none."""
        assignment = self.assigned.get(experiment)
        return default if assignment is None else assignment.variant_name

    def config(self, experiment: str, default: Mapping[str, Any]) -> Mapping[str, Any]:
        """The variant's complete config, or `default`; the two are never merged."""
        assignment = self.assigned.get(experiment)
        return default if assignment is None else assignment.config
