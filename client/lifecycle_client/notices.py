"""Log lines that do not flood: each kind once a minute."""

import logging
import threading
from collections.abc import Callable

log = logging.getLogger("lifecycle_client")

LOG_EVERY_SECONDS = 60.0


class Notices:
    """Warnings of one client, under the logger `lifecycle_client`."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` in seconds, never going back."""
        self._clock = clock
        self._lock = threading.RLock()
        self._said: dict[str, float] = {}

    def warn(self, kind: str, message: str) -> None:
        """Write the line, unless one of its kind was written within the minute."""
        now = self._clock()
        with self._lock:
            if now < self._said.get(kind, float("-inf")) + LOG_EVERY_SECONDS:
                return
            self._said[kind] = now
        log.warning(message)

    def after_fork(self) -> None:
        """In the child: a lock that no thread of the parent holds."""
        self._lock = threading.RLock()
