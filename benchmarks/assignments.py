"""The measurements of `POST /api/v1/assignments`: the real API beside a floor on the same server software, in alternating rounds."""

import contextlib
import statistics
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg

from benchmarks.figures import Figure, Memory
from benchmarks.load import Load, LoadResult, measure, unit_id
from benchmarks.servers import Server, environment, running
from experimentation.runs.lifecycle import create_run, start_run
from experimentation.runs.run import NewVariant
from foundation.api_keys import make_api_key
from foundation.audit import Change
from foundation.settings import Settings
from orchestration.local.ports import free_port

EXPERIMENT = "bench"
STORED_UNITS = 1_000
MEMORY = "memory"
WARM_UP_SECONDS = 0.2
# Limits are on while it is measured, as in production, and never reached.
NEVER_REACHED = "1000000000"
BODY = '{"unit_type":"household","unit_id":"{unit}","requested_experiments":["' + EXPERIMENT + '"]}'

FILL = """
INSERT INTO exp.assignments (experiment_id, unit_type, unit_id, variant_id, epoch, propensity)
SELECT v.experiment_id, 'household', %(prefix)s || lpad(g::text, 8, '0'), v.id, 1, v.allocation
FROM generate_series(0, %(units)s - 1) g CROSS JOIN exp.variants v
WHERE v.experiment_id = %(run)s AND v.name = 'control'
"""


@dataclass(frozen=True)
class Way:
    """One way through the API: its name on the command line and in words, its floor and goals."""

    name: str
    title: str
    floor: str
    connections: int
    goal: float
    new_units: bool = False
    p99_goal_ms: float | None = None
    settings: dict[str, str] = field(default_factory=dict)


NO_CACHE = {"assignment_cache_entries": "0"}
PATHS = (
    Way("hit", "hit: stored units, in memory", "bare", 32, 0.50, p99_goal_ms=20),
    Way("no-cache", "no cache: stored units, read", "bare", 32, 0.30, settings=NO_CACHE),
    Way("new", "new units, 32 connections", "insert", 32, 2.5, new_units=True, p99_goal_ms=100),
    Way("new-4", "new units, 4 connections", "insert", 4, 1.0, new_units=True),
    Way("new-1", "new units, 1 connection", "insert", 1, 1.0, new_units=True),
    Way("new-alike", "new units, 32 connections", "ungrouped", 32, 2.5, new_units=True, p99_goal_ms=100),
    Way("new-alike-4", "new units, 4 connections", "ungrouped", 4, 1.0, new_units=True),
    Way("new-alike-1", "new units, 1 connection", "ungrouped", 1, 1.0, new_units=True),
)
NAMES = (*(path.name for path in PATHS), MEMORY)
FLOORS = {
    "bare": "fixed answer",
    "insert": "one INSERT a request, nothing else",
    "ungrouped": "one INSERT a request, all else alike",
}


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    names: Collection[str] = NAMES
    rounds: int = 3
    seconds: float = 2.0
    memory_units: int = 1_000_000


@dataclass
class _Round:
    result: LoadResult
    cpu_us: float


class AssignmentBench:
    """The measurements on one migrated database, with an experiment and a key of their own."""

    def __init__(self, url: str, folder: Path, plan: Plan, say: Callable[[str], None]) -> None:
        """Makes the experiment and the key in the database at `url`; logs and the children's home go to `folder`."""
        self._url, self._folder, self._plan, self._say = url, folder, plan, say
        self._run_id, key = _prepare(url)
        self._request = request_text(key)
        self._next_unit = 0

    def measure(self) -> tuple[list[Figure], Memory | None]:
        """Every path of the plan. Raises LoadError for an answer that is not 200, BenchError for a server that does not run."""
        figures: list[Figure] = []
        chosen = [path for path in PATHS if path.name in self._plan.names]
        for floor in FLOORS:
            paths = [path for path in chosen if path.floor == floor]
            if paths:
                figures += self._beside(floor, paths)
        return figures, self._memory() if MEMORY in self._plan.names else None

    def _beside(self, floor: str, paths: Sequence[Way]) -> list[Figure]:
        figures = []
        with contextlib.ExitStack() as stack:
            self._say(f"starting the floor '{floor}' and the API")
            floor_server = stack.enter_context(self._floor(floor))
            servers: dict[str, Server] = {}
            for path in paths:
                key = str(path.settings)
                if key not in servers:
                    servers[key] = stack.enter_context(self._api(f"api-{path.name}", path.settings))
                    self._warm(servers[key])
            self._one(floor_server, paths[0], ours=False, note=f"warming up the floor '{floor}'")
            # Paths of one number of connections share the floor's rounds.
            for connections in dict.fromkeys(path.connections for path in paths):
                group = [path for path in paths if path.connections == connections]
                floors: list[_Round] = []
                ours: dict[str, list[_Round]] = {path.name: [] for path in group}
                for number in range(1, self._plan.rounds + 1):
                    where = f"round {number} of {self._plan.rounds}"
                    floors.append(
                        self._one(
                            floor_server,
                            group[0],
                            ours=False,
                            note=f"{where}: the floor '{floor}', {connections} at once",
                        )
                    )
                    for path in group:
                        server = servers[str(path.settings)]
                        note = f"{where}: {path.title} (process {server.process.pid})"
                        ours[path.name].append(self._one(server, path, ours=True, note=note))
                figures += [_figure(path, ours[path.name], floors) for path in group]
        return figures

    def _one(self, server: Server, path: Way, *, ours: bool, note: str) -> _Round:
        self._say(note)
        units: dict[str, Any] = {"cycle": STORED_UNITS}
        if path.new_units:
            units = {"prefix": "n" if ours else "f", "first": self._next_unit}
        load = Load(
            server.port, self._request, path.connections, seconds=self._plan.seconds, warm_up=WARM_UP_SECONDS, **units
        )
        before = server.cpu_seconds()
        result = measure(load)
        spent = server.cpu_seconds() - before
        if path.new_units:
            self._next_unit += result.sent
        return _Round(result, spent / result.sent * 1e6)

    def _warm(self, server: Server) -> None:
        """Every stored unit twice: stored by the first server, in the memory of each that has one."""
        measure(Load(server.port, self._request, count=2 * STORED_UNITS, cycle=STORED_UNITS))

    def _memory(self) -> Memory:
        units = self._plan.memory_units
        self._say(f"storing {units:,} units for the measurement of memory")
        with psycopg.connect(self._url) as connection:
            connection.execute(FILL, {"prefix": "m", "units": units, "run": self._run_id})
            connection.commit()
            connection.autocommit = True
            connection.execute("ANALYZE exp.assignments")
        with self._api("api-memory", {}) as server:
            self._warm(server)
            before = server.resident_mb()
            half = units // 2
            self._say(f"asking for {units:,} distinct units (process {server.process.pid})")
            measure(Load(server.port, self._request, prefix="m", count=half))
            halfway = server.resident_mb()
            result = measure(Load(server.port, self._request, prefix="m", first=half, count=units - half))
            return Memory(
                units=units,
                held=Settings().assignment_cache_entries,
                before_mb=before,
                halfway_mb=halfway,
                after_mb=server.resident_mb(),
                per_second=result.per_second,
            )

    @contextlib.contextmanager
    def _api(self, name: str, settings: dict[str, str], module: str = "serving") -> Iterator[Server]:
        port = free_port()
        given = environment(
            self._folder / "home",
            self._url,
            api_port=str(port),
            # A day, not nine weeks, of partitions of events to make at start.
            first_day=datetime.now(UTC).date().isoformat(),
            rate_limit_unit_per_minute=NEVER_REACHED,
            rate_limit_key_per_minute=NEVER_REACHED,
            **settings,
        )
        with running(name, [module], port, given, self._request, self._folder) as server:
            yield server

    @contextlib.contextmanager
    def _floor(self, floor: str) -> Iterator[Server]:
        if floor == "ungrouped":
            with self._api("floor-ungrouped", {}, "benchmarks.ungrouped") as server:
                yield server
            return
        port = free_port()
        command = ["benchmarks.floor", floor, "--port", str(port), "--run-id", str(self._run_id)]
        given = environment(self._folder / "home", self._url)
        with running(f"floor-{floor}", command, port, given, self._request, self._folder) as server:
            yield server


def request_text(key: str) -> str:
    """The whole request, with `{unit}` where the unit's id stands."""
    length = len(BODY.replace("{unit}", unit_id("h", 0)))
    return (
        "POST /api/v1/assignments HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        f"Authorization: Bearer {key}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{BODY}"
    )


def _prepare(url: str) -> tuple[UUID, str]:
    """A running experiment of two equal arms, and a key that may ask for it."""
    change = Change("bench", "to be measured")
    half = Decimal("0.5")
    arms = [
        NewVariant(name="control", role="control", allocation=half, config={"params": {"blue": True}}),
        NewVariant(name="treatment", role="treatment", allocation=half, config={"params": {"blue": False}}),
    ]
    with psycopg.connect(url) as connection:
        made = create_run(connection, name=EXPERIMENT, unit_type="household", variants=arms, change=change)
        start_run(connection, made.id, change=change)
        _, key = make_api_key(connection, EXPERIMENT, ["assign"])
    return made.id, key


def _figure(way: Way, ours: Sequence[_Round], floors: Sequence[_Round]) -> Figure:
    def median(rounds: Sequence[_Round], value: Callable[[_Round], float]) -> float:
        return statistics.median(value(one) for one in rounds)

    return Figure(
        path=way.title,
        what="requests",
        per_second=median(ours, lambda one: one.result.per_second),
        floor=FLOORS[way.floor],
        floor_per_second=median(floors, lambda one: one.result.per_second),
        goal=way.goal,
        p50_ms=median(ours, lambda one: one.result.p50_ms),
        p99_ms=median(ours, lambda one: one.result.p99_ms),
        p99_goal_ms=way.p99_goal_ms,
        cpu_us=median(ours, lambda one: one.cpu_us),
        floor_cpu_us=median(floors, lambda one: one.cpu_us),
        floor_only_computes=way.floor == "bare",
    )
