"""The API's Prometheus metrics."""

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
    """A histogram of seconds per label, as plain numbers."""

    def __init__(self) -> None:
        """Has no observations yet."""
        # For each label: the count of each bucket, the last one without upper bound, and the sum of seconds.
        self._histograms: dict[str, tuple[list[int], list[float]]] = {}

    def observe(self, label: str, seconds: float, times: int = 1) -> None:
        """Count `times` observations of `seconds`."""
        histogram = self._histograms.get(label)
        if histogram is None:
            histogram = self._histograms[label] = [0] * (len(_SECONDS) + 1), [0.0]
        histogram[0][bisect_left(_SECONDS, seconds)] += times
        histogram[1][0] += seconds * times

    def metric(self, name: str, documentation: str, label: str) -> Metric:
        """The histogram in Prometheus' form."""
        family = HistogramMetricFamily(name, documentation, labels=[label])
        upper = [*(str(float(end)) for end in _SECONDS), "+Inf"]
        for value, (counts, total) in self._histograms.items():
            family.add_metric([value], list(zip(upper, accumulate(counts), strict=True)), total[0])
        return family


class AssignmentMetrics(Collector):
    """The metrics of assignments, as plain numbers until Prometheus collects them: each of its own counters takes a lock."""

    def __init__(self) -> None:
        """Starts at zero."""
        self.hits = self.misses = 0
        self._requests: dict[tuple[str, str], int] = {}
        self._new: dict[str, int] = {}
        self._latencies = Latencies()

    def count_request(self, status: str, experiment: str) -> None:
        """Count one requested experiment. `status`: the reason of its answer, or the error of the whole request."""
        key = (status, experiment)
        self._requests[key] = self._requests.get(key, 0) + 1

    def count_new(self, experiment: str) -> None:
        """Count one newly enrolled unit."""
        self._new[experiment] = self._new.get(experiment, 0) + 1

    def observe_latency(self, experiment: str, seconds: float) -> None:
        """Record the seconds that one answer took."""
        self._latencies.observe(experiment, seconds)

    def collect(self) -> Iterator[Metric]:
        """The current metrics."""
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


class EventMetrics(Collector):
    """The metrics of events and of their queues. An unknown value, such as a queue that could not be counted, is left out."""

    def __init__(self) -> None:
        """Starts at zero, with unknown queues."""
        self._received: dict[tuple[str, str], int] = {}
        self._refused: dict[str, int] = {}
        self._latencies = Latencies()
        self.batch_size = Histogram("events_batch_size", "Events in a batch.", registry=None, buckets=_SIZES)
        self.spooled: Callable[[], int] | None = None
        self.archive_queue: int | None = None
        self.dead_letters: int | None = None

    def count_received(self, event_type: str, status: str, count: int = 1) -> None:
        """Count events of a type. `status`: accepted, spooled, dead_letter, rejected or failed."""
        key = (event_label(event_type), status)
        self._received[key] = self._received.get(key, 0) + count

    def count_refused(self, error: str, event_type: str = OTHER) -> None:
        """Count one rejected event by its first error. The type of an invalid event is unknown."""
        self.count_received(event_type, "rejected")
        self._refused[error] = self._refused.get(error, 0) + 1

    def observe_latency(self, event_type: str, seconds: float, events: int = 1) -> None:
        """Record the seconds of an answer to a request with `events` events of the type."""
        self._latencies.observe(event_label(event_type), seconds, events)

    def collect(self) -> Iterator[Metric]:
        """The current metrics."""
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


class Metrics:
    """The metrics of one application, in their own registry, so that two applications in one process don't collide."""

    def __init__(self) -> None:
        """Starts at zero."""
        self.registry = CollectorRegistry()
        self.assignments = AssignmentMetrics()
        self.events = EventMetrics()
        self.registry.register(self.assignments)
        self.registry.register(self.events)
        self.registry.register(self.events.batch_size)


def event_label(event_type: str) -> str:
    """A label from a bounded set, because clients can invent `custom.` types."""
    if event_type in EVENT_TYPES:
        return event_type
    return "custom" if event_type.startswith("custom.") else OTHER
