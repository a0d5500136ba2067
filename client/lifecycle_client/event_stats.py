"""What the event client reports: counts of what became of events, and each event that is lost."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LostEvent:
    """An event that will not be stored. `code` comes from the service (`invalid_unit_id`, …), or is one of the client's:

    `not_sendable` (it cannot be encoded as JSON), `payload_too_large`, `buffer_full`, `closed`.
    """

    event_id: str
    event_type: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class EventStats:
    """What became of events since the client was created or the process was forked: counts, and bytes on disk.

    `sent`: stored by the service, including events that an earlier process left on disk. `refused`: invalid, for the service or the client.
    `dropped`: valid, but there was no room for them. `spooled`: ever written to disk, even if sent from there since.
    `buffered`: in memory now. `disk_bytes`: on disk now, from all processes that share the folder.
    """

    logged: int
    sent: int
    refused: int
    dropped: int
    spooled: int
    buffered: int
    disk_bytes: int
