"""For tests of the dbt project: a database for dbt, events to fill it with, and the aggregates that they should give."""

import json
import math
import random
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import numpy as np
import psycopg
import pytest
from dbt.artifacts.schemas.run import RunExecutionResult
from dbt.cli.main import dbtRunner
from psycopg.rows import dict_row

from eventlog.partitions import ensure_event_partitions
from foundation.settings import PROJECT_ROOT, Settings
from orchestration.local.environment import child_environment

PROJECT = PROJECT_ROOT / "dbt_project"
FIRST_DAY = datetime(2026, 3, 7, tzinfo=UTC)
"""New York's clocks change on the second day: the database uses New York's time zone, which must not affect the buckets."""
DAYS = 3

Key = tuple[str, str, str, str, datetime]
Moments = tuple[int, float | None, float | None, float | None, float | None, float | None]
Event = dict[str, Any]

CONTROL, TREATMENT, REMAINDER, OTHER = (str(uuid.UUID(int=number)) for number in range(1, 5))
RUN, OTHER_RUN, DRAFT = (str(uuid.UUID(int=number)) for number in range(11, 14))
RUN_OF = {CONTROL: RUN, TREATMENT: RUN, REMAINDER: RUN, OTHER: OTHER_RUN}
RATES = {
    "acceptance_rate": (("plan_accepted",), "plan_generated"),
    "avg_edits_per_plan": (("edit_applied", "meal_swapped"), "plan_accepted"),
    "validator_intervention_rate": (("validator_intervention",), "plan_generated"),
}
PERCENTILES = {"latency_p50": 50, "latency_p95": 95, "latency_p99": 99}
PLANNING = {"plan_generated", "plan_accepted", "edit_applied", "meal_swapped", "validator_intervention"}


def carried(variant: str) -> dict[str, str]:
    return {"experiment_id": RUN_OF[variant], "variant_id": variant}


def event(event_type: str, at: datetime, variants: list[str], **more: Any) -> Event:
    return {
        "id": str(uuid.uuid4()),
        "event_type": event_type,
        "unit_id": more.pop("unit_id", "h-1"),
        "experiments": [carried(variant) for variant in variants],
        "metrics": more.pop("metrics", {}),
        "payload": more.pop("payload", None),
        "timestamp": at,
        "created_at": more.pop("created_at", datetime.now(UTC) - timedelta(hours=3)),
    }


def counts(event: Event, run: str, overridden: Set[tuple[str, str]]) -> bool:
    """Whether an event counts for the run: it is not reconstructed, and no override ever showed its unit a variant of the run."""
    return not (event["payload"] or {}).get("reconstructed") and (run, event["unit_id"]) not in overridden


def ordinary_events(seed: int = 7) -> list[Event]:
    """Three days of plans for three variants of two experiments; some plans belong to both."""
    rng = random.Random(seed)
    events = []
    for number in range(700):
        at = FIRST_DAY + timedelta(seconds=rng.uniform(0, DAYS * 86400))
        variants = [rng.choice([CONTROL, CONTROL, TREATMENT])] + ([OTHER] if rng.random() < 0.3 else [])
        unit = {"unit_id": f"h-{number % 60}"}
        cost = {"cost_usd": round(rng.uniform(0.001, 0.02), 5)} if rng.random() < 0.8 else {}
        latency = {"latency_ms": round(rng.lognormvariate(6, 0.6), 3), "token_count": rng.randint(200, 900)}
        events.append(event("plan_generated", at, variants, metrics={**latency, **cost}, **unit))
        for _ in range(edits := rng.choice([0, 0, 0, 1, 2, 4])):
            kind = rng.choice(["meal_swapped", "meal_swapped", "edit_applied"])
            events.append(event(kind, at + timedelta(seconds=rng.uniform(1, 600)), variants, **unit))
        if rng.random() < 0.1:
            events.append(event("validator_intervention", at, variants, **unit))
        if rng.random() < 0.7:
            accepted = {"metrics": {"edit_count": edits}, "payload": {"plan_id": f"p-{number}", "reconstructed": False}}
            events.append(
                event("plan_accepted", at + timedelta(seconds=rng.uniform(1, 900)), variants, **accepted, **unit)
            )
    return events


def odd_events() -> list[Event]:
    """Events that must not be counted, or not twice, or must not fail the build."""
    noon = FIRST_DAY + timedelta(hours=12)
    unknown = event("plan_generated", noon, [], metrics={"latency_ms": 1e6})
    unknown["experiments"] = [
        {"experiment_id": RUN, "variant_id": OTHER},
        {"experiment_id": "no uuid", "variant_id": "neither"},
        {"variant_id": CONTROL},
    ]
    named_twice = event("custom.seen", noon, [CONTROL], metrics={"custom_score": 2})
    named_twice["experiments"] = [carried(CONTROL), {key: value.upper() for key, value in carried(CONTROL).items()}]
    return [
        event(
            "plan_accepted",
            noon,
            [CONTROL],
            metrics={"edit_count": 9, "rating_mean": 5},
            payload={"reconstructed": True},
        ),
        event("plan_generated", noon, [], metrics={"latency_ms": 1e6}),
        # The first event counts only for the second experiment, the other two for none: an override once showed the unit a variant of the
        # first experiment.
        event("plan_generated", noon, [TREATMENT, OTHER], metrics={"latency_ms": 1e6}, unit_id="qa"),
        event("plan_generated", noon, [CONTROL], metrics={"latency_ms": 1e6}, unit_id="qa"),
        event("plan_accepted", noon + timedelta(days=1), [CONTROL], metrics={"edit_count": 1}, unit_id="qa"),
        unknown,
        named_twice,
        event("custom.large_offset", noon, [OTHER], metrics={"offset_metric": 1e15 + 1}),
        event("custom.large_offset", noon, [OTHER], metrics={"offset_metric": 1e15 + 2}),
        event("custom.large_offset", noon + timedelta(hours=2), [OTHER], metrics={"offset_metric": 1e15 + 4}),
        event("custom.negative", noon, [OTHER], metrics={"offset_metric_2": -0.1}),
        event(
            "custom.shapes",
            noon,
            [CONTROL],
            metrics={"text": "12", "flag": True, "none": None, "list": [1], "custom_score": 4},
        ),
        event(
            "custom.extremes",
            noon,
            [CONTROL],
            metrics={"custom_extreme": 1e300, "acceptance_rate": 7, "latency_p50": 7, "x" * 101: 1},
        ),
        # A separate hour in which a plan is accepted and edited, although none was generated.
        event("plan_accepted", FIRST_DAY + timedelta(days=DAYS, hours=1), [TREATMENT]),
        event("meal_swapped", FIRST_DAY + timedelta(days=DAYS, hours=1), [TREATMENT]),
    ]


def expected(events: list[Event], overridden: Set[tuple[str, str]]) -> dict[Key, Moments]:
    """The aggregates that the events should give, computed with numpy; `overridden` has (run, unit) pairs."""
    buckets: dict[tuple[str, str, datetime], list[Event]] = defaultdict(list)
    for event in events:
        named = {
            (part.get("variant_id", "").lower(), part.get("experiment_id", "").lower()) for part in event["experiments"]
        }
        hour = event["timestamp"].replace(minute=0, second=0, microsecond=0)
        for variant, run in RUN_OF.items():
            if (variant, run) in named and counts(event, run, overridden):
                buckets[variant, "hourly", hour].append(event)
                buckets[variant, "daily", hour.replace(hour=0)].append(event)
    return {
        (RUN_OF[variant], variant, metric, kind, start): moments
        for (variant, kind, start), inside in buckets.items()
        for metric, moments in {**of_numbers(inside), **of_rates(inside)}.items()
    }


def of_numbers(events: list[Event]) -> dict[str, Moments]:
    """Aggregates of every number in the events, and the percentiles of their latencies."""
    numbers: dict[str, list[float]] = defaultdict(list)
    for name, value in ((name, value) for event in events for name, value in event["metrics"].items()):
        usable = type(value) in (int, float) and abs(value) < 1e100 and len(name) <= 100
        if usable and name not in {*RATES, *PERCENTILES, "cost_per_plan"}:
            numbers[name].append(value)
    rows: dict[str, Moments] = {}
    for name, values in numbers.items():
        spread = float(np.std(np.array(values) - values[0], ddof=1)) if len(values) > 1 else None
        total = math.fsum(values)
        rows[name] = (len(values), total, total / len(values), min(values), max(values), spread)
    if latencies := numbers.get("latency_ms"):
        for name, at in PERCENTILES.items():
            rows[name] = (len(latencies), None, float(np.percentile(latencies, at)), None, None, None)
    return rows


def of_rates(events: list[Event]) -> dict[str, Moments]:
    """The four rates; empty if no event is about a plan or has a cost."""
    counts = Counter(event["event_type"] for event in events)
    costs = [event["metrics"]["cost_usd"] for event in events if "cost_usd" in event["metrics"]]
    if not (PLANNING & counts.keys() or costs):
        return {}
    ratios: dict[str, tuple[float | None, int]]
    ratios = {name: (sum(counts[part] for part in parts), counts[of]) for name, (parts, of) in RATES.items()}
    ratios["cost_per_plan"] = (math.fsum(costs) if costs else None, counts["plan_generated"])
    return {
        name: (
            denominator,
            numerator,
            numerator / denominator if numerator is not None and denominator else None,
            None,
            None,
            None,
        )
        for name, (numerator, denominator) in ratios.items()
    }


@dataclass
class Warehouse:
    """A migrated database, dbt for it, and the events that were stored."""

    url: str
    scratch: Path
    events: list[Event] = field(default_factory=list)
    overridden: set[tuple[str, str]] = field(default_factory=set)

    @property
    def target(self) -> Path:
        return self.scratch / "target"

    def connect(self) -> psycopg.Connection[dict[str, Any]]:
        return psycopg.connect(self.url, row_factory=dict_row)

    def rows(self, query: str) -> list[dict[str, Any]]:
        with self.connect() as connection:
            connection.execute("SET timezone = 'UTC'")
            return connection.execute(query).fetchall()

    def store(self, events: list[Event]) -> None:
        self.events += events
        columns = [
            "id",
            "event_type",
            "unit_id",
            "experiments",
            "metrics",
            "payload",
            "timestamp",
            "created_at",
        ]
        values = [
            [
                json.dumps(event[name]) if name in {"experiments", "metrics", "payload"} else event[name]
                for name in columns
            ]
            for event in events
        ]
        with self.connect() as connection, connection.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO exp.events "
                "(unit_type, id, event_type, unit_id, experiments, metrics, payload, timestamp, created_at) "
                "VALUES ('household', %s, %s, %s, %s, %s, nullif(%s::jsonb, 'null'), %s, %s)",
                values,
            )

    def override(self, run: str, *unit_ids: str) -> None:
        """Override the units' variant of the run, and remove the overrides at once."""
        self.overridden |= {(run, unit_id) for unit_id in unit_ids}
        with self.connect() as connection:
            for overrides in ({unit_id: "control" for unit_id in unit_ids}, {}):
                connection.execute(
                    "UPDATE exp.experiments SET overrides = %s WHERE id = %s", (json.dumps(overrides), run)
                )

    def remove(self, events: list[Event]) -> None:
        removed = {event["id"] for event in events}
        self.events = [event for event in self.events if event["id"] not in removed]
        with self.connect() as connection:
            connection.execute("DELETE FROM exp.events WHERE id = ANY(%s::uuid[])", (list(removed),))

    def invoke(self, *arguments: str, variables: Mapping[str, str] | None = None) -> Any:
        """Run dbt with the platform's environment and separate folders; returns dbt's result.

        Runs in this process: importing dbt takes as long as running it.
        """
        folders = {
            "project-dir": PROJECT,
            "profiles-dir": PROJECT,
            "target-path": self.target,
            "log-path": self.scratch / "logs",
        }
        options = [word for name, folder in folders.items() for word in (f"--{name}", str(folder))]
        environment = child_environment(Settings(database_url=self.url, home=self.scratch))
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            done = dbtRunner().invoke(["--quiet", *arguments, *options, "--vars", json.dumps(variables or {})])
        assert done.result is not None, done.exception
        return done.result

    def dbt(self, *arguments: str, variables: Mapping[str, str] | None = None) -> dict[str, str]:
        """Run `dbt build` or a similar command; returns each node's status by name. Fails on errors, but not on failed tests."""
        result = self.invoke(*arguments, variables=variables)
        assert isinstance(result, RunExecutionResult)
        errors = [(outcome.node.name, outcome.message) for outcome in result.results if outcome.status == "error"]
        assert not errors, errors
        return {outcome.node.name: str(outcome.status) for outcome in result.results}

    def aggregates(self) -> dict[Key, dict[str, Any]]:
        rows = self.rows("SELECT * FROM exp.metric_aggregates")
        by_key: dict[Key, dict[str, Any]] = {}
        for row in rows:
            run, variant = str(row["experiment_id"]), str(row["variant_id"])
            by_key[run, variant, row["metric_name"], row["bucket_type"], row["bucket_start"]] = row
        assert len(by_key) == len(rows)
        return by_key


def fill(url: str) -> None:
    """Two served runs and a draft; 70 units are enrolled in the first run."""
    with psycopg.connect(url) as connection:
        ensure_event_partitions(connection, date.today(), days_ahead=1)
        for run, name, status in (
            (RUN, "weekly_planner", "active"),
            (OTHER_RUN, "layout", "completed"),
            (DRAFT, "next", "draft"),
        ):
            connection.execute(
                "INSERT INTO exp.experiments (id, name, status, unit_type) VALUES (%s, %s, %s, 'household')",
                (run, name, status),
            )
        variants = [
            (CONTROL, "control", 0, "control", "0.1"),
            (REMAINDER, "remainder", 1, "remainder", "0.8"),
            (TREATMENT, "candidate_v2", 2, "treatment", "0.1"),
            (OTHER, "only", 0, "control", "1"),
        ]
        for variant, name, position, role, allocation in variants:
            connection.execute(
                "INSERT INTO exp.variants (id, experiment_id, name, position, role, allocation) VALUES (%s, %s, %s, %s, %s, %s)",
                (variant, RUN_OF[variant], name, position, role, allocation),
            )
        connection.execute("UPDATE exp.experiments SET shipped_variant_id = %s WHERE id = %s", (OTHER, OTHER_RUN))
        for run in (RUN, OTHER_RUN):
            shares = {variant: allocation for variant, _, _, _, allocation in variants if RUN_OF[variant] == run}
            connection.execute(
                "INSERT INTO exp.allocation_epochs (experiment_id, epoch, allocations) VALUES (%s, 1, %s)",
                (run, json.dumps(shares)),
            )
        for number in range(70):
            connection.execute(
                "INSERT INTO exp.assignments (experiment_id, unit_type, unit_id, variant_id, epoch, propensity) "
                "VALUES (%s, 'household', %s, %s, 1, 0.1)",
                (RUN, f"h-{number}", CONTROL if number % 2 else TREATMENT),
            )
        policy = connection.execute(
            "INSERT INTO exp.policies (name, description) VALUES ('planner_policy', 'Plans') RETURNING id"
        ).fetchone()
        assert policy is not None
        version = connection.execute(
            "INSERT INTO exp.policy_versions (policy_id, version, mlflow_model_name, mlflow_model_version) "
            "VALUES (%s, 2, 'planner_model', '2') RETURNING id",
            (policy[0],),
        ).fetchone()
        assert version is not None
        replays = [
            ("2", version[0], "passed", True, "[]", 0.31),
            ("3", None, "refused", False, '["alignment fell", "so did edits"]', 0.2),
        ]
        for model, policy_version, verdict, better, reasons, score in replays:
            connection.execute(
                "INSERT INTO exp.offline_replay_results (mlflow_model_name, mlflow_model_version, dataset_version, baseline_model_version, "
                "policy_version_id, verdict, is_better_than_baseline, reasons, offline_eval_score, status) "
                "VALUES ('planner_model', %s, '2026-03-10', '1', %s, %s, %s, %s, %s, 'completed')",
                (model, policy_version, verdict, better, reasons, score),
            )


def moments_of(row: Mapping[str, Any]) -> Moments:
    return row["count"], row["sum"], row["mean"], row["min"], row["max"], row["stddev"]


def assert_numbers(actual: Mapping[Key, Mapping[str, Any]], wanted: Mapping[Key, Moments]) -> None:
    """Assert the same keys, the same nulls, and numbers that are equal up to the rounding of doubles."""
    assert set(actual) == set(wanted)
    for key, moments in wanted.items():
        for value, wanted_value in zip(moments_of(actual[key]), moments, strict=True):
            assert (value is None) == (wanted_value is None), (key, moments_of(actual[key]), moments)
            assert value is None or value == pytest.approx(wanted_value, rel=1e-9, abs=1e-12), (
                key,
                moments_of(actual[key]),
                moments,
            )


@contextmanager
def new_warehouse(server: str, template: str, scratch: Path) -> Iterator[Warehouse]:
    """A warehouse in its own migrated database, which is dropped at the end. The database uses New York's time zone."""
    name = f"dbt_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        connection.execute(f"ALTER DATABASE {name} SET timezone = 'America/New_York'")
    yield Warehouse(urlunsplit(urlsplit(server)._replace(path=f"/{name}")), scratch)
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
