"""Clients under load that write down what was acknowledged.

 Does not belong
here: what disturbs them (soak.py), counting what is stored.
"""

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
    """What clients know. `acknowledged`: ids that an answer named; `unexpected`: answers that no client should get, the first few."""

    acknowledged: set[UUID] = field(default_factory=set)
    sent: int = 0
    refused: int = 0
    unexpected: list[str] = field(default_factory=list)
    _mutex: threading.Lock = field(default_factory=threading.Lock)

    def note(self, ids: Sequence[str], sent: int, refused: bool, unexpected: str | None) -> None:
        """One answer, or none."""
        with self._mutex:
            self.acknowledged.update(map(UUID, ids))
            self.sent += sent
            self.refused += refused
            if unexpected is not None and len(self.unexpected) < 10:
                self.unexpected.append(unexpected)


class Senders:
    """Threads that send until they are stopped. An event without an answer is sent again with the same id, as clients do."""

    def __init__(self, url: str, key: str, count: int, seed: int, ledger: Ledger) -> None:
        """Nothing is sent before `start`. `url` may change owner behind its port."""
        self._url, self._key, self._ledger = url, key, ledger
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._send, args=(random.Random(f"{seed}/{n}"), n)) for n in range(count)
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End after what is under way."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _send(self, chance: random.Random, number: int) -> None:
        events: list[dict[str, Any]] = []
        headers = {"Authorization": f"Bearer {self._key}"}
        with httpx.Client(base_url=self._url, headers=headers, timeout=TIMEOUT_SECONDS) as client:
            while not self._stop.is_set():
                if not events:
                    # Every other sender sends batches; some of its events twice.
                    size = chance.choice(BATCH_SIZES) if number % 2 else 1
                    events = [self._event(chance, number) for _ in range(size)]
                    if size > 1 and chance.random() < 0.1:
                        events.append(events[0])
                if self._post(client, events):
                    events = []
                else:
                    self._stop.wait(PAUSE_SECONDS)

    def _post(self, client: httpx.Client, events: list[dict[str, Any]]) -> bool:
        """Whether they are acknowledged."""
        path, body = ("/api/v1/events/batch", {"events": events}) if len(events) > 1 else ("/api/v1/events", events[0])
        try:
            answer = client.post(path, json=body)
        except httpx.TransportError:
            self._ledger.note((), 0, False, None)
            return False
        if answer.status_code == 200:
            said = answer.json()
            ids = said["event_ids"] if len(events) > 1 else [said["event_id"]]
            wrong = (
                None
                if ids == [event["event_id"] for event in events]
                else f"other ids than were sent: {answer.text[:200]}"
            )
            self._ledger.note(ids, len(events), False, wrong)
            return True
        wrong = (
            None
            if answer.status_code == 503 and "retry-after" in answer.headers
            else f"{answer.status_code} {answer.text[:200]}"
        )
        self._ledger.note((), 0, True, wrong)
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
    """Whether `more` events were acknowledged from now on, within `seconds`."""
    wanted, deadline = len(ledger.acknowledged) + more, time.monotonic() + seconds
    while len(ledger.acknowledged) < wanted:
        if time.monotonic() > deadline:
            return False
        time.sleep(PAUSE_SECONDS)
    return True
