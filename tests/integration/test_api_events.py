"""Events over HTTP: stored once, validated one by one in a batch, flagged, without credentials. Also storing histories in bulk."""

import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import psycopg
import pytest
from api_support import Api, make_run, running_api

from eventlog.store import ensure_partitions, store_events

pytest_plugins = ["api_service"]

STORED = 'SELECT id, event_type, unit_id, experiments, context, metrics, payload, "timestamp", flags FROM exp.events'
COUNT = "SELECT count(*) FROM exp.events"


def event(**changes: Any) -> dict[str, Any]:
    base = {
        "event_type": "plan_accepted",
        "unit_type": "household",
        "unit_id": "h1",
        "context": {"policy_version_id": "p1"},
        "metrics": {"edit_count": 2, "cost_usd": 0.25},
        "payload": {"plan_id": "x"},
        "timestamp": datetime.now(UTC).isoformat(),
        "event_id": str(uuid4()),
    }
    return {**base, **changes}


def test_event_is_stored_unchanged(api: Api) -> None:
    run_id, variants = make_run(api.connection, "planner")
    refs = [{"experiment_id": str(run_id), "variant_id": str(variants["control"])}]
    sent = event(experiments=refs)
    response = api.client.post("/api/v1/events", json=sent)
    assert (response.status_code, response.json()) == (200, {"event_id": sent["event_id"], "status": "accepted"})
    ((event_id, event_type, unit, experiments, context, metrics, payload, timestamp, flags),) = api.rows(STORED)
    assert (str(event_id), event_type, unit, experiments) == (sent["event_id"], "plan_accepted", "h1", refs)
    assert (context, metrics, payload) == (sent["context"], sent["metrics"], sent["payload"])
    assert (timestamp, flags) == (datetime.fromisoformat(sent["timestamp"]), [])


def test_repeated_event_is_accepted_and_stored_once(api: Api) -> None:
    sent = event()
    for _ in range(3):
        assert api.client.post("/api/v1/events", json=sent).status_code == 200
    batch = {"events": [sent, event(), sent]}
    for _ in range(2):
        answer = api.client.post("/api/v1/events/batch", json=batch).json()
        assert (answer["accepted"], answer["rejected"]) == (3, 0)
    assert api.rows(COUNT) == [(2,)]
    # The same id at another time is another event.
    earlier = datetime.fromisoformat(sent["timestamp"]) - timedelta(seconds=1)
    assert api.client.post("/api/v1/events", json={**sent, "timestamp": earlier.isoformat()}).status_code == 200
    assert api.rows(COUNT) == [(3,)]


def test_concurrent_batches_store_shared_events_once(api: Api) -> None:
    shared = [event(unit_id=f"h{n}") for n in range(60)]
    statuses: list[int] = []

    def send(order: int) -> None:
        for _ in range(5):
            statuses.append(api.client.post("/api/v1/events/batch", json={"events": shared[::order]}).status_code)

    threads = [threading.Thread(target=send, args=(1 if n % 2 else -1,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 30
    assert api.rows(COUNT) == [(60,)]


def test_batch_reports_each_invalid_event(api: Api) -> None:
    good = [event(), event()]
    bad = [
        event(unit_id=""),
        event(timestamp=(datetime.now(UTC) + timedelta(minutes=6)).isoformat()),
        7,
        event(payload={"a": "x" * 1_100_000}),
        {**event(), "event_type": None},
    ]
    answer = api.client.post("/api/v1/events/batch", json={"events": [good[0], *bad, good[1]]})
    assert answer.status_code == 207
    assert answer.json() == {
        "accepted": 2,
        "rejected": 5,
        "event_ids": [sent["event_id"] for sent in good],
        "errors": [
            {"index": 1, "error": "invalid_unit_id"},
            {"index": 2, "error": "timestamp_in_future"},
            {"index": 3, "error": "invalid_event"},
            {"index": 4, "error": "payload_too_large"},
            {"index": 5, "error": "missing_event_type"},
        ],
    }
    assert api.rows(COUNT) == [(2,)]
    assert api.metric('events_received_total{event_type="plan_accepted",status="accepted"}') == 2
    assert api.metric('events_received_total{event_type="other",status="rejected"}') == 5
    assert api.metric('events_validation_errors_total{error_type="invalid_unit_id"}') == 1
    assert api.metric("events_batch_size_sum") == 7


def test_batch_without_a_valid_event_is_400(api: Api) -> None:
    answer = api.client.post("/api/v1/events/batch", json={"events": [event(unit_id=""), event(metrics={"a": "b"})]})
    assert answer.status_code == 400
    body = answer.json()
    assert (body["error"], body["message"]) == ("validation_error", "None of the 2 events is valid.")
    assert body["details"] == [
        {"field": "events[0].unit_id", "error": "invalid_unit_id"},
        {"field": "events[1].metrics", "error": "invalid_metric"},
    ]
    assert body["errors"] == [{"index": 0, "error": "invalid_unit_id"}, {"index": 1, "error": "invalid_metric"}]


@pytest.mark.parametrize(
    ("batch", "error"),
    [
        ({}, "invalid_events"),
        ([], "invalid_events"),
        ({"events": {}}, "invalid_events"),
        ({"events": []}, "missing_events"),
        ({"events": [{}] * 1001}, "too_many_events"),
    ],
)
def test_invalid_batch_is_400(api: Api, batch: Any, error: str) -> None:
    answer = api.client.post("/api/v1/events/batch", json=batch)
    assert (answer.status_code, answer.json()["details"]) == (400, [{"field": "events", "error": error}])


def test_too_large_bodies_are_413(api: Api) -> None:
    large = event(payload={"a": "x" * 1_048_576})
    answer = api.client.post("/api/v1/events", json=large)
    assert (answer.status_code, answer.json()["error"]) == (413, "payload_too_large")
    assert api.client.post("/api/v1/events/batch", json={"events": [large]}).status_code == 413

    def chunks() -> Any:
        # Without a Content-Length, like a client that streams.
        for _ in range(11):
            yield b" " * 1_048_576

    answer = api.client.post("/api/v1/events/batch", content=chunks())
    assert (answer.status_code, answer.json()["error"]) == (413, "payload_too_large")
    assert api.rows(COUNT) == [(0,)]


def test_batch_of_a_thousand_events_is_stored(api: Api) -> None:
    events = [event(unit_id=f"h{n}") for n in range(1000)]
    answer = api.client.post("/api/v1/events/batch", json={"events": events})
    assert answer.json()["accepted"] == 1000
    assert answer.json()["event_ids"] == [sent["event_id"] for sent in events]
    assert api.rows(COUNT) == [(1000,)]


def test_event_is_flagged_and_credentials_are_removed(api: Api) -> None:
    late = (datetime.now(UTC) - timedelta(days=8)).isoformat()
    sent = event(
        event_type="plan_rejected",
        experiments=[{"experiment_id": str(uuid4()), "variant_id": str(uuid4())}],
        context={"authorization": "Bearer x", "deep": [{"accessToken": "y", "kept": 1}]},
        payload={"password": "z", "plan_id": "p"},
        timestamp=late,
    )
    assert api.client.post("/api/v1/events", json=sent).status_code == 200
    ((context, payload, flags),) = api.rows("SELECT context, payload, flags FROM exp.events")
    assert (context, payload) == ({"deep": [{"kept": 1}]}, {"plan_id": "p"})
    assert flags == ["no_policy_version_id", "late", "no_rejection_reason", "unknown_experiment", "unknown_variant"]


def test_old_events_and_events_of_a_day_without_partition_are_stored(api: Api) -> None:
    today = datetime.now(UTC)
    assert api.client.post("/api/v1/events", json=event(timestamp="2008-02-29T10:00:00+01:00")).status_code == 200
    assert api.rows("SELECT tableoid::regclass::text FROM exp.events") == [("exp.events_history",)]
    # As if the process had been suspended for days and today's partition did not exist.
    api.connection.execute(f"DROP TABLE exp.events_{today:%Y%m%d}")
    for path, body in (("/api/v1/events", event()), ("/api/v1/events/batch", {"events": [event(), event()]})):
        assert api.client.post(path, json=body).status_code == 200
    assert api.rows(COUNT) == [(4,)]


def test_partitions_exist_from_the_start(api: Api) -> None:
    days = [datetime.now(UTC) + timedelta(days=ahead) for ahead in range(3)]
    names = {
        name
        for (name,) in api.rows(
            "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'exp.events'::regclass"
        )
    }
    assert names == {"exp.events_history", *(f"exp.events_{day:%Y%m%d}" for day in days)}


def test_first_day_of_the_database_overrides_the_setting(
    database_url: str, make_client: Callable[..., httpx.Client]
) -> None:
    """A process with another first day, or none, still has a partition for every event."""
    first = (datetime.now(UTC) - timedelta(days=5)).date()
    assert ensure_partitions(database_url, first, 0) == 1 + 6
    with running_api(database_url, first_day=first - timedelta(days=30)) as url:
        assert make_client(url, "ingest").post("/api/v1/events", json=event()).status_code == 200


def test_days_dropped_by_retention_are_recreated_only_for_their_events(database_url: str) -> None:
    today = datetime.now(UTC).date()
    first, late = today - timedelta(days=20), today - timedelta(days=10)
    assert ensure_partitions(database_url, first, 0, keep_days=3) == 1 + 4
    with psycopg.connect(database_url, autocommit=True) as connection:
        # A table with the name of the day's partition exists already.
        connection.execute(f"CREATE TABLE exp.events_{late:%Y%m%d} (LIKE exp.events)")
        assert ensure_partitions(database_url, first, 0, keep_days=3) == 0
        assert ensure_partitions(database_url, first, 0, days=[late], keep_days=3) == 1
        assert store_events(connection, [event(timestamp=f"{late}T12:00:00Z")]) == 1
        rows = connection.execute("SELECT tableoid::regclass::text FROM exp.events").fetchall()
    assert rows == [(f"exp.events_{late:%Y%m%d}_2",)]


def test_bulk_events_are_stored_once(database_url: str) -> None:
    ensure_partitions(database_url, datetime.now(UTC).date(), 2)
    start = datetime(2025, 1, 1, tzinfo=UTC)
    run, variant = uuid4(), uuid4()
    events = [
        event(
            event_id=UUID(int=n),
            timestamp=start + timedelta(minutes=n),
            experiments=[{"experiment_id": run, "variant_id": variant}] if n % 2 else None,
            payload={"plan_id": f"p{n}", "text": 'tab\t new\n back\\ "quote" \\N', "password": "x"} if n % 3 else None,
        )
        for n in range(15_000)
    ]
    with psycopg.connect(database_url) as connection:
        assert store_events(connection, iter(events)) == 15_000
        assert store_events(connection, [*events[:10], event(), event(timestamp="2024-12-31T00:00:00Z")]) == 2
        assert store_events(connection, []) == 0
        connection.commit()
        rows = connection.execute(f"{STORED} WHERE id IN (%s, %s) ORDER BY id", (UUID(int=1), UUID(int=6))).fetchall()
    assert rows[0][3] == [{"experiment_id": str(run), "variant_id": str(variant)}]
    assert rows[0][6] == {"plan_id": "p1", "text": 'tab\t new\n back\\ "quote" \\N'}
    assert rows[0][8] == ["unknown_experiment", "unknown_variant"]
    assert (rows[1][6], rows[1][8]) == (None, ["no_experiment_context", "no_plan_id"])


def test_bulk_storing_uses_utf8_with_any_client_encoding(database_url: str) -> None:
    ensure_partitions(database_url, datetime.now(UTC).date(), 2)
    with psycopg.connect(database_url, client_encoding="latin1") as connection:
        assert store_events(connection, [event(unit_id="Müller", payload={"plan_id": "é"})]) == 1
    with psycopg.connect(database_url) as connection:
        stored = connection.execute("SELECT unit_id, payload FROM exp.events").fetchall()
    assert stored == [("Müller", {"plan_id": "é"})]


def test_bulk_storing_happens_in_the_callers_transaction(database_url: str) -> None:
    ensure_partitions(database_url, datetime.now(UTC).date(), 2)
    with psycopg.connect(database_url) as connection:
        assert store_events(connection, [event()]) == 1
        connection.rollback()
        assert connection.execute(COUNT).fetchall() == [(0,)]
        with pytest.raises(ValueError, match="no UTC offset"):
            store_events(connection, [event(timestamp="2024-12-31T00:00:00")])
        with pytest.raises(ValueError, match="not a finite number"):
            store_events(connection, [event(metrics={"a": float("nan")})])
        assert connection.execute(COUNT).fetchall() == [(0,)]


def test_invalid_event_is_400_and_not_stored(api: Api) -> None:
    answer = api.client.post("/api/v1/events", content=json.dumps(event(unit_type="planet")))
    assert answer.status_code == 400
    assert answer.json()["details"] == [{"field": "unit_type", "error": "invalid_unit_type"}]
    assert api.rows(COUNT) == [(0,)]
