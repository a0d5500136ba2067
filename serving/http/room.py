"""Room in memory for bodies that are being answered: a bound on their bytes, however many connections bring them."""

from serving.http.errors import service_unavailable

OVERLOADED = "More is being stored than fits into memory; try again shortly."


class Room:
    """Bytes that may be held at once, shared by all requests of a process."""

    def __init__(self, limit: int) -> None:
        """`limit` in bytes; one body alone is always let in."""
        self._limit, self.used = limit, 0

    def take(self, size: int) -> None:
        """Count `size` bytes more; whoever takes gives back. Raises ApiError (503) where there is no room."""
        if self.used and self.used + size > self._limit:
            raise service_unavailable(OVERLOADED)
        self.used += size

    def give(self, size: int) -> None:
        """Give back what was taken."""
        self.used -= size


class Share:
    """What one request takes of a room, as its body comes."""

    __slots__ = ("_room", "_size")

    def __init__(self, room: Room) -> None:
        """Nothing yet."""
        self._room, self._size = room, 0

    def take(self, size: int) -> None:
        """So many bytes more. Raises ApiError (503) where there is no room."""
        self._room.take(size)
        self._size += size

    def give_back(self) -> None:
        """All of it."""
        self._room.give(self._size)
        self._size = 0
