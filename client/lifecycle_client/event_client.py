"""The event client: logs without waiting, and sends from threads of its own."""

import atexit
import os
import queue
import random
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from types import TracebackType
from typing import Any, Self
from weakref import WeakSet

import httpx

from lifecycle_client.answers import Assignment
from lifecycle_client.event_delivery import Delivery, OnLost
from lifecycle_client.event_exposures import RecentExposures
from lifecycle_client.event_stats import EventStats, LostEvent
from lifecycle_client.event_wire import MAX_EVENT_BYTES, Experiments, encode_event, new_event_id
from lifecycle_client.forks import renew_after_fork
from lifecycle_client.options import read_event_options
from lifecycle_client.sending import LIMITS, post
from lifecycle_client.wire import Reply, Unreachable

Bell = queue.SimpleQueue[None]
"""Wakes a thread. Unlike `threading.Event`, it may be rung by a signal handler that interrupts ringing."""

_all: "WeakSet[EventLogger]" = WeakSet()


@dataclass(eq=False)
class _Flush:
    """A caller waits until the first `until` events have left."""

    until: int
    answered: threading.Event = field(default_factory=threading.Event)
    all_sent: bool = False


class EventLogger:
    """What both event clients share: everything except flushing and closing."""

    def __init__(
        self,
        api_key: str | None = None,
        base_url: str | None = None,
        *,
        timeout: float = 5.0,
        flush_at: int = 100,
        flush_every: float = 1.0,
        max_buffered: int = 10_000,
        max_buffered_bytes: int = 32 * 1_048_576,
        spool_dir: str | os.PathLike[str] | None = None,
        max_spool_bytes: int = 256 * 1_048_576,
        exit_timeout: float = 2.0,
        exposure_every: float = 86_400.0,
        max_exposures: int = 10_000,
        on_error: OnLost | None = None,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
        make_transport: Callable[[], httpx.BaseTransport] | None = None,
    ) -> None:
        """Nothing connects yet, and no thread is started before the first event. Raises ClientSetupError.

        `api_key`: else LIFECYCLE_API_KEY. `base_url`: else EVENT_SERVICE_URL, else http://127.0.0.1:8000.
        `timeout`: seconds for one request; no caller waits for it. A batch is sent with `flush_at` events, or `flush_every` seconds after
        its first. `max_buffered`, `max_buffered_bytes`: limits in memory. `spool_dir`: folder for events that cannot be sent, by default in
        the user's home; `max_spool_bytes`: limit there, 0 for no disk. `exit_timeout`: longest wait in seconds when the process ends.
        `exposure_every`: seconds in which `log_exposure` logs the same exposure once; `max_exposures`: how many it remembers.
        `on_error`: called with each lost event, in the logging thread or one of the client's; what it raises is logged.
        `clock`, `jitter`, `make_transport`: as for AssignmentClient.
        """
        self._options = read_event_options(
            api_key,
            base_url,
            timeout,
            spool_dir,
            flush_at=flush_at,
            flush_every=flush_every,
            max_buffered=max_buffered,
            max_buffered_bytes=max_buffered_bytes,
            max_spool_bytes=max_spool_bytes,
            exit_timeout=exit_timeout,
            exposure_every=exposure_every,
            max_exposures=max_exposures,
        )
        self._clock, self._jitter, self._on_error, self._make_transport = clock, jitter, on_error, make_transport
        self._exposures = RecentExposures(exposure_every, max_exposures)
        self._inherited: list[httpx.Client] = []
        self._http: httpx.Client | None = None
        self._begin()
        renew_after_fork(self)
        _all.add(self)

    def log(
        self,
        event_type: str,
        *,
        unit_type: str,
        unit_id: str,
        experiments: Experiments = None,
        context: Mapping[str, Any] | None = None,
        metrics: Mapping[str, Any] | None = None,
        payload: Mapping[str, Any] | None = None,
        timestamp: datetime | str | None = None,
    ) -> str:
        """Returns the event's id. Never waits, never raises: an invalid event is counted, logged once a minute and passed to `on_error`.

        `experiments`: an assignment, `Assignments`, or a list of assignments. `timestamp`: when it happened, with a UTC offset; else now.
        The arguments are copied: changing them later does not change the event.
        """
        return self._log(event_type, unit_type, unit_id, experiments, context, metrics, payload, timestamp)[0]

    def log_exposure(self, assignment: Assignment | None, *, context: Mapping[str, Any] | None = None) -> str | None:
        """Log that the unit really saw its variant. Returns the event's id, or None if this was logged within `exposure_every` seconds.

        An assignment of None (an experiment without an answer) logs nothing: the unit saw the default. Never waits, never raises.
        """
        if assignment is None:
            return None
        key = None
        with suppress(AttributeError, TypeError, UnicodeEncodeError):
            # Anything but an assignment is refused below, like any invalid event.
            key = self._exposures.add(assignment, self._clock())
            if key is None:
                return None
        unit_type, unit_id = getattr(assignment, "unit_type", ""), getattr(assignment, "unit_id", "")
        event_id, taken = self._log("exposure", unit_type, unit_id, assignment, context, None, None, None)
        if key is not None and not taken:
            self._exposures.forget(key)
        return event_id

    @property
    def stats(self) -> EventStats:
        """What became of events. Raises OSError if the folder on disk cannot be listed."""
        return self._delivery.stats()

    def after_fork(self) -> None:
        """In the forked child: begin with an empty buffer, new threads and new connections; the parent sends what it has."""
        self._delivery.after_fork()
        self._exposures.after_fork()
        if self._http is not None:
            # Keep it unused: even closing it here could disturb the parent.
            self._inherited.append(self._http)
            self._http = None
        closed = self._stopped
        self._begin()
        if closed:
            self._close(0)

    def _begin(self) -> None:
        self._delivery = Delivery(self._options, self._clock, self._jitter, self._on_error)
        self._lock = threading.RLock()
        self._sender_bell, self._spiller_bell = Bell(), Bell()
        self._sender: threading.Thread | None = None
        self._starting = False
        self._flushes: list[_Flush] = []
        self._stopped = False

    def _log(self, event_type: str, unit_type: str, unit_id: str, *rest: Any) -> tuple[str, bool]:
        """The event's id, and whether the event was accepted."""
        event_id = ""
        try:
            event_id = new_event_id()
            try:
                event = encode_event(event_id, event_type, unit_type, unit_id, *rest)
            except Exception as error:  # noqa: BLE001 - whatever a product's own objects raise
                message = f"it cannot be encoded as JSON: {type(error).__name__}: {error}"
                self._delivery.refuse(LostEvent(event_id, _text(event_type), "not_sendable", message))
                return event_id, False
            if len(event) > MAX_EVENT_BYTES:
                message = f"it has {len(event):,} bytes, and {MAX_EVENT_BYTES:,} are allowed"
                self._delivery.refuse(LostEvent(event_id, event_type, "payload_too_large", message))
                return event_id, False
            return event_id, self._put(event)
        except Exception as error:  # noqa: BLE001 - events must never break a product
            with suppress(Exception):
                message = f"{type(error).__name__} while it was logged"
                self._delivery.refuse(LostEvent(event_id, _text(event_type), "not_sendable", message))
            return event_id, False

    def _put(self, event: bytes) -> bool:
        count = self._delivery.put(event)
        if not count:
            return False
        if self._sender is None:
            self._start()
        if count == 1 or count % self._options.flush_at == 0:
            self._sender_bell.put(None)
        if self._delivery.crowded:
            self._spiller_bell.put(None)
        return True

    def _start(self) -> None:
        with self._lock:
            # A signal handler that logs may interrupt this on the same thread; two senders would send everything twice.
            if self._starting:
                return
            self._starting = True
            try:
                if self._sender is not None or self._stopped:
                    return
                sender = threading.Thread(target=self._keep_sending, name="event-sender", daemon=True)
                sender.start()
                self._sender = sender
                if self._options.max_spool_bytes:
                    threading.Thread(target=self._keep_spilling, name="event-spiller", daemon=True).start()
            except RuntimeError as error:
                # Too many threads, or the interpreter is ending: events wait in memory, and the end of the process writes them to disk.
                self._delivery.notices.warn("thread", f"Events cannot be sent for now: {error}.")
                return
            finally:
                self._starting = False
        _close_with_process()

    def _keep_sending(self) -> None:
        delivery, bell = self._delivery, self._sender_bell
        while not self._stopped:
            # A flush that is requested during a step waits for the next one.
            flushes = list(self._flushes)
            try:
                has_worked = delivery.step(self._send, max((flush.until for flush in flushes), default=0))
            except Exception as error:  # noqa: BLE001 - a defect in this package: log it, and try again
                has_worked = False
                delivery.hold(error)
            self._answer(flushes, has_worked)
            if not has_worked:
                _wait(bell, delivery.due_in())
        if self._http is not None:
            self._http.close()

    def _keep_spilling(self) -> None:
        """Runs in parallel to the sender, which may be in the middle of a request while memory fills."""
        delivery, bell = self._delivery, self._spiller_bell
        while not self._stopped:
            _wait(bell, None)
            delivery.spill()

    def _answer(self, flushes: list[_Flush], has_worked: bool) -> None:
        """Answer the flushes whose events have left, and all of them once there is no more work."""
        for flush in flushes:
            flush.all_sent = self._delivery.is_done(flush.until)
            if flush.all_sent or not has_worked:
                self._flushes.remove(flush)
                flush.answered.set()

    def _send(self, body: bytes) -> Reply | Unreachable:
        if self._http is None:
            transport = self._make_transport() if self._make_transport else None
            self._http = httpx.Client(
                headers=self._options.headers, timeout=self._options.timeout, limits=LIMITS, transport=transport
            )
        return post(self._http, self._options.url, body, self._options.timeout, self._clock)

    def _flush(self, timeout: float) -> bool:
        if self._stopped or threading.current_thread() is self._sender:
            return False
        self._start()
        if self._sender is None:
            return False
        flush = _Flush(self._delivery.arrived())
        self._flushes.append(flush)
        self._sender_bell.put(None)
        return flush.answered.wait(timeout) and flush.all_sent

    def _close(self, timeout: float) -> None:
        if self._sender is not None and not self._stopped:
            self._flush(timeout)
        self._stopped = True
        self._delivery.rescue()
        self._sender_bell.put(None)
        self._spiller_bell.put(None)


class EventClient(EventLogger):
    """Logs events. One for each process is enough: threads share it, and a forked child gets its own buffer and threads.

    A `with` statement closes it at its end; otherwise the end of the process does.
    """

    def flush(self, timeout: float = 5.0) -> bool:
        """Send all events in memory and on disk now; wait at most `timeout` seconds.

        True if the service has all of them. While the service is away, events in memory go to disk and the answer is False.
        """
        return self._flush(timeout)

    def close(self, timeout: float = 5.0) -> None:
        """Flush; events that cannot be sent in time go to disk. Later events are dropped. Calling it again does nothing."""
        self._close(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _text(value: Any) -> str:
    """A value that should be a string, for a message."""
    return value if isinstance(value, str) else type(value).__name__


def _wait(bell: Bell, seconds: float | None) -> None:
    """Wait until the bell rings, at most `seconds`. Several rings count as one."""
    with suppress(queue.Empty):
        bell.get(timeout=seconds)
        while True:
            bell.get_nowait()


def _close_with_process() -> None:
    """Children of multiprocessing end without `atexit`."""
    process = sys.modules.get("multiprocessing.process")
    if process is not None and process.parent_process() is not None:
        from multiprocessing.util import Finalize

        Finalize(None, _close_all, exitpriority=10)


@atexit.register
def _close_all() -> None:
    for client in list(_all):
        client._close(client._options.exit_timeout)
