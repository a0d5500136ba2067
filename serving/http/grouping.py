"""Grouping concurrent asks into few calls: whoever comes while calls are under way goes along with the next one.

There is no timer: alone, an ask leaves at once.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Ask = TypeVar("Ask")
Reply = TypeVar("Reply")


# As many as are answered within a second or two; who comes then is better told so at once.
MAX_WAITING = 20_000


class OverloadedError(Exception):
    """Too many wait already."""


class Grouped(Generic[Ask, Reply]):
    """Asks go out in groups, in the order in which they came."""

    def __init__(
        self, work: Callable[[Sequence[Ask]], Awaitable[Sequence[Reply]]], *, in_flight: int = 2, size: int = 500
    ) -> None:
        """`work` answers a group in its order, at most `size` asks at once; at most `in_flight` groups are under way."""
        self._work, self._in_flight, self._size = work, in_flight, size
        self._waiting: list[tuple[Ask, asyncio.Future[Reply]]] = []
        self._running: set[asyncio.Task[None]] = set()

    @property
    def under_way(self) -> int:
        """How many groups wait for their answer."""
        return len(self._running)

    async def ask(self, ask: Ask) -> Reply:
        """The reply; raises what the group's call raised, and OverloadedError."""
        if len(self._waiting) >= MAX_WAITING:
            raise OverloadedError
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting.append((ask, future))
        if len(self._running) < self._in_flight:
            self._running.add(asyncio.create_task(self._run()))
        try:
            return await future
        finally:
            # What it raises knows this frame: together with the future they would keep each other until the garbage collector comes.
            del future

    async def _run(self) -> None:
        try:
            await self._answer_all()
        finally:
            # At once, not when the task's end is told: who is woken before that, and asks again, would wait for a task that is over.
            self._running.discard(asyncio.current_task())  # a coroutine that runs has its task

    async def _answer_all(self) -> None:
        while self._waiting:
            group, self._waiting = self._waiting[: self._size], self._waiting[self._size :]
            try:
                replies = await self._work([ask for ask, _ in group])
            except Exception as error:  # noqa: BLE001 - whatever it is, each who asked is told
                for _, future in group:
                    if not future.done():
                        future.set_exception(error)
            else:
                for (_, future), reply in zip(group, replies, strict=True):
                    # A client that left has cancelled its wait, not the work of the others.
                    if not future.done():
                        future.set_result(reply)
            # As above: the group's frame and what it raised.
            del group, future
