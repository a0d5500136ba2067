"""Warnings in the log, each kind at most once a minute."""

import logging
import threading
from collections.abc import Callable

log = logging.getLogger("lifecycle_client")

LOG_EVERY_SECONDS = 60.0


class Notices:
    """Warnings of one client, under the logger `lifecycle_client`."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` returns seconds and never goes back."""
        self._clock = clock
        self._lock = threading.RLock()
        self._last_logged: dict[str, float] = {}

    def warn(self, kind: str, message: str) -> None:
        """Log the message, unless one of this kind was logged in the last minute."""
        now = self._clock()
        with self._lock:
            if now < self._last_logged.get(kind, float("-inf")) + LOG_EVERY_SECONDS:
                return
            self._last_logged[kind] = now
        log.warning(message)

    def after_fork(self) -> None:
        """In the forked child: take a new lock, since a thread of the parent may hold the old one."""
        self._lock = threading.RLock()
