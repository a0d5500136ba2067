"""What both clients share: which names must be asked for, one request for the same question, what a reply means."""

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from lifecycle_client.breaker import Breaker, Ticket
from lifecycle_client.cache import Entry, Key, KnownAnswers
from lifecycle_client.errors import AssignmentClientError, RequestRefusedError
from lifecycle_client.notices import Notices
from lifecycle_client.options import Options
from lifecycle_client.records import UNAVAILABLE, Assignment, Assignments, Skipped
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
        """Wake whoever waits."""


W = TypeVar("W", bound=Waiter)


@dataclass(frozen=True, slots=True)
class Question:
    """What a caller asks; `context` as JSON, and its fingerprint."""

    unit_type: str
    unit_id: str
    experiments: tuple[str, ...]
    context: bytes
    fingerprint: bytes
    enroll: bool

    def key(self, experiment: str) -> Key:
        """Of one name's answer."""
        return Key(self.unit_type, self.unit_id, experiment, self.fingerprint, self.enroll)

    @property
    def unit(self) -> tuple[str, str]:
        """Whom it is about."""
        return self.unit_type, self.unit_id


@dataclass(frozen=True, slots=True)
class Away:
    """No answer, and it may come later."""


@dataclass(frozen=True, slots=True)
class Abandoned:
    """The caller whose request it was went away (cancelled, interrupted)."""


Outcome = Mapping[str, Known] | Refusal | Away | Abandoned


@dataclass(eq=False)
class Flight(Generic[W]):
    """One request on its way: the names it asks for, and what came of it once `done` is set."""

    question: Question
    names: list[str]
    body: bytes
    ticket: Ticket
    began: float
    done: W
    outcome: Outcome | None = None


@dataclass
class Plan(Generic[W]):
    """How a question will be answered: what is fresh, the request to make, the requests of others to wait for (by name)."""

    fresh: dict[str, Assignment | Skipped] = field(default_factory=dict)
    own: Flight[W] | None = None
    joined: dict[str, Flight[W]] = field(default_factory=dict)


class Core(Generic[W]):
    """State of one client. Every method may be called from any thread."""

    def __init__(
        self,
        options: Options,
        make_waiter: Callable[[], W],
        clock: Callable[[], float],
        jitter: Callable[[], float],
    ) -> None:
        """`clock` in seconds, never going back; `jitter` gives numbers from 0 on and below 1."""
        self.options, self.clock = options, clock
        self._make_waiter = make_waiter
        self._lock = threading.Lock()
        self._known = KnownAnswers(options.max_entries)
        self._breaker = Breaker(clock, jitter)
        self._flights: dict[Key, Flight[W]] = {}
        self._notices = Notices(clock)

    def plan(self, question: Question) -> Plan[W]:
        """Decide; a request in `own` must be made inside `flying`."""
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
        """Whatever happens inside, nobody waits for this request for ever."""
        try:
            yield
        finally:
            if flight.outcome is None:
                with self._lock:
                    self._breaker.abandoned(flight.ticket)
                    self._end(flight, Abandoned())

    def land(self, flight: Flight[W], reply: Reply | Unreachable) -> None:
        """The request is over: remember what it tells, wake those who wait."""
        with self._lock:
            outcome, why, wait = self._judge(flight, reply)
            self._end(flight, outcome)
        if wait is not None:
            self._notices.warn("away", f"No assignments from {self.options.url} ({why}); asking again in {wait:.1f} s.")

    def settle(self, question: Question, plan: Plan[W]) -> Assignments | None:
        """The answer, of what is there by now; None: a request of somebody else told nothing, plan anew.

        Raises KeyRefusedError, RequestRefusedError.
        """
        found = dict(plan.fresh)
        flights = dict(plan.joined)
        if plan.own is not None:
            flights |= dict.fromkeys(plan.own.names, plan.own)
        for name, flight in flights.items():
            outcome = flight.outcome
            if isinstance(outcome, Abandoned):
                return None
            if isinstance(outcome, Refusal):
                # What was wrong with another question need not be wrong with this one.
                if not outcome.about_key and not set(flight.names) <= set(question.experiments):
                    return None
                raise outcome.error()
            if isinstance(outcome, Mapping) and name in outcome:
                found[name] = outcome[name].result(question.unit, "service")
        results = [found.get(name) or self._last_known(question, name) for name in question.experiments]
        return Assignments(
            {one.experiment: one for one in results if isinstance(one, Assignment)},
            {one.experiment: one for one in results if isinstance(one, Skipped)},
        )

    def report(self, error: AssignmentClientError) -> None:
        """Log a mistake of the program, once a minute for each kind."""
        asked = f" (request {error.request_id})" if error.request_id else ""
        self._notices.warn(f"{type(error).__name__} {error.status}", f"The default is used: {error.message}{asked}")

    def forget_flights(self) -> None:
        """Nobody will land what is on its way: another event loop, another process."""
        with self._lock:
            self._flights.clear()
            self._breaker.forget_probe()

    def after_fork(self) -> None:
        """In the child: a lock that no thread of the parent holds; answers stay known."""
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
        """What came of it, why the service counts as away, and how many seconds it is not asked for (None: it is)."""
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
            return Away(), f"an answer that can't be read: {error}"
        self._remember(flight, answers, hold_seconds(reply.headers))
        return answers, "answered"

    def _remember(self, flight: Flight[W], answers: Mapping[str, Known], hold: float | None) -> None:
        """Counted from when the request was made, so that no answer is held longer than the service said."""
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
    """The question, each name once. Raises RequestRefusedError for what can't be sent."""
    if not (isinstance(unit_type, str) and isinstance(unit_id, str)):
        raise RequestRefusedError("`unit_type` and `unit_id` are texts.")
    if isinstance(experiments, str) or not all(isinstance(name, str) for name in experiments):
        raise RequestRefusedError("`experiments` is a list of names.")
    try:
        "".join((unit_type, unit_id, *experiments)).encode()
        encoded = msgspec.json.encode(dict(context), order="deterministic") if context else b""
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestRefusedError(f"The question can't be sent as JSON: {error}.") from error
    fingerprint = hashlib.sha256(encoded).digest() if encoded else b""
    return Question(unit_type, unit_id, tuple(dict.fromkeys(experiments)), encoded, fingerprint, enroll)
