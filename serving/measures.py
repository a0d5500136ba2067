"""What the API counts for Prometheus. Belongs here: names and labels, all bounded. Does not belong here: when to count."""

from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Histogram, Metric
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from experimentation.event_validation import EVENT_TYPES

OTHER = "other"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
_SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


class AssignmentMeasures(Collector):
    """What each assignment counts, as plain numbers that Prometheus is given when it asks: its own counters take a lock each."""

    def __init__(self) -> None:
        """All at zero."""
        self.hits = self.misses = 0
        self._requests: dict[tuple[str, str], int] = {}
        self._new: dict[str, int] = {}
        # For each experiment: answers in each bucket, the last being all that took longer, and the sum of seconds.
        self._latencies: dict[str, tuple[list[int], list[float]]] = {}

    def count_request(self, status: str, experiment: str) -> None:
        """One experiment asked for; `status` is the reason of its answer, or the error of the whole request."""
        key = (status, experiment)
        self._requests[key] = self._requests.get(key, 0) + 1

    def count_new(self, experiment: str) -> None:
        """One unit enrolled."""
        self._new[experiment] = self._new.get(experiment, 0) + 1

    def observe_latency(self, experiment: str, seconds: float) -> None:
        """The time of one answer."""
        seen = self._latencies.get(experiment)
        if seen is None:
            seen = self._latencies[experiment] = [0] * (len(_SECONDS) + 1), [0.0]
        seen[0][bisect_left(_SECONDS, seconds)] += 1
        seen[1][0] += seconds

    def collect(self) -> Iterator[Metric]:
        """The metrics as they are now."""
        requests = CounterMetricFamily(
            "assignment_requests", "Experiments asked for, by outcome.", labels=["status", "experiment"]
        )
        for labels, count in self._requests.items():
            requests.add_metric(labels, count)
        yield requests
        latency = HistogramMetricFamily("assignment_latency_seconds", "Time to answer.", labels=["experiment"])
        for experiment, (counts, total) in self._latencies.items():
            upper = [*(str(float(end)) for end in _SECONDS), "+Inf"]
            latency.add_metric([experiment], list(zip(upper, accumulate(counts), strict=True)), total[0])
        yield latency
        yield CounterMetricFamily("cache_hits", "Stored assignments found in memory or in Redis.", self.hits)
        yield CounterMetricFamily("cache_misses", "Assignments the database was asked for.", self.misses)
        new = CounterMetricFamily("new_assignments", "Units enrolled.", labels=["experiment"])
        for experiment, count in self._new.items():
            new.add_metric([experiment], count)
        yield new


class Measures:
    """The metrics of one application, in a registry of its own, so that two applications in a process don't collide."""

    def __init__(self) -> None:
        """All at zero."""
        self.registry = CollectorRegistry()
        self.assignments = AssignmentMeasures()
        self.registry.register(self.assignments)
        self.events_received = Counter(
            "events_received", "Events by outcome.", ["event_type", "status"], registry=self.registry
        )
        self.ingestion_latency = Histogram(
            "events_ingestion_latency_seconds",
            "Time to answer a request with events of the type.",
            ["event_type"],
            registry=self.registry,
            buckets=_SECONDS,
        )
        self.batch_size = Histogram("events_batch_size", "Events in a batch.", registry=self.registry, buckets=_SIZES)
        self.validation_errors = Counter(
            "events_validation_errors", "Refused events by their first error.", ["error_type"], registry=self.registry
        )


def event_label(event_type: str) -> str:
    """A bounded label: anyone can invent a `custom.` type."""
    if event_type in EVENT_TYPES:
        return event_type
    return "custom" if event_type.startswith("custom.") else OTHER
