"""What the caller gets: assignments and skipped experiments, with where each came from.

Belongs here: the public results. Does not belong here: the wire (wire.py), how long an answer is kept (cache.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Source = Literal["service", "cache", "stale", "default"]
"""`service`: answered just now. `cache`: answered before, still fresh. `stale`: the last known answer, since the service is away.
`default`: nothing is known."""

UNAVAILABLE = "unavailable"


@dataclass(frozen=True, slots=True)
class Assignment:
    """The variant that a unit is served. Ids are UUIDs as text, as events want them; `config` is the caller's own copy.

    `reason` is the service's word (`assigned`, `remainder`, `shipped`, `withdrawn`, `override`); later services may know more.
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


@dataclass(frozen=True, slots=True)
class Skipped:
    """An experiment without a variant for the unit: use the default.

    `reason` is the service's word (`not_found`, `holdout`, …), or `unavailable` with the source `default` where it could not be asked.
    """

    experiment: str
    reason: str
    source: Source


@dataclass(frozen=True, slots=True)
class Assignments:
    """One entry for each experiment that was asked for, by its name, in one of the two."""

    assigned: Mapping[str, Assignment]
    skipped: Mapping[str, Skipped]

    def variant(self, experiment: str, default: str) -> str:
        """Name of the variant, else `default`."""
        found = self.assigned.get(experiment)
        return default if found is None else found.variant_name

    def config(self, experiment: str, default: Mapping[str, Any]) -> Mapping[str, Any]:
        """The variant's complete config, else `default`; the two are never mixed."""
        found = self.assigned.get(experiment)
        return default if found is None else found.config
