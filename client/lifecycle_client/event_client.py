"""The event client: logging that never waits, and the threads that send."""

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

from lifecycle_client.event_delivery import Delivery, OnLost
from lifecycle_client.event_exposures import RecentExposures
from lifecycle_client.event_wire import MAX_EVENT_BYTES, Experiments, encode_event, new_event_id
from lifecycle_client.forks import renew_after_fork
from lifecycle_client.options import read_event_options
from lifecycle_client.records import Assignment, EventStats, LostEvent
from lifecycle_client.sending import LIMITS, post
from lifecycle_client.wire import Reply, Unreachable

Bell = queue.SimpleQueue[None]
"""Wakes a thread. Unlike `threading.Event`, it may be rung by a signal handler that interrupts ringing."""

_all: "WeakSet[EventLogger]" = WeakSet()


@dataclass(eq=False)
class _Flush:
    """Somebody waits until the first `until` events have gone."""

    until: int
    answered: threading.Event = field(default_factory=threading.Event)
    all_sent: bool = False


class EventLogger:
    """What the event clients share: everything but waiting for the end."""

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
        `timeout`: seconds for one request, which nobody waits for. A batch is sent with `flush_at` events, or `flush_every` seconds after
        its first. `max_buffered`, `max_buffered_bytes`: most events in memory. `spool_dir`: folder for what can't be sent, else one of the
        user's; `max_spool_bytes`: most bytes there, 0 for no disk. `exit_timeout`: most seconds that the end of the process waits.
        `exposure_every`: seconds in which `log_exposure` logs the same exposure once; `max_exposures`: so many are remembered.
        `on_error` is called with each event that is lost, here or in a thread of the client's; what it raises is logged.
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
        """The event's id. Never waits, never raises: an event that can't be one is counted, logged once a minute, told to `on_error`.

        `experiments`: an assignment, `Assignments`, or a list of assignments. `timestamp`: when it happened, with an offset; else now.
        What is given is copied: changing it later does not change the event.
        """
        return self._log(event_type, unit_type, unit_id, experiments, context, metrics, payload, timestamp)[0]

    def log_exposure(self, assignment: Assignment | None, *, context: Mapping[str, Any] | None = None) -> str | None:
        """The unit really saw its variant: the event's id, or None where this was logged within `exposure_every` seconds.

        None, which stands for an experiment without an answer, logs nothing: the unit saw the default. Never waits, never raises.
        """
        if assignment is None:
            return None
        key = None
        with suppress(AttributeError, TypeError, UnicodeEncodeError):
            # What is no assignment is refused below, as any event that can't be one.
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
        """What became of events. Raises OSError where the folder on disk can't be listed."""
        return self._delivery.stats()

    def after_fork(self) -> None:
        """In the child: nothing is buffered, the parent sends what it has; threads and connections of its own."""
        self._delivery.after_fork()
        self._exposures.after_fork()
        if self._http is not None:
            # Kept unused: even closing it here could reach into the parent.
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
        """The event's id, and whether it is on its way."""
        event_id = ""
        try:
            event_id = new_event_id()
            try:
                event = encode_event(event_id, event_type, unit_type, unit_id, *rest)
            except Exception as error:  # noqa: BLE001 - whatever a product's own objects raise
                said = f"it can't be made into JSON: {type(error).__name__}: {error}"
                self._delivery.refuse(LostEvent(event_id, _text(event_type), "not_sendable", said))
                return event_id, False
            if len(event) > MAX_EVENT_BYTES:
                said = f"it has {len(event):,} bytes, and {MAX_EVENT_BYTES:,} are allowed"
                self._delivery.refuse(LostEvent(event_id, event_type, "payload_too_large", said))
                return event_id, False
            return event_id, self._put(event)
        except Exception as error:  # noqa: BLE001 - a product is never broken by its events
            with suppress(Exception):
                said = f"{type(error).__name__} while it was logged"
                self._delivery.refuse(LostEvent(event_id, _text(event_type), "not_sendable", said))
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
            # A signal handler that logs may come in the middle of this, on the same thread; two senders would send everything twice.
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
                # Too many threads, or the interpreter ends: events wait in memory, and the end of the process puts them on disk.
                self._delivery.notices.warn("thread", f"Events are not sent for now: {error}.")
                return
            finally:
                self._starting = False
        _close_with_process()

    def _keep_sending(self) -> None:
        delivery, bell = self._delivery, self._sender_bell
        while not self._stopped:
            # Who asks during a step has to wait for the next.
            flushes = list(self._flushes)
            try:
                acted = delivery.step(self._send, max((one.until for one in flushes), default=0))
            except Exception as error:  # noqa: BLE001 - a defect of ours: said, and tried again
                acted = False
                delivery.hold(error)
            self._answer(flushes, acted)
            if not acted:
                _wait(bell, delivery.due_in())
        if self._http is not None:
            self._http.close()

    def _keep_spilling(self) -> None:
        """Beside the sender, which may be in the middle of a request while memory fills."""
        delivery, bell = self._delivery, self._spiller_bell
        while not self._stopped:
            _wait(bell, None)
            delivery.spill()

    def _answer(self, flushes: list[_Flush], acted: bool) -> None:
        """Those whose events have gone; all of them, once nothing more can be done."""
        for one in flushes:
            one.all_sent = self._delivery.is_done(one.until)
            if one.all_sent or not acted:
                self._flushes.remove(one)
                one.answered.set()

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
    """Logs events. One for a process is enough: threads share it, and after os.fork a child has a buffer and threads of its own.

    Used in a `with` statement, it is closed at its end; one that is not closed is at the end of the process.
    """

    def flush(self, timeout: float = 5.0) -> bool:
        """Send what is in memory, and what lies on disk, now; wait for at most `timeout` seconds.

        True when all of it is with the service. Where it is away, what was in memory is on disk, and the answer is False.
        """
        return self._flush(timeout)

    def close(self, timeout: float = 5.0) -> None:
        """Flush; what can't be sent in time goes to disk. Later events are dropped. May be called again."""
        self._close(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _text(value: Any) -> str:
    """What should be a text, for a message."""
    return value if isinstance(value, str) else type(value).__name__


def _wait(bell: Bell, seconds: float | None) -> None:
    """Until it rings, or so many seconds; however often it rang, once."""
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
    for one in list(_all):
        one._close(one._options.exit_timeout)
