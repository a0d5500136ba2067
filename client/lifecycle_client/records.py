"""What the caller gets: assignments and skipped experiments, with where each came from."""

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
    unit_type: str
    unit_id: str


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


@dataclass(frozen=True, slots=True)
class LostEvent:
    """An event that will not be stored. `code` is the service's (`invalid_unit_id`, …), or one of ours:

    `not_sendable` (no JSON can be made of it), `payload_too_large`, `buffer_full`, `closed`.
    """

    event_id: str
    event_type: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class EventStats:
    """What became of events since the client was made, or forked; counts, and bytes on disk.

    `sent`: stored by the service, those that an earlier process left on disk among them. `refused`: wrong, by the service's word or ours.
    `dropped`: right, but there was no room for them. `spooled`: written to disk, whether sent from there by now or not.
    `buffered`: in memory now. `disk_bytes`: on disk now, from all processes that share the folder.
    """

    logged: int
    sent: int
    refused: int
    dropped: int
    spooled: int
    buffered: int
    disk_bytes: int
