"""What the API counts for Prometheus. Belongs here: names and labels, all bounded. Does not belong here: when to count."""

from prometheus_client import CollectorRegistry, Counter, Histogram

from experimentation.event_validation import EVENT_TYPES

OTHER = "other"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
_SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


class Measures:
    """The metrics of one application, in a registry of its own, so that two applications in a process don't collide."""

    def __init__(self) -> None:
        """All at zero."""
        self.registry = CollectorRegistry()
        self.assignment_requests = Counter(
            "assignment_requests",
            "Experiments asked for, by outcome.",
            ["status", "experiment"],
            registry=self.registry,
        )
        self.assignment_latency = Histogram(
            "assignment_latency_seconds", "Time to answer.", ["experiment"], registry=self.registry, buckets=_SECONDS
        )
        self.cache_hits = Counter("cache_hits", "Stored assignments found in memory.", registry=self.registry)
        self.cache_misses = Counter("cache_misses", "Assignments the database was asked for.", registry=self.registry)
        self.new_assignments = Counter("new_assignments", "Units enrolled.", ["experiment"], registry=self.registry)
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
