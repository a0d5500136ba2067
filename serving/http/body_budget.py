"""Bounds the bytes of all request bodies that are being answered, however many connections send them."""

from serving.http.errors import service_unavailable

OVERLOADED = "The request bodies in progress take up all memory reserved for them. Try again shortly."


class BodyBudget:
    """The bytes that all requests of a process may occupy together."""

    def __init__(self, limit: int) -> None:
        """`limit` in bytes. A single body is always allowed."""
        self._limit, self.used = limit, 0

    def reserve(self, size: int) -> None:
        """Reserve `size` bytes. The caller must release them. Raises ApiError (503) if they exceed the budget."""
        if self.used and self.used + size > self._limit:
            raise service_unavailable(OVERLOADED)
        self.used += size

    def release(self, size: int) -> None:
        """Release `size` reserved bytes."""
        self.used -= size


class BodyReservation:
    """The bytes that one request occupies, which grow as its body arrives."""

    __slots__ = ("_budget", "_size")

    def __init__(self, budget: BodyBudget) -> None:
        """Reserves nothing yet."""
        self._budget, self._size = budget, 0

    def add(self, size: int) -> None:
        """Reserve `size` more bytes. Raises ApiError (503) if they exceed the budget."""
        self._budget.reserve(size)
        self._size += size

    def release(self) -> None:
        """Release all bytes of this request."""
        self._budget.release(self._size)
        self._size = 0
