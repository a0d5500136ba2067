"""What both assignment clients share: which names to ask for, one request for the same question, and what a reply means."""

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from lifecycle_client.answers import UNAVAILABLE, Assignment, Assignments, Skipped
from lifecycle_client.breaker import Breaker, Ticket
from lifecycle_client.exceptions import AssignmentClientError, RequestRefusedError
from lifecycle_client.known_answers import Entry, Key, KnownAnswers
from lifecycle_client.notices import Notices
from lifecycle_client.options import Options
from lifecycle_client.wire import (
    Known,
    Refusal,
    Reply,
    Unreachable,
    UnreadableAnswerError,
    encode_request,
    hold_seconds,
    read_answer,
    read_refusal,
    retry_after,
)


class Waiter(Protocol):
    """`threading.Event` or `asyncio.Event`."""

    def set(self) -> None:
        """Wake all waiting callers."""


W = TypeVar("W", bound=Waiter)


@dataclass(frozen=True, slots=True)
class Question:
    """What a caller asks. `context` is JSON, `fingerprint` its hash; both are empty if there is no context."""

    unit_type: str
    unit_id: str
    experiments: tuple[str, ...]
    context: bytes
    fingerprint: bytes
    enroll: bool

    def key(self, experiment: str) -> Key:
        """The cache key of the answer for one experiment."""
        return Key(self.unit_type, self.unit_id, experiment, self.fingerprint, self.enroll)

    @property
    def unit(self) -> tuple[str, str]:
        """(type, id) of the unit in question."""
        return self.unit_type, self.unit_id


@dataclass(frozen=True, slots=True)
class Away:
    """There is no answer now; it may come later."""


@dataclass(frozen=True, slots=True)
class Abandoned:
    """The caller that sent the request went away (cancelled, interrupted)."""


Outcome = Mapping[str, Known] | Refusal | Away | Abandoned


@dataclass(eq=False)
class Flight(Generic[W]):
    """One request in flight: the names it asks for, and its outcome once `done` is set."""

    question: Question
    names: list[str]
    body: bytes
    ticket: Ticket
    began: float
    done: W
    outcome: Outcome | None = None


@dataclass
class Plan(Generic[W]):
    """How a question will be answered: fresh answers, the request to send, and other callers' requests to wait for (by name)."""

    fresh: dict[str, Assignment | Skipped] = field(default_factory=dict)
    own: Flight[W] | None = None
    joined: dict[str, Flight[W]] = field(default_factory=dict)


class Core(Generic[W]):
    """State of one client. Every method is safe to call from any thread."""

    def __init__(
        self,
        options: Options,
        make_waiter: Callable[[], W],
        clock: Callable[[], float],
        jitter: Callable[[], float],
    ) -> None:
        """`clock` returns seconds and never goes back; `jitter` returns numbers from 0 up to, but not including, 1."""
        self.options, self.clock = options, clock
        self._make_waiter = make_waiter
        self._lock = threading.Lock()
        self._known = KnownAnswers(options.max_entries)
        self._breaker = Breaker(clock, jitter)
        self._flights: dict[Key, Flight[W]] = {}
        self._notices = Notices(clock)

    def plan(self, question: Question) -> Plan[W]:
        """Plan the answer. Send the request in `own` inside `flying`."""
        plan: Plan[W] = Plan()
        missing: list[str] = []
        now = self.clock()
        with self._lock:
            for name in question.experiments:
                key = question.key(name)
                entry = self._known.get(key, now)
                if entry is not None and now < entry.fresh_until:
                    plan.fresh[name] = entry.answer.result(question.unit, "cache")
                elif key in self._flights:
                    plan.joined[name] = self._flights[key]
                else:
                    missing.append(name)
            if missing:
                plan.own = self._start(question, missing, now)
        return plan

    @contextmanager
    def flying(self, flight: Flight[W]) -> Iterator[None]:
        """Whatever happens inside, no caller waits for this request for ever."""
        try:
            yield
        finally:
            if flight.outcome is None:
                with self._lock:
                    self._breaker.abandoned(flight.ticket)
                    self._end(flight, Abandoned())

    def land(self, flight: Flight[W], reply: Reply | Unreachable) -> None:
        """End the request: remember its answers and wake the waiting callers."""
        with self._lock:
            outcome, why, wait = self._judge(flight, reply)
            self._end(flight, outcome)
        if wait is not None:
            self._notices.warn("away", f"No assignments from {self.options.url} ({why}); asking again in {wait:.1f} s.")

    def settle(self, question: Question, plan: Plan[W]) -> Assignments | None:
        """The answer from what is known by now; None if another caller's request did not help, so plan again.

        Raises KeyRefusedError, RequestRefusedError.
        """
        results = dict(plan.fresh)
        flights = dict(plan.joined)
        if plan.own is not None:
            flights |= dict.fromkeys(plan.own.names, plan.own)
        for name, flight in flights.items():
            outcome = flight.outcome
            if isinstance(outcome, Abandoned):
                return None
            if isinstance(outcome, Refusal):
                # The mistake in another question need not be in this one.
                if not outcome.about_key and not set(flight.names) <= set(question.experiments):
                    return None
                raise outcome.error()
            if isinstance(outcome, Mapping) and name in outcome:
                results[name] = outcome[name].result(question.unit, "service")
        entries = [results.get(name) or self._last_known(question, name) for name in question.experiments]
        return Assignments(
            {entry.experiment: entry for entry in entries if isinstance(entry, Assignment)},
            {entry.experiment: entry for entry in entries if isinstance(entry, Skipped)},
        )

    def report(self, error: AssignmentClientError) -> None:
        """Log a mistake of the calling program, each kind at most once a minute."""
        request = f" (request {error.request_id})" if error.request_id else ""
        self._notices.warn(f"{type(error).__name__} {error.status}", f"The default is used: {error.message}{request}")

    def forget_flights(self) -> None:
        """Forget requests in flight, which belong to another event loop or process and will never land here."""
        with self._lock:
            self._flights.clear()
            self._breaker.forget_probe()

    def after_fork(self) -> None:
        """In the forked child: take a new lock, since a thread of the parent may hold the old one. Answers stay known."""
        self._lock = threading.Lock()
        self._notices.after_fork()
        self.forget_flights()

    def _start(self, question: Question, names: list[str], now: float) -> Flight[W] | None:
        body = encode_request(question.unit_type, question.unit_id, names, question.context, question.enroll)
        ticket = self._breaker.enter(question.unit)
        if ticket is None:
            return None
        flight = Flight(question, names, body, ticket, now, self._make_waiter())
        self._flights |= {question.key(name): flight for name in names}
        return flight

    def _end(self, flight: Flight[W], outcome: Outcome) -> None:
        for name in flight.names:
            if self._flights.get(flight.question.key(name)) is flight:
                del self._flights[flight.question.key(name)]
        flight.outcome = outcome
        flight.done.set()

    def _judge(self, flight: Flight[W], reply: Reply | Unreachable) -> tuple[Outcome, str, float | None]:
        """The outcome, why the service counts as away, and the seconds until it is asked again (None if it is not away)."""
        question, ticket = flight.question, flight.ticket
        if isinstance(reply, Unreachable):
            return Away(), reply.why, self._breaker.failed(ticket, None)
        if reply.status == 429:
            return Away(), "too many requests", self._breaker.limited(ticket, question.unit, retry_after(reply))
        outcome, why = self._read(flight, reply)
        if isinstance(outcome, Away):
            return outcome, why, self._breaker.failed(ticket, retry_after(reply))
        self._breaker.succeeded(ticket)
        return outcome, why, None

    def _read(self, flight: Flight[W], reply: Reply) -> tuple[Outcome, str]:
        if reply.status != 200:
            refusal = read_refusal(reply) if reply.status < 500 else None
            return refusal or Away(), f"status {reply.status}"
        try:
            answers = read_answer(reply.body)
        except UnreadableAnswerError as error:
            return Away(), f"an answer that cannot be read: {error}"
        self._remember(flight, answers, hold_seconds(reply.headers))
        return answers, "answered"

    def _remember(self, flight: Flight[W], answers: Mapping[str, Known], hold: float | None) -> None:
        """Keep the answers, counting from the start of the request, so that none is kept longer than the service allows."""
        for name in flight.names:
            key = flight.question.key(name)
            if hold is None or name not in answers:
                self._known.drop(key)
            else:
                fresh_until = flight.began + min(self.options.ttl, hold)
                self._known.put(key, Entry(answers[name], fresh_until, fresh_until + self.options.stale_for))

    def _last_known(self, question: Question, name: str) -> Assignment | Skipped:
        now = self.clock()
        with self._lock:
            entry = self._known.get(question.key(name), now)
        if entry is None:
            return Skipped(name, UNAVAILABLE, "default")
        return entry.answer.result(question.unit, "cache" if now < entry.fresh_until else "stale")


def ask(
    unit_type: str,
    unit_id: str,
    experiments: Sequence[str],
    context: Mapping[str, Any] | None,
    enroll: bool,
) -> Question:
    """The question with each name once. Raises RequestRefusedError if it cannot be sent."""
    if not (isinstance(unit_type, str) and isinstance(unit_id, str)):
        raise RequestRefusedError("`unit_type` and `unit_id` must be strings.")
    if isinstance(experiments, str) or not all(isinstance(name, str) for name in experiments):
        raise RequestRefusedError("`experiments` must be a list of names.")
    try:
        "".join((unit_type, unit_id, *experiments)).encode()
        encoded = msgspec.json.encode(dict(context), order="deterministic") if context else b""
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestRefusedError(f"The question cannot be encoded as JSON: {error}.") from error
    fingerprint = hashlib.sha256(encoded).digest() if encoded else b""
    return Question(unit_type, unit_id, tuple(dict.fromkeys(experiments)), encoded, fingerprint, enroll)
