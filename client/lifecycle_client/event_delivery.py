"""Moves events from memory to the service, or to disk and later from there to the service, and counts what became of them."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain

from lifecycle_client.breaker import Breaker, Ticket
from lifecycle_client.event_buffer import Buffer
from lifecycle_client.event_disk import Segment, Spool, SpoolError, spool_folders
from lifecycle_client.event_stats import EventStats, LostEvent
from lifecycle_client.event_wire import (
    MAX_BATCH,
    MAX_BATCH_BYTES,
    RATE_LIMITED,
    Away,
    Taken,
    Unacceptable,
    encode_batch,
    name_of,
    read_outcome,
)
from lifecycle_client.notices import Notices
from lifecycle_client.options import EventOptions
from lifecycle_client.wire import Reply, Unreachable

Send = Callable[[bytes], Reply | Unreachable]
OnLost = Callable[[LostEvent], object]

# The breaker can hold back single units; here it holds back everything or nothing.
EVERYTHING = ("", "")
# How often to look for files that dead processes left.
LOOK_EVERY_SECONDS = 30.0
BUFFER_FULL = "memory is full, and neither the service nor the disk took its events in time"


@dataclass
class Load:
    """Events being sent, one request for each of the `pieces`. `segment` is the file they come from, if any."""

    pieces: deque[list[bytes]] = field(default_factory=deque)
    segment: Segment | None = None


class Delivery:
    """One thread calls `step`; other threads may put events in, spill and rescue at the same time."""

    def __init__(
        self,
        options: EventOptions,
        clock: Callable[[], float],
        jitter: Callable[[], float],
        on_error: OnLost | None,
    ) -> None:
        """`clock` returns seconds and never goes back; `jitter` returns numbers from 0 up to, but not including, 1.

        `on_error` is called with each lost event.
        """
        self.notices = Notices(clock)
        self._options, self._clock, self._on_error = options, clock, on_error
        self._buffer = Buffer(options.flush_at, options.flush_every, options.max_buffered, options.max_buffered_bytes)
        folders = spool_folders(options.spool_dir, options.url)
        self._spool = Spool(folders, options.max_spool_bytes) if options.max_spool_bytes else None
        self._breaker = Breaker(clock, jitter)
        # Held during writes to disk, so `put` never takes it.
        self._lock = threading.RLock()
        self._count_lock = threading.RLock()
        self._counts = dict.fromkeys(("logged", "sent", "refused", "dropped", "spooled"), 0)
        self._own = Load()
        self._old = Load()
        self._turn_of_old = False
        self._look_at = float("-inf")
        self._limited_on_disk = False
        self._rescued = False

    # Called by the threads that log.

    def put(self, event: bytes) -> int:
        """Add an event. Returns the number of events in memory, or 0 if there is no room, which is reported."""
        self._count("logged", 1)
        count = self._buffer.put(event, self._clock())
        if not count and self._buffer.closed:
            self._lose([event], "closed", "the client is closed")
        elif not count:
            self._lose([event], "buffer_full", BUFFER_FULL)
        return count

    def refuse(self, lost: LostEvent) -> None:
        """Count and report an event that cannot be sent."""
        self._count("logged", 1)
        self._report([lost])

    @property
    def crowded(self) -> bool:
        """Whether it is time to `spill`."""
        return self._spool is not None and self._buffer.crowded

    # Called by the thread that sends.

    def step(self, send: Send, until: int = 0) -> bool:
        """Do one piece of work; False if there is none now. The first `until` events that ever arrived are due at once."""
        if not self._own.pieces and (self._is_due() or self._buffer.taken < until):
            with self._lock:
                # After the rescue they would not reach the disk any more.
                taken = [] if self._rescued else self._buffer.take()
                if taken:
                    self._own.pieces.append(taken)
        if self._breaker.seconds_left() > 0:
            return self._own_to_disk()
        load = self._choose()
        ticket = self._breaker.enter(EVERYTHING) if load.pieces else None
        if ticket is None:
            return False
        piece = load.pieces[0]
        outcome = read_outcome(send(encode_batch(piece)), len(piece))
        with self._lock:
            if self._rescued:
                return False
            load.pieces.popleft()
            lost = self._settle(load, piece, outcome, ticket)
            if load.segment is not None and not load.pieces:
                load.segment.remove()
                load.segment = None
        self._report(lost)
        return True

    def due_in(self) -> float:
        """Seconds until there may be work."""
        left = self._breaker.seconds_left()
        if self._own.pieces:
            return left
        in_memory = self._buffer.due_in(self._clock())
        waits = [LOOK_EVERY_SECONDS if in_memory is None else in_memory]
        if self._spool is not None:
            waits.append(max(left, self._look_at - self._clock()))
        return max(0.0, min(waits))

    def spill(self) -> None:
        """Move events from a crowded memory to disk, the oldest first."""
        while self.crowded:
            with self._lock:
                events = self._buffer.take()
                if not events or not self._store(events):
                    self._buffer.put_back(events)
                    return

    def hold(self, error: Exception) -> None:
        """A step failed because of a defect in this package: wait as if the service were away."""
        ticket = self._breaker.enter(EVERYTHING)
        if ticket is not None:
            self._breaker.failed(ticket, None)
        self.notices.warn("defect", f"Sending events failed and will be tried again: {type(error).__name__}: {error}.")

    # Called by the threads that flush or close.

    def arrived(self) -> int:
        """The `until` for `step` and `is_done` that covers all events in memory now. The next step looks at the disk again."""
        self._look_at = float("-inf")
        return self._buffer.arrived

    def is_done(self, until: int) -> bool:
        """Whether the first `until` events have left memory, and the disk holds nothing that this process could send."""
        memory_is_done = not self._own.pieces and self._buffer.taken >= until
        disk_is_done = self._spool is None or (self._look_at > self._clock() and not self._limited_on_disk)
        return memory_is_done and disk_is_done and not self._old.pieces

    def rescue(self) -> None:
        """At the end: write to disk what is still in memory or on its way. An event that is sent twice is stored once."""
        with self._lock:
            self._rescued = True
            events = list(chain.from_iterable(self._own.pieces))
            self._own.pieces.clear()
            if self._old.segment is not None:
                self._old.segment.release()
        self._buffer.close()
        while events or len(self._buffer):
            if events and not self._store(events):
                self._lose(events, "closed", "the client was closed before it could go to the service or to disk")
            events = self._buffer.take()
        if self._spool is not None:
            self._spool.close()

    def after_fork(self) -> None:
        """In the forked child, which uses a new delivery: close files without releasing the parent's locks."""
        if self._spool is not None:
            self._spool.after_fork()
        if self._old.segment is not None:
            self._old.segment.after_fork()

    def stats(self) -> EventStats:
        """The counts as of now."""
        with self._lock:
            on_its_way = sum(len(piece) for piece in self._own.pieces)
        with self._count_lock:
            counts = dict(self._counts)
        return EventStats(
            **counts,
            buffered=len(self._buffer) + on_its_way,
            disk_bytes=0 if self._spool is None else self._spool.used_bytes(),
        )

    def _is_due(self) -> bool:
        due_in = self._buffer.due_in(self._clock())
        return due_in is not None and due_in <= 0

    def _choose(self) -> Load:
        """Take turns between new events and those on disk, so that neither waits for the other to finish."""
        if self._own.pieces and not self._turn_of_old:
            self._turn_of_old = True
            return self._own
        self._turn_of_old = False
        self._look_on_disk()
        return self._old if self._old.pieces else self._own

    def _look_on_disk(self) -> None:
        if self._spool is None or self._old.pieces or self._clock() < self._look_at:
            return
        self._limited_on_disk = False
        try:
            segment = self._spool.next_segment()
        except SpoolError as error:
            segment = None
            self.notices.warn("disk", f"Events on disk cannot be read: {error}.")
        if segment is None:
            self._look_at = self._clock() + LOOK_EVERY_SECONDS
            return
        if segment.unreadable:
            self.notices.warn("torn", f"{segment.unreadable} events on disk were torn by a crash and are left out.")
        with self._lock:
            if self._rescued or not segment.events:
                (segment.release if self._rescued else segment.remove)()
                return
            self._old = Load(_pieces(segment.events), segment)

    def _settle(
        self, load: Load, piece: list[bytes], outcome: Taken | Unacceptable | Away, ticket: Ticket
    ) -> list[LostEvent]:
        """Act on the service's answer. Returns the events that it loses."""
        if isinstance(outcome, Away):
            wait = self._breaker.failed(ticket, outcome.retry_after)
            self._warn_away(outcome, wait or 0.0)
            return self._try_again(load, piece, outcome.may_be_an_event)
        if isinstance(outcome, Unacceptable):
            self._breaker.succeeded(ticket)
            if len(piece) > 1:
                load.pieces.extendleft(reversed(_halves(piece)))
                return []
            outcome = Taken({0: outcome.code})
        self._count("sent", len(piece) - len(outcome.refused))
        refused = sorted(outcome.refused.items())
        lost = self._postpone([piece[index] for index, code in refused if code == RATE_LIMITED], ticket)
        return lost + [
            LostEvent(*name_of(piece[index]), code, f"the service refuses it ({code})")
            for index, code in refused
            if code != RATE_LIMITED
        ]

    def _postpone(self, limited: list[bytes], ticket: Ticket) -> list[LostEvent]:
        """Send rate-limited events later, from disk. Only without a disk do all events wait. Returns those that find no room."""
        if not limited or self._store(limited):
            self._breaker.succeeded(ticket)
            if limited:
                self._look_at, self._limited_on_disk = self._clock() + LOOK_EVERY_SECONDS, True
            return []
        self._breaker.failed(ticket, LOOK_EVERY_SECONDS)
        return self._to_end_of_memory(limited)

    def _to_end_of_memory(self, events: list[bytes]) -> list[LostEvent]:
        """Put events back into memory, last in line. Returns those that find no room."""
        without_room = [event for event in events if not self._buffer.put(event, self._clock())]
        return [LostEvent(*name_of(event), "buffer_full", BUFFER_FULL) for event in without_room]

    def _try_again(self, load: Load, piece: list[bytes], may_be_an_event: bool) -> list[LostEvent]:
        """Send again later. If the service may fail on one event, single it out and put it last in line. Returns events without room."""
        if not may_be_an_event:
            load.pieces.appendleft(piece)
        elif len(piece) > 1:
            load.pieces.extendleft(reversed(_halves(piece)))
        elif not self._store(piece):
            return self._to_end_of_memory(piece)
        return []

    def _own_to_disk(self) -> bool:
        """Write to disk while the service is away. False if there is nothing to write, or writing fails."""
        with self._lock:
            events = list(chain.from_iterable(self._own.pieces))
            if not events or not self._store(events):
                return False
            self._own.pieces.clear()
        return True

    def _store(self, events: Sequence[bytes]) -> bool:
        if self._spool is None:
            return False
        try:
            self._spool.append(events)
        except SpoolError as error:
            self.notices.warn(
                "disk", f"Events cannot be written to disk and stay in memory while there is room: {error}."
            )
            return False
        self._count("spooled", len(events))
        # Look for them as soon as the service may be asked.
        self._look_at = float("-inf")
        return True

    def _warn_away(self, outcome: Away, wait: float) -> None:
        kept = "in memory" if self._spool is None else "on disk"
        self.notices.warn(
            "away",
            f"Cannot send events to {self._options.url} ({outcome.why}); they are kept {kept}, trying again in {wait:.1f} s.",
        )

    def _lose(self, events: Sequence[bytes], code: str, message: str) -> None:
        """Report events that will not be stored."""
        self._report([LostEvent(*name_of(event), code, message) for event in events])

    def _report(self, lost: Sequence[LostEvent]) -> None:
        """Count, log and report events that will not be stored. Never raises, whatever the product's `on_error` does."""
        for event in lost:
            dropped = event.code in {"buffer_full", "closed"}
            self._count("dropped" if dropped else "refused", 1)
            # The log gets one line a minute for each kind; the callback gets every event.
            self.notices.warn(event.code, f"The event {event.event_id} ({event.event_type}) is lost: {event.message}.")
            if self._on_error is not None:
                try:
                    self._on_error(event)
                except Exception as error:  # noqa: BLE001 - the product's own code, in our thread
                    self.notices.warn("on_error", f"`on_error` raised {type(error).__name__}: {error}.")

    def _count(self, name: str, amount: int) -> None:
        with self._count_lock:
            self._counts[name] += amount


def _halves(piece: list[bytes]) -> tuple[list[bytes], list[bytes]]:
    middle = len(piece) // 2
    return piece[:middle], piece[middle:]


def _pieces(events: Sequence[bytes]) -> deque[list[bytes]]:
    """Split events into pieces, each as large as one request may be."""
    pieces: deque[list[bytes]] = deque()
    size = 0
    for event in events:
        if not pieces or len(pieces[-1]) == MAX_BATCH or size + len(event) > MAX_BATCH_BYTES:
            pieces.append([])
            size = 0
        pieces[-1].append(event)
        size += len(event)
    return pieces
