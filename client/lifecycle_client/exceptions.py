"""Exceptions of the client: mistakes in the calling program, never an outage."""

from collections.abc import Sequence


class AssignmentClientError(Exception):
    """A mistake in the calling program; the message is one sentence.

    `status` and `code` are the service's answer, `request_id` finds the request in its log; all None if no request was sent.
    """

    def __init__(
        self, message: str, *, status: int | None = None, code: str | None = None, request_id: str | None = None
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.code, self.request_id = message, status, code, request_id


class ClientSetupError(AssignmentClientError, ValueError):
    """The client cannot be created with these settings: no key, an invalid address, a negative time."""


class ClientClosedError(AssignmentClientError):
    """The client was closed before this call."""


class KeyRefusedError(AssignmentClientError):
    """The service refuses the API key: unknown or revoked (401), or without the scope `assign` (403)."""


class RequestRefusedError(AssignmentClientError):
    """The question is invalid; asking again will not help. `details` holds (field, error) pairs if the service names fields."""

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        request_id: str | None = None,
        details: Sequence[tuple[str, str]] = (),
    ) -> None:
        super().__init__(message, status=status, code=code, request_id=request_id)
        self.details = tuple(details)
