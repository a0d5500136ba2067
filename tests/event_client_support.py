"""A scripted event service without a network, for tests of the event client."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from client_support import KEY, Clock

from lifecycle_client import Assignment, AsyncEventClient, EventClient, LostEvent
from lifecycle_client.event_delivery import Delivery
from lifecycle_client.event_wire import encode_event, new_event_id
from lifecycle_client.options import EventOptions, read_event_options
from lifecycle_client.wire import Reply, Unreachable

EVENTS_URL = "http://events.test"
LIMITS: dict[str, Any] = {
    "flush_at": 100, "flush_every": 1.0, "max_buffered": 10_000, "max_buffered_bytes": 33_554_432,
    "max_spool_bytes": 10_000_000, "exit_timeout": 2.0, "exposure_every": 86_400.0, "max_exposures": 1_000,
}  # fmt: skip


class EventService:
    """Stores events by (id, timestamp), and refuses those of units in `bad` (unit → code). A reply from `then` comes first."""

    def __init__(self) -> None:
        self.stored: dict[tuple[str, str], dict[str, Any]] = {}
        self.batches: list[list[dict[str, Any]]] = []
        self.bad: dict[str, str] = {}
        self.then: Callable[[list[dict[str, Any]]], Reply | Unreachable | None] = lambda events: None

    def __call__(self, request: httpx.Request) -> httpx.Response:
        answer = self.take(request.content)
        if isinstance(answer, Unreachable):
            raise httpx.ConnectError(answer.why)
        return httpx.Response(answer.status, headers=dict(answer.headers), content=answer.body)

    def take(self, body: bytes) -> Reply | Unreachable:
        """The reply to a batch."""
        events = json.loads(body)["events"]
        self.batches.append(events)
        scripted = self.then(events)
        if scripted is not None:
            return scripted
        errors = [
            {"index": index, "error": self.bad[event["unit_id"]]}
            for index, event in enumerate(events)
            if event["unit_id"] in self.bad
        ]
        good = [event for event in events if event["unit_id"] not in self.bad]
        self.stored |= {(event["event_id"], event["timestamp"]): event for event in good}
        if not good:
            return make_reply(400, {"error": "validation_error", "message": "None is valid.", "errors": errors})
        ids = [event["event_id"] for event in good]
        answer = {"accepted": len(good), "rejected": len(errors), "event_ids": ids, "errors": errors}
        return make_reply(207 if errors else 200, answer)

    def units(self) -> list[str]:
        """Units of the stored events, in the order of their arrival."""
        return [event["unit_id"] for event in self.stored.values()]


def make_reply(status: int, body: Any = None, **headers: str) -> Reply:
    """A reply of the service, or of another program if `body` is a string."""
    content = body.encode() if isinstance(body, str) else json.dumps(body or {}).encode()
    return Reply(status, {name.replace("_", "-"): value for name, value in headers.items()}, content)


def always(answer: Reply | Unreachable) -> Callable[[list[dict[str, Any]]], Reply | Unreachable]:
    """A script that gives the same answer to every batch."""
    return lambda events: answer


def options(folder: Path, url: str = EVENTS_URL, **changed: Any) -> EventOptions:
    """The options of a client, with `changed` ones."""
    return read_event_options(KEY, url, 5.0, folder, **{**LIMITS, **changed})


def make_delivery(folder: Path, clock: Clock, lost: list[LostEvent] | None = None, **changed: Any) -> Delivery:
    """A delivery without jitter, which adds lost events to `lost`."""
    return Delivery(options(folder, **changed), clock, lambda: 0.0, None if lost is None else lost.append)


def event(unit_id: str, size: int = 0) -> bytes:
    """An event as the client encodes it, with a payload of about `size` bytes."""
    return encode_event(new_event_id(), "custom.test", "user", unit_id, None, None, None, {"x": "y" * size}, None)


def work(delivery: Delivery, service: EventService, everything: bool = True) -> None:
    """Take steps until there is no work. `everything`: even what is not due yet."""
    until = delivery.arrived() if everything else 0
    while delivery.step(service.take, until):
        pass


def make_client(
    kind: type[EventClient] | type[AsyncEventClient], service: EventService, folder: Path, **options: Any
) -> Any:
    """A client of the scripted service. Its clock stands still, so it sends only full batches and when flushed."""
    transport = httpx.MockTransport(service)
    settings = {"clock": Clock(), "jitter": lambda: 0.0, "make_transport": lambda: transport, "spool_dir": folder}
    return kind(KEY, EVENTS_URL, **{**settings, **options})


def assignment(unit_id: str = "u1", variant: str = "2", run: str = "1") -> Assignment:
    """An assignment as the assignment client returns it."""
    ids = {
        "experiment_id": f"7a3c1c52-0f6c-4b0e-9a52-00000000000{run}",
        "variant_id": f"7a3c1c52-0f6c-4b0e-9a52-00000000001{variant}",
    }
    return Assignment(
        experiment="planner", variant_name="treatment", config={}, enrolled=True, reason="assigned", run=1, source="service",
        unit_type="user", unit_id=unit_id, **ids,
    )  # fmt: skip
