"""Limits of the event API: events per minute of a unit, and bytes of concurrent bodies."""

import contextlib
import socket
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest
from api_support import running_api

pytest_plugins = ["api_service"]


def event(unit: str = "u1", **changes: Any) -> dict[str, Any]:
    base = {"event_type": "custom.x", "unit_type": "user", "unit_id": unit, "timestamp": datetime.now(UTC).isoformat()}
    return {**base, "event_id": str(uuid4()), **changes}


def test_events_of_a_unit_are_limited_per_minute(database_url: str, make_client: Callable[..., httpx.Client]) -> None:
    with running_api(database_url, rate_limit_unit_events_per_minute=5) as url:
        client = make_client(url, "ingest")
        for _ in range(3):
            assert client.post("/api/v1/events", json=event()).status_code == 200
        sent = [event(), event("other"), event(), event(), event(unit_type="session"), event()]
        answer = client.post("/api/v1/events/batch", json={"events": sent})
        assert (answer.status_code, answer.json()["accepted"]) == (207, 4)
        assert answer.json()["event_ids"] == [sent[index]["event_id"] for index in (0, 1, 2, 4)]
        assert answer.json()["errors"] == [{"index": index, "error": "rate_limited"} for index in (3, 5)]
        for answer in (
            client.post("/api/v1/events", json=event()),
            client.post("/api/v1/events/batch", json={"events": [event(), event()]}),
        ):
            assert (answer.status_code, answer.json()["error"]) == (429, "rate_limited")
            assert 1 <= int(answer.headers["retry-after"]) <= 60
            assert "5 events a minute" in answer.json()["message"]
        # Exceeding the limit does not hide other errors.
        mixed = client.post("/api/v1/events/batch", json={"events": [event(), event(unit_id="")]})
        assert (mixed.status_code, mixed.json()["errors"]) == (
            400,
            [{"index": 0, "error": "rate_limited"}, {"index": 1, "error": "invalid_unit_id"}],
        )
        assert client.post("/api/v1/events", json=event("other")).status_code == 200
        with psycopg.connect(database_url) as connection:
            assert connection.execute("SELECT count(*) FROM exp.events").fetchone() == (8,)


def test_bodies_beyond_the_memory_budget_are_503_and_the_budget_is_released(
    database_url: str, make_client: Callable[..., httpx.Client]
) -> None:
    """Two bodies of 9 MB exceed the 16 MB. One body fits, again and again, even after rejections and disconnected clients."""
    body = b'{"events": [' + b" " * 9_000_000 + b"]}"
    with running_api(database_url, event_memory_mb=16, api_key_cache_seconds=60) as url:
        client = make_client(url, "ingest")
        # From here on the key is cached, so requests are served in the order of their arrival.
        assert client.post("/api/v1/events", json=event()).status_code == 200
        headers = {"Content-Type": "application/json"}
        started, resume = threading.Event(), threading.Event()

        def slowly() -> Any:
            yield body[:-100]
            started.set()
            resume.wait(30)
            yield body[-100:]

        slow: list[httpx.Response] = []
        slow_headers = {**headers, "Content-Length": str(len(body))}
        thread = threading.Thread(
            target=lambda: slow.append(client.post("/api/v1/events/batch", content=slowly(), headers=slow_headers))
        )
        thread.start()
        assert started.wait(30)
        answers: list[int] = []
        while 503 not in answers and len(answers) < 50:
            answers.append(client.post("/api/v1/events/batch", content=body, headers=headers).status_code)
        assert answers[-1] == 503
        assert client.post("/api/v1/events", json=event()).status_code == 200
        resume.set()
        thread.join(30)
        assert slow[0].status_code == 400
        for _ in range(5):
            assert client.post("/api/v1/events/batch", content=body, headers=headers).status_code == 400


def test_bodies_that_never_arrive_time_out_and_block_no_other_request(
    database_url: str, make_client: Callable[..., httpx.Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many clients announce ten megabytes and send one byte. They occupy one byte each and get a 408."""
    monkeypatch.setattr("serving.http.endpoint.BODY_SECONDS", 1.0)
    with (
        running_api(database_url, event_memory_mb=16, api_key_cache_seconds=60) as url,
        contextlib.ExitStack() as stack,
    ):
        client = make_client(url, "ingest")
        key = client.headers["Authorization"]
        head = f"POST /api/v1/events/batch HTTP/1.1\r\nHost: x\r\nAuthorization: {key}\r\nContent-Length: 10000000\r\n\r\n{{"
        stalled = []
        for _ in range(10):
            stalled.append(stack.enter_context(socket.create_connection(("127.0.0.1", httpx.URL(url).port or 0), 20)))
            stalled[-1].sendall(head.encode())
        assert client.post("/api/v1/events/batch", json={"events": [event()]}).status_code == 200
        for connection in stalled:
            answer = connection.recv(65_536).decode()
            assert answer.startswith("HTTP/1.1 408") and '"request_timeout"' in answer
        assert client.post("/api/v1/events/batch", json={"events": [event()]}).status_code == 200


def test_missing_partition_fails_only_the_events_of_its_day(
    database_url: str, make_client: Callable[..., httpx.Client]
) -> None:
    today = datetime.now(UTC)
    old = (today - timedelta(days=3)).isoformat()
    settings: dict[str, Any] = {"first_day": (today - timedelta(days=5)).date(), "retention_days": 1}
    with running_api(database_url, **settings) as url, psycopg.connect(database_url) as other:
        client = make_client(url, "ingest")
        # ANALYZE and CREATE INDEX take this lock too. Inserts continue, but a new partition has to wait.
        other.execute("LOCK TABLE exp.events IN SHARE UPDATE EXCLUSIVE MODE")
        sent = [event("a"), event("b", timestamp=old), event("c")]
        answer = client.post("/api/v1/events/batch", json={"events": sent})
        assert (answer.status_code, answer.json()["errors"]) == (207, [{"index": 1, "error": "service_unavailable"}])
        alone = client.post("/api/v1/events", json=sent[1])
        assert (alone.status_code, alone.headers["retry-after"]) == (503, "5")
        other.rollback()
        assert client.post("/api/v1/events", json=sent[1]).status_code == 200
        assert other.execute("SELECT count(*) FROM exp.events").fetchone() == (3,)
