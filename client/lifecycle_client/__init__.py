"""Python clients for assignments, with the last known answers during an outage, and for events, which are kept until they are stored."""

from lifecycle_client.answers import Assignment, Assignments, Skipped, Source
from lifecycle_client.async_client import AsyncAssignmentClient
from lifecycle_client.async_event_client import AsyncEventClient
from lifecycle_client.event_client import EventClient
from lifecycle_client.event_stats import EventStats, LostEvent
from lifecycle_client.exceptions import (
    AssignmentClientError,
    ClientClosedError,
    ClientSetupError,
    KeyRefusedError,
    RequestRefusedError,
)
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
