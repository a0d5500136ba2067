"""Measuring events over HTTP: batches and single events, against COPY of the same rows and against one INSERT per request."""

import contextlib
import statistics
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import psycopg

from benchmarks.figures import Figure
from benchmarks.load import Load, LoadResult, measure, write_requests
from benchmarks.servers import NEVER_REACHED, BenchError, Server, environment, running
from eventlog.event_ids import new_event_id
from eventlog.partitions import ensure_event_partitions
from foundation.api_keys import make_api_key
from orchestration.local.ports import free_port

WARM_UP_EVENTS = 500
UNITS = 50_000
COLUMNS = "id, event_type, unit_type, unit_id, experiments, context, metrics, payload, timestamp"
COPY, ALIKE = "COPY of the same rows", "one INSERT a request, all else alike"


@dataclass(frozen=True)
class Way:
    """A way of sending the same events."""

    name: str
    title: str
    batch: int
    connections: int
    floor: str
    goal: float | None = None
    p99_goal_ms: float | None = None


WAYS = (
    Way("batch", "batches of 1,000, 4 connections", 1_000, 4, COPY, 0.65, p99_goal_ms=2_000),
    Way("batch-1", "batches of 1,000, 1 connection", 1_000, 1, COPY),
    Way("batch-100", "batches of 100, 4 connections", 100, 4, COPY, p99_goal_ms=500),
    Way("single", "single events, 128 connections", 1, 128, COPY, 0.15),
    Way("single-alike", "single events, 128 connections", 1, 128, ALIKE, 2.0),
    Way("single-32", "single events, 32 connections", 1, 32, COPY, p99_goal_ms=100),
)


class IngestionBench:
    """Measurements on a migrated, empty database."""

    def __init__(self, url: str, folder: Path, count: int, rounds: int, say: Callable[[str], None]) -> None:
        """`count`: events per measurement. Logs and requests go to `folder`."""
        self._url, self._folder, self._rounds, self._say = url, folder, rounds, say
        self._count = count
        self._connection = psycopg.connect(url, autocommit=True)
        ensure_event_partitions(self._connection, datetime.now(UTC).date(), 1)
        _, self._key = make_api_key(self._connection, "bench_events", ["ingest"])

    def measure(self, names: Collection[str]) -> list[Figure]:
        """Measure the ways with these names. Raises LoadError for any answer other than 200, BenchError if a server does not run."""
        ways = [way for way in WAYS if way.name in names]
        figures = []
        with contextlib.ExitStack() as stack:
            self._say("starting the API")
            api = stack.enter_context(self._server("events-api", "serving"))
            alike = None
            if any(way.floor == ALIKE for way in ways):
                alike = stack.enter_context(self._server("events-ungrouped", "benchmarks.ungrouped"))
            for way in ways:
                ours: list[LoadResult] = []
                cpu: list[float] = []
                floors: list[float] = []
                for number in range(1, self._rounds + 1):
                    where = f"round {number} of {self._rounds}"
                    # New ids each time, so that no measurement meets events of another.
                    events = generate_events(self._count)
                    self._say(f"{where}: the floor of {way.title}, {way.floor}")
                    if alike is not None and way.floor == ALIKE:
                        floors.append(self._send(alike, way, events)[0].per_second)
                    else:
                        floors.append(self._copy(events))
                    self._say(f"{where}: {way.title} (process {api.process.pid})")
                    result, spent = self._send(api, way, events)
                    ours.append(result)
                    cpu.append(spent)
                figures.append(_figure(way, ours, cpu, floors))
        self._connection.close()
        return figures

    def _empty(self) -> None:
        self._connection.execute("TRUNCATE exp.events")
        self._connection.execute("CHECKPOINT")

    def _copy(self, events: Sequence[dict[str, Any]]) -> float:
        """Copy the events into the table; returns rows per second."""
        self._empty()
        lines = copy_text(events)
        began = time.perf_counter()
        with self._connection.cursor().copy(f"COPY exp.events ({COLUMNS}) FROM STDIN") as copy:
            copy.write(lines)
        return len(events) / (time.perf_counter() - began)

    def _send(self, server: Server, way: Way, events: Sequence[dict[str, Any]]) -> tuple[LoadResult, float]:
        """Send the events; returns the result, in requests, and the server's processor time per event, in µs."""
        self._empty()
        path = self._folder / f"{way.name}.requests"
        groups = [events[start : start + way.batch] for start in range(0, len(events), way.batch)]
        write_requests(path, (self._request(group, way.batch) for group in groups))
        before = server.cpu_seconds()
        result = measure(Load(server.port, connections=way.connections, prepared=str(path)))
        spent = server.cpu_seconds() - before
        ((stored,),) = self._connection.execute("SELECT count(*) FROM exp.events").fetchall()
        if stored != len(events):
            raise BenchError(f"{way.title}: {stored:,} of {len(events):,} acknowledged events are stored.")
        return result, spent / len(events) * 1e6

    def _request(self, events: Sequence[dict[str, Any]], batch: int) -> bytes:
        path, body = ("/api/v1/events", events[0]) if batch == 1 else ("/api/v1/events/batch", {"events": events})
        return http_request(path, self._key, msgspec.json.encode(body))

    @contextlib.contextmanager
    def _server(self, name: str, module: str) -> Iterator[Server]:
        port = free_port()
        env = environment(
            self._folder / "home",
            self._url,
            api_port=str(port),
            first_day=datetime.now(UTC).date().isoformat(),
            rate_limit_key_per_minute=NEVER_REACHED,
            # The limit for units stays on, because each unit has few events.
            api_services="events",
        )
        probe = http_request("/api/v1/events", self._key, msgspec.json.encode(generate_events(1)[0])).decode()
        with running(name, [module], port, env, probe, self._folder) as server:
            warm = self._folder / f"{name}.warm"
            write_requests(warm, (self._request([event], 1) for event in generate_events(WARM_UP_EVENTS)))
            measure(Load(port, prepared=str(warm)))
            yield server


def generate_events(count: int) -> list[dict[str, Any]]:
    """Events of about 600 bytes like those of a product: many units, new ids, the current time."""
    now = datetime.now(UTC)
    experiment, variant = UUID(int=1), UUID(int=2)
    return [
        {
            "event_type": "plan_generated",
            "unit_type": "household",
            "unit_id": f"h{number % UNITS}",
            "experiments": [{"experiment_id": experiment, "variant_id": variant}],
            "context": {
                "policy_version_id": "00000000-0000-4000-8000-000000000001", "app_version": "3.2.1", "platform": "ios",
                "session_id": f"s{number}", "request_id": f"r{number}",
            },
            "metrics": {"latency_ms": number % 977 + 0.5, "token_count": number % 13, "cost_usd": 0.0},
            "payload": {"plan_id": f"p{number}", "meals": [f"r{number % 97 + day}" for day in range(5)]},
            "timestamp": now,
            "event_id": new_event_id(),
        }
        for number in range(count)
    ]  # fmt: skip


def copy_text(events: Sequence[dict[str, Any]]) -> bytes:
    """The events as text for COPY, in the order of COLUMNS."""
    lines = []
    for event in events:
        data = [msgspec.json.encode(event[name]).decode() for name in ("experiments", "context", "metrics", "payload")]
        values = [
            str(event["event_id"]),
            event["event_type"],
            event["unit_type"],
            event["unit_id"],
            *data,
            event["timestamp"].isoformat(),
        ]
        lines.append("\t".join(values) + "\n")
    return "".join(lines).encode()


def http_request(path: str, key: str, body: bytes) -> bytes:
    """The complete HTTP request."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _figure(way: Way, ours: Sequence[LoadResult], cpu: Sequence[float], floors: Sequence[float]) -> Figure:
    return Figure(
        path=way.title,
        what="events",
        per_second=statistics.median(result.per_second for result in ours) * way.batch,
        floor=way.floor,
        floor_per_second=statistics.median(floors),
        goal=way.goal,
        p50_ms=statistics.median(result.p50_ms for result in ours),
        p99_ms=statistics.median(result.p99_ms for result in ours),
        p99_goal_ms=way.p99_goal_ms,
        cpu_us=statistics.median(cpu),
    )
