"""The Python clients: of assignments, with last known answers while the service is away; of events, kept until it has them.

Belongs here: asking, remembering, sending; only the standard library, httpx and msgspec. Does not belong here: anything else of this
project, so that a product imports the client without it.
"""

from serving.client.async_client import AsyncAssignmentClient
from serving.client.async_event_client import AsyncEventClient
from serving.client.errors import (
    AssignmentClientError,
    ClientClosedError,
    ClientSetupError,
    KeyRefusedError,
    RequestRefusedError,
)
from serving.client.event_client import EventClient
from serving.client.records import Assignment, Assignments, EventStats, LostEvent, Skipped, Source
from serving.client.sync_client import AssignmentClient

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
