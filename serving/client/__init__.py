"""The Python client of the assignment service: last known answers while the service is away, the caller's default where none is known.

Belongs here: asking and remembering; only the standard library, httpx and msgspec. Does not belong here: anything else of this
project, so that a product imports the client without it.
"""

from serving.client.async_client import AsyncAssignmentClient
from serving.client.errors import (
    AssignmentClientError,
    ClientClosedError,
    ClientSetupError,
    KeyRefusedError,
    RequestRefusedError,
)
from serving.client.records import Assignment, Assignments, Skipped, Source
from serving.client.sync_client import AssignmentClient

__all__ = [
    "Assignment",
    "AssignmentClient",
    "AssignmentClientError",
    "Assignments",
    "AsyncAssignmentClient",
    "ClientClosedError",
    "ClientSetupError",
    "KeyRefusedError",
    "RequestRefusedError",
    "Skipped",
    "Source",
]
