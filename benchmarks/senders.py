"""Clients that send events under load and record which were acknowledged."""

import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import httpx

TIMEOUT_SECONDS = 20.0
PAUSE_SECONDS = 0.02
BATCH_SIZES = (2, 10, 100)


@dataclass
class Ledger:
    """What clients know. `acknowledged`: the ids in answers; `unexpected`: the first few answers that no client should get."""

    acknowledged: set[UUID] = field(default_factory=set)
    sent: int = 0
    refused: int = 0
    unexpected: list[str] = field(default_factory=list)
    _mutex: threading.Lock = field(default_factory=threading.Lock)

    def record(self, ids: Sequence[str], sent: int, refused: bool, unexpected: str | None) -> None:
        """Record a request's answer, or that there was none."""
        with self._mutex:
            self.acknowledged.update(map(UUID, ids))
            self.sent += sent
            self.refused += refused
            if unexpected is not None and len(self.unexpected) < 10:
                self.unexpected.append(unexpected)


class Senders:
    """Threads that send until they are stopped. Like real clients, they send an event without an answer again with the same id."""

    def __init__(self, url: str, key: str, count: int, seed: int, ledger: Ledger) -> None:
        """Nothing is sent before `start`. The process behind `url` may be replaced meanwhile."""
        self._url, self._key, self._ledger = url, key, ledger
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._send, args=(random.Random(f"{seed}/{n}"), n)) for n in range(count)
        ]

    def start(self) -> None:
        """Start all threads."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop all threads once their current requests end."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _send(self, chance: random.Random, number: int) -> None:
        events: list[dict[str, Any]] = []
        headers = {"Authorization": f"Bearer {self._key}"}
        with httpx.Client(base_url=self._url, headers=headers, timeout=TIMEOUT_SECONDS) as client:
            while not self._stop.is_set():
                if not events:
                    # Every other sender sends batches, some with a repeated event.
                    size = chance.choice(BATCH_SIZES) if number % 2 else 1
                    events = [self._event(chance, number) for _ in range(size)]
                    if size > 1 and chance.random() < 0.1:
                        events.append(events[0])
                if self._post(client, events):
                    events = []
                else:
                    self._stop.wait(PAUSE_SECONDS)

    def _post(self, client: httpx.Client, events: list[dict[str, Any]]) -> bool:
        """Send the events; returns whether they were acknowledged."""
        path, body = ("/api/v1/events/batch", {"events": events}) if len(events) > 1 else ("/api/v1/events", events[0])
        try:
            answer = client.post(path, json=body)
        except httpx.TransportError:
            self._ledger.record((), 0, False, None)
            return False
        if answer.status_code == 200:
            body = answer.json()
            ids = body["event_ids"] if len(events) > 1 else [body["event_id"]]
            unexpected = (
                None
                if ids == [event["event_id"] for event in events]
                else f"other ids than were sent: {answer.text[:200]}"
            )
            self._ledger.record(ids, len(events), False, unexpected)
            return True
        unexpected = (
            None
            if answer.status_code == 503 and "retry-after" in answer.headers
            else f"{answer.status_code} {answer.text[:200]}"
        )
        self._ledger.record((), 0, True, unexpected)
        return False

    @staticmethod
    def _event(chance: random.Random, number: int) -> dict[str, Any]:
        return {
            "event_type": "custom.soak",
            "unit_type": "session",
            "unit_id": f"s{number}-{chance.randrange(10_000)}",
            "timestamp": datetime.now(UTC).isoformat(),
            "event_id": str(UUID(int=chance.getrandbits(128), version=4)),
            "context": {"policy_version_id": "p1", "sent_by": number},
            "metrics": {"latency_ms": chance.random() * 100},
            "payload": {"text": "x" * chance.randrange(300)},
        }


def wait_for(ledger: Ledger, more: int, seconds: float) -> bool:
    """Wait until `more` events are acknowledged; returns whether that happened within `seconds`."""
    target, deadline = len(ledger.acknowledged) + more, time.monotonic() + seconds
    while len(ledger.acknowledged) < target:
        if time.monotonic() > deadline:
            return False
        time.sleep(PAUSE_SECONDS)
    return True
