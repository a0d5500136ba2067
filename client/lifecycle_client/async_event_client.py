"""The event client for asyncio."""

import asyncio
from types import TracebackType
from typing import Self

from lifecycle_client.event_client import EventLogger


class AsyncEventClient(EventLogger):
    """Logs events from coroutines: `log` is called without `await`, and a thread sends, so that the loop waits for nothing.

    A task in the loop would be late whenever the loop is, and gone when the loop ends; a thread sends what was logged last, too.
    """

    async def flush(self, timeout: float = 5.0) -> bool:
        """Send what is in memory, and what lies on disk, now; wait for at most `timeout` seconds.

        True when all of it is with the service. Where it is away, what was in memory is on disk, and the answer is False.
        """
        return await asyncio.to_thread(self._flush, timeout)

    async def aclose(self, timeout: float = 5.0) -> None:
        """Flush; what can't be sent in time goes to disk. Later events are dropped. May be called again."""
        await asyncio.to_thread(self._close, timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
