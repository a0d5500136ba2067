"""The event client for asyncio."""

import asyncio
from types import TracebackType
from typing import Self

from lifecycle_client.event_client import EventLogger


class AsyncEventClient(EventLogger):
    """Logs events from coroutines: call `log` without `await`. A thread sends, so the loop never waits.

    A task in the loop would be late whenever the loop is busy, and gone when the loop ends; a thread also sends the last events.
    """

    async def flush(self, timeout: float = 5.0) -> bool:
        """Send all events in memory and on disk now; wait at most `timeout` seconds.

        True if the service has all of them. While the service is away, events in memory go to disk and the answer is False.
        """
        return await asyncio.to_thread(self._flush, timeout)

    async def aclose(self, timeout: float = 5.0) -> None:
        """Flush; events that cannot be sent in time go to disk. Later events are dropped. Calling it again does nothing."""
        await asyncio.to_thread(self._close, timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
