"""The Python clients: of assignments, with last known answers while the service is away; of events, kept until it has them."""

from lifecycle_client.async_client import AsyncAssignmentClient
from lifecycle_client.async_event_client import AsyncEventClient
from lifecycle_client.errors import (
    AssignmentClientError,
    ClientClosedError,
    ClientSetupError,
    KeyRefusedError,
    RequestRefusedError,
)
from lifecycle_client.event_client import EventClient
from lifecycle_client.records import Assignment, Assignments, EventStats, LostEvent, Skipped, Source
from lifecycle_client.sync_client import AssignmentClient

__all__ = [
    "Assignment",
    "AssignmentClient",
    "AssignmentClientError",
    "Assignments",
    "AsyncAssignmentClient",
    "AsyncEventClient",
    "ClientClosedError",
    "ClientSetupError",
    "EventClient",
    "EventStats",
    "KeyRefusedError",
    "LostEvent",
    "RequestRefusedError",
    "Skipped",
    "Source",
]
