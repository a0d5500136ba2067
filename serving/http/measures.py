"""What the API counts for Prometheus."""

from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, Histogram, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from eventlog.validation import EVENT_TYPES

OTHER = "other"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
_SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


class Latencies:
    """A histogram of seconds for each label, as plain numbers."""

    def __init__(self) -> None:
        """Empty."""
        # For each label: how many in each bucket, the last being all that took longer, and the sum of seconds.
        self._seen: dict[str, tuple[list[int], list[float]]] = {}

    def observe(self, label: str, seconds: float, times: int = 1) -> None:
        """So many that took `seconds`."""
        seen = self._seen.get(label)
        if seen is None:
            seen = self._seen[label] = [0] * (len(_SECONDS) + 1), [0.0]
        seen[0][bisect_left(_SECONDS, seconds)] += times
        seen[1][0] += seconds * times

    def metric(self, name: str, documentation: str, label: str) -> Metric:
        """As Prometheus has it."""
        family = HistogramMetricFamily(name, documentation, labels=[label])
        upper = [*(str(float(end)) for end in _SECONDS), "+Inf"]
        for value, (counts, total) in self._seen.items():
            family.add_metric([value], list(zip(upper, accumulate(counts), strict=True)), total[0])
        return family


class AssignmentMeasures(Collector):
    """What each assignment counts, as plain numbers that Prometheus is given when it asks: its own counters take a lock each."""

    def __init__(self) -> None:
        """All at zero."""
        self.hits = self.misses = 0
        self._requests: dict[tuple[str, str], int] = {}
        self._new: dict[str, int] = {}
        self._latencies = Latencies()

    def count_request(self, status: str, experiment: str) -> None:
        """One experiment asked for; `status` is the reason of its answer, or the error of the whole request."""
        key = (status, experiment)
        self._requests[key] = self._requests.get(key, 0) + 1

    def count_new(self, experiment: str) -> None:
        """One unit enrolled."""
        self._new[experiment] = self._new.get(experiment, 0) + 1

    def observe_latency(self, experiment: str, seconds: float) -> None:
        """The time of one answer."""
        self._latencies.observe(experiment, seconds)

    def collect(self) -> Iterator[Metric]:
        """The metrics as they are now."""
        requests = CounterMetricFamily(
            "assignment_requests", "Experiments asked for, by outcome.", labels=["status", "experiment"]
        )
        for labels, count in self._requests.items():
            requests.add_metric(labels, count)
        yield requests
        yield self._latencies.metric("assignment_latency_seconds", "Time to answer.", "experiment")
        yield CounterMetricFamily("cache_hits", "Stored assignments found in memory or in Redis.", self.hits)
        yield CounterMetricFamily("cache_misses", "Assignments the database was asked for.", self.misses)
        new = CounterMetricFamily("new_assignments", "Units enrolled.", labels=["experiment"])
        for experiment, count in self._new.items():
            new.add_metric([experiment], count)
        yield new


class EventMeasures(Collector):
    """What each event counts, and what waits somewhere. What is not known, such as a queue that could not be asked for, is left out."""

    def __init__(self) -> None:
        """All at zero; nothing is known of what waits."""
        self._received: dict[tuple[str, str], int] = {}
        self._refused: dict[str, int] = {}
        self._latencies = Latencies()
        self.batch_size = Histogram("events_batch_size", "Events in a batch.", registry=None, buckets=_SIZES)
        self.spooled: Callable[[], int] | None = None
        self.archive_queue: int | None = None
        self.dead_letters: int | None = None

    def count_received(self, event_type: str, status: str, count: int = 1) -> None:
        """So many events of a type: accepted, spooled, dead_letter, rejected or failed."""
        key = (event_label(event_type), status)
        self._received[key] = self._received.get(key, 0) + count

    def count_refused(self, error: str, event_type: str = OTHER) -> None:
        """One event that is not valid, or one too many, by its first error; the type of an event that is not valid is not known."""
        self.count_received(event_type, "rejected")
        self._refused[error] = self._refused.get(error, 0) + 1

    def observe_latency(self, event_type: str, seconds: float, events: int = 1) -> None:
        """The time of an answer to a request with so many events of a type."""
        self._latencies.observe(event_label(event_type), seconds, events)

    def collect(self) -> Iterator[Metric]:
        """The metrics as they are now."""
        received = CounterMetricFamily("events_received", "Events by outcome.", labels=["event_type", "status"])
        for labels, count in self._received.items():
            received.add_metric(labels, count)
        yield received
        refused = CounterMetricFamily(
            "events_validation_errors", "Refused events by their first error.", labels=["error_type"]
        )
        for error, count in self._refused.items():
            refused.add_metric([error], count)
        yield refused
        yield self._latencies.metric(
            "events_ingestion_latency_seconds", "Time to answer a request with events of the type.", "event_type"
        )
        waiting = {
            ("event_spool_size", "Events that wait on this process's disk for PostgreSQL."): self.spooled
            and self.spooled(),
            ("archive_queue_size", "Full hours with events that are not archived."): self.archive_queue,
            ("event_dead_letters", "Acknowledged events that PostgreSQL refuses."): self.dead_letters,
        }
        for (name, documentation), value in waiting.items():
            gauge = GaugeMetricFamily(name, documentation, labels=[])
            if value is not None:
                gauge.add_metric([], value)
            yield gauge


class Measures:
    """The metrics of one application, in a registry of its own, so that two applications in a process don't collide."""

    def __init__(self) -> None:
        """All at zero."""
        self.registry = CollectorRegistry()
        self.assignments = AssignmentMeasures()
        self.events = EventMeasures()
        self.registry.register(self.assignments)
        self.registry.register(self.events)
        self.registry.register(self.events.batch_size)


def event_label(event_type: str) -> str:
    """A bounded label: anyone can invent a `custom.` type."""
    if event_type in EVENT_TYPES:
        return event_type
    return "custom" if event_type.startswith("custom.") else OTHER
