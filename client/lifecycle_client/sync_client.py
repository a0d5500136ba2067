"""The assignment client for threads."""

import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import httpx

from lifecycle_client.answers import Assignments
from lifecycle_client.core import Core, ask
from lifecycle_client.exceptions import AssignmentClientError, ClientClosedError
from lifecycle_client.forks import renew_after_fork
from lifecycle_client.options import (
    DEFAULT_MAX_ENTRIES,
    DEFAULT_STALE_FOR,
    DEFAULT_TIMEOUT,
    DEFAULT_TTL,
    read_options,
)
from lifecycle_client.sending import LIMITS, post
from lifecycle_client.wire import Reply, Unreachable


class AssignmentClient:
    """Asks for assignments. One for each process is enough: threads share it, and a forked child gets its own connections.

    No call waits much longer than `timeout`, and none waits while the service is known to be away.
    """

    def __init__(
        self,
        api_key: str | None = None,
        base_url: str | None = None,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        ttl: float = DEFAULT_TTL,
        max_entries: int = DEFAULT_MAX_ENTRIES,
        stale_for: float = DEFAULT_STALE_FOR,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
        make_transport: Callable[[], httpx.BaseTransport] | None = None,
    ) -> None:
        """Connects to nothing yet. Raises ClientSetupError.

        `api_key`: else LIFECYCLE_API_KEY. `base_url`: else ASSIGNMENT_SERVICE_URL, else http://127.0.0.1:8000.
        `timeout`: seconds for one request. `ttl`: longest time in seconds that an answer is fresh; the service's max-age may shorten it.
        `max_entries`: most answers in memory. `stale_for`: seconds after its freshness for which an answer is used during an outage.
        `clock` returns seconds and never goes back; `jitter` returns numbers from 0 up to, but not including, 1.
        `make_transport` is called again in a forked child.
        """
        options = read_options(api_key, base_url, timeout, ttl, max_entries, stale_for)
        self._core: Core[threading.Event] = Core(options, threading.Event, clock, jitter)
        self._make_transport = make_transport
        self._lock = threading.Lock()
        self._http: httpx.Client | None = None
        self._inherited: list[httpx.Client] = []
        self._closed = False
        renew_after_fork(self)

    def assign(
        self,
        unit_type: str,
        unit_id: str,
        experiments: Sequence[str],
        *,
        context: Mapping[str, Any] | None = None,
        enroll: bool = True,
    ) -> Assignments:
        """An entry for each experiment; the last known one while the service is away. With `enroll=False` nothing is stored.

        Raises KeyRefusedError (401, 403) and RequestRefusedError (400 and similar) with the service's message, and ClientClosedError.
        """
        question = ask(unit_type, unit_id, experiments, context, enroll)
        if self._closed:
            raise ClientClosedError("This client is closed.")
        deadline = self._core.clock() + self._core.options.timeout
        while True:
            plan = self._core.plan(question)
            if plan.own is not None:
                with self._core.flying(plan.own):
                    self._core.land(plan.own, self._send(plan.own.body))
            for flight in dict.fromkeys(plan.joined.values()):
                flight.done.wait(max(0.0, deadline - self._core.clock()))
            answer = self._core.settle(question, plan)
            if answer is not None:
                return answer

    def variant(
        self,
        unit_type: str,
        unit_id: str,
        experiment: str,
        default: str,
        *,
        context: Mapping[str, Any] | None = None,
        enroll: bool = True,
    ) -> str:
        """Name of the unit's variant, or `default`. Never raises: a refusal is logged, at most once a minute."""
        return self._try(unit_type, unit_id, experiment, context, enroll).variant(experiment, default)

    def config(
        self,
        unit_type: str,
        unit_id: str,
        experiment: str,
        default: Mapping[str, Any],
        *,
        context: Mapping[str, Any] | None = None,
        enroll: bool = True,
    ) -> Mapping[str, Any]:
        """The complete config of the unit's variant, or `default`. Never raises: a refusal is logged, at most once a minute."""
        return self._try(unit_type, unit_id, experiment, context, enroll).config(experiment, default)

    def close(self) -> None:
        """Close the connections; later calls raise ClientClosedError or return defaults. Calling it again does nothing."""
        self._closed = True
        with self._lock:
            http, self._http = self._http, None
        if http is not None:
            http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def after_fork(self) -> None:
        """In the forked child: set the parent's connections aside unused, since even closing them here could disturb the parent."""
        self._lock = threading.Lock()
        if self._http is not None:
            self._inherited.append(self._http)
            self._http = None
        self._core.after_fork()

    def _try(
        self, unit_type: str, unit_id: str, experiment: str, context: Mapping[str, Any] | None, enroll: bool
    ) -> Assignments:
        try:
            return self.assign(unit_type, unit_id, [experiment], context=context, enroll=enroll)
        except AssignmentClientError as error:
            self._core.report(error)
            return Assignments({}, {})

    def _send(self, body: bytes) -> Reply | Unreachable:
        options = self._core.options
        try:
            return post(self._connections(), options.url, body, options.timeout, self._core.clock)
        except RuntimeError:
            # Raised by httpx if another thread closed the client.
            if self._closed:
                raise ClientClosedError("This client is closed.") from None
            raise

    def _connections(self) -> httpx.Client:
        with self._lock:
            if self._closed:
                raise ClientClosedError("This client is closed.")
            if self._http is None:
                self._http = httpx.Client(
                    headers=self._core.options.headers,
                    timeout=self._core.options.timeout,
                    limits=LIMITS,
                    transport=self._make_transport() if self._make_transport else None,
                )
            return self._http
