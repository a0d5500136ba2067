"""Groups concurrent items into few calls: items that arrive while calls are in flight go into the next call.

There is no timer: an item that arrives alone is sent at once.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Reply = TypeVar("Reply")

# As many as can be answered within a second or two. Beyond that, an immediate error is better than a long wait.
MAX_WAITING = 20_000


class OverloadedError(Exception):
    """Too many items are waiting."""


class Grouped(Generic[Item, Reply]):
    """Sends items in groups, in the order of their arrival."""

    def __init__(
        self, work: Callable[[Sequence[Item]], Awaitable[Sequence[Reply]]], *, in_flight: int = 2, size: int = 500
    ) -> None:
        """`work` answers a group of at most `size` items, in order. At most `in_flight` groups run at the same time."""
        self._work, self._in_flight, self._size = work, in_flight, size
        self._waiting: list[tuple[Item, asyncio.Future[Reply]]] = []
        self._running: set[asyncio.Task[None]] = set()

    @property
    def groups_in_flight(self) -> int:
        """The number of groups whose answer is pending."""
        return len(self._running)

    async def ask(self, item: Item) -> Reply:
        """The reply for the item. Raises OverloadedError, and the exceptions of the group's call."""
        if len(self._waiting) >= MAX_WAITING:
            raise OverloadedError
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if len(self._running) < self._in_flight:
            self._running.add(asyncio.create_task(self._run()))
        try:
            return await future
        finally:
            # The exception refers to this frame. Together with the future that would be a cycle that only the garbage collector frees.
            del future

    async def _run(self) -> None:
        try:
            await self._answer_all()
        finally:
            # Here, not in a done callback: a caller that wakes before the callback and asks again would wait for a finished task.
            self._running.discard(asyncio.current_task())  # never None inside a running coroutine

    async def _answer_all(self) -> None:
        while self._waiting:
            group, self._waiting = self._waiting[: self._size], self._waiting[self._size :]
            try:
                replies = await self._work([item for item, _ in group])
            except Exception as error:  # noqa: BLE001 - every caller of the group gets it
                for _, future in group:
                    if not future.done():
                        future.set_exception(error)
            else:
                for (_, future), reply in zip(group, replies, strict=True):
                    # A client that disconnected has cancelled its future.
                    if not future.done():
                        future.set_result(reply)
            # Breaks the same cycle as in `ask`: this frame and the exception.
            del group, future
