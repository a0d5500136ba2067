"""PostgreSQL stops under a running API: events are acknowledged, kept on disk, and stored once when it is back."""

import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest
from api_support import running_api
from conftest import free_port

from eventlog.dead_letters import delete_dead_letters, list_dead_letters, replay_dead_letter
from eventlog.erased_units import record_erased_unit
from eventlog.spool import SpoolWriter, read_segment, rewrite_segment
from foundation.api_keys import make_api_key
from foundation.migrate import migrate
from orchestration.local.postgres import EmbeddedPostgres

# Rejects the events of one unit, like a column that is too narrow.
REFUSE = """
CREATE FUNCTION exp.refuse_poison() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.unit_id = 'poison' THEN RAISE EXCEPTION 'too narrow' USING ERRCODE = 'string_data_right_truncation'; END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER refuse_poison BEFORE INSERT ON exp.events FOR EACH ROW EXECUTE FUNCTION exp.refuse_poison();
"""
NO_WAITING = (0,)


def event(unit: str = "u", **changes: Any) -> dict[str, Any]:
    base = {"event_type": "custom.x", "unit_type": "user", "unit_id": unit, "timestamp": datetime.now(UTC).isoformat()}
    return {**base, "event_id": str(uuid4()), **changes}


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not true within {seconds} s"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(tmp_path / "postgres", free_port())
    server.start()
    migrate(server.url)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def key(server: EmbeddedPostgres) -> str:
    with psycopg.connect(server.url) as connection:
        return make_api_key(connection, "web", ["ingest"])[1]


def client_of(url: str, key: str) -> httpx.Client:
    return httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=30)


def ids(events: list[dict[str, Any]]) -> set[str]:
    return {sent_event["event_id"] for sent_event in events}


def stored(server: EmbeddedPostgres) -> dict[str, list[str]]:
    """The flags of the stored events, by id."""
    with psycopg.connect(server.url) as connection:
        rows = connection.execute("SELECT id::text, flags FROM exp.events").fetchall()
    assert len(rows) == len(dict(rows))
    return dict(rows)


def gauge(client: httpx.Client, name: str) -> float | None:
    lines = client.get("/metrics").text.splitlines()
    return next((float(line.split()[1]) for line in lines if line.startswith(f"{name} ")), None)


def test_events_are_spooled_and_stored_later_when_postgresql_is_down(
    server: EmbeddedPostgres, key: str, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"spool_mb": 1, "spool_dir": tmp_path / "spool", "api_retry_delays_ms": NO_WAITING}
    late = event(timestamp=(datetime.now(UTC) - timedelta(days=8)).isoformat())
    sent = [event(), late, *(event(f"u{n}") for n in range(50))]
    with running_api(server.url, **settings) as url, client_of(url, key) as client:
        assert client.post("/api/v1/events", json=sent[0]).status_code == 200
        server.stop()
        for sent_event in sent[:2]:
            answer = client.post("/api/v1/events", json=sent_event)
            accepted = {"event_id": sent_event["event_id"], "status": "accepted"}
            assert (answer.status_code, answer.json()) == (200, accepted)
        answer = client.post("/api/v1/events/batch", json={"events": [*sent[2:], event(unit_id="")]})
        assert (answer.status_code, answer.json()["accepted"], answer.json()["rejected"]) == (207, 50, 1)
        assert gauge(client, "event_spool_size") == 52
        assert 'events_received_total{event_type="custom",status="spooled"} 52.0' in client.get("/metrics").text
        # A key that was never checked before can't be checked now.
        assert client_of(url, "lk_" + key[3:-1] + "x").post("/api/v1/events", json=event()).status_code in (401, 503)
        server.start()
        wait_until(lambda: gauge(client, "event_spool_size") == 0)
        assert client.post("/api/v1/events", json=event("after")).status_code == 200
        flags = stored(server)
        assert set(flags) >= ids(sent) and len(flags) == 53
        assert flags[late["event_id"]] == ["no_experiment_context", "no_policy_version_id", "late"]
        assert flags[sent[0]["event_id"]] == ["no_experiment_context", "no_policy_version_id"]


def test_api_answers_503_and_keeps_spooled_events_when_the_spool_is_full(
    server: EmbeddedPostgres, key: str, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"spool_mb": 1, "spool_dir": tmp_path / "spool", "api_retry_delays_ms": NO_WAITING}
    large = {"text": "x" * 200_000}
    with running_api(server.url, **settings) as url, client_of(url, key) as client:
        client.post("/api/v1/events", json=event())
        server.stop()
        answers: list[tuple[str, httpx.Response]] = []
        while not answers or answers[-1][1].status_code == 200:
            large_event = event(payload=large)
            answers.append((large_event["event_id"], client.post("/api/v1/events", json=large_event)))
        assert len(answers) == 6
        refused = answers[-1][1]
        assert (refused.status_code, refused.json()["error"], refused.headers["retry-after"]) == (
            503,
            "service_unavailable",
            "5",
        )
        assert "the spool is full" in refused.json()["message"]
        server.start()
        wait_until(lambda: gauge(client, "event_spool_size") == 0)
        assert set(stored(server)) >= {event_id for event_id, _ in answers[:-1]} and len(stored(server)) == 6


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"needs the right to mount a file system: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_api_answers_503_and_stores_acknowledged_events_when_the_disk_is_full(
    server: EmbeddedPostgres, key: str, small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings: dict[str, Any] = {"spool_mb": 1, "spool_dir": small_disk / "spool", "api_retry_delays_ms": NO_WAITING}
    with running_api(server.url, **settings) as url, client_of(url, key) as client:
        assert client.post("/api/v1/events", json=event()).status_code == 200
        server.stop()
        acknowledged: list[tuple[str, httpx.Response]] = []
        refused: list[tuple[str, httpx.Response]] = []
        for number in range(60):
            large_event = event(f"u{number}", payload={"text": "x" * 2000})
            answer = client.post("/api/v1/events", json=large_event)
            (acknowledged if answer.status_code == 200 else refused).append((large_event["event_id"], answer))
        assert len(acknowledged) > 5 and len(refused) > 5
        for _, answer in refused:
            assert (answer.status_code, answer.json()["error"], answer.headers["retry-after"]) == (
                503,
                "service_unavailable",
                "5",
            )
        assert "can't be written: No space left on device" in caplog.text
        server.start()
        wait_until(lambda: gauge(client, "event_spool_size") == 0)
        assert {event_id for event_id, _ in acknowledged} <= set(stored(server))
        # There is room again.
        server.stop()
        assert client.post("/api/v1/events", json=event()).status_code == 200
        server.start()


def test_api_acknowledges_nothing_when_there_is_no_spool(server: EmbeddedPostgres, key: str) -> None:
    with running_api(server.url, api_retry_delays_ms=NO_WAITING) as url, client_of(url, key) as client:
        client.post("/api/v1/events", json=event())
        server.stop()
        assert client.post("/api/v1/events", json=event()).status_code == 503
        assert client.post("/api/v1/events/batch", json={"events": [event()]}).status_code == 503


def test_only_the_event_that_postgresql_rejects_is_rejected(server: EmbeddedPostgres, key: str) -> None:
    with running_api(server.url) as url, client_of(url, key) as client, psycopg.connect(server.url) as connection:
        connection.execute(REFUSE)
        connection.commit()
        good = [event("a"), event("b")]
        answer = client.post("/api/v1/events/batch", json={"events": [good[0], event("poison"), good[1]]})
        assert (answer.status_code, answer.json()["event_ids"]) == (
            207,
            [good_event["event_id"] for good_event in good],
        )
        assert answer.json()["errors"] == [{"index": 1, "error": "invalid_event"}]
        assert client.post("/api/v1/events", json=event("poison")).status_code == 400
        assert client.post("/api/v1/events/batch", json={"events": [event("poison")] * 2}).status_code == 400
        assert set(stored(server)) == ids(good)


def test_event_becomes_a_dead_letter_when_a_constraint_rejects_it(server: EmbeddedPostgres, key: str) -> None:
    """An installation's own trigger or constraint is not the sender's fault."""
    with running_api(server.url) as url, client_of(url, key) as client, psycopg.connect(server.url) as connection:
        connection.execute("ALTER TABLE exp.events ADD CONSTRAINT no_poison CHECK (unit_id <> 'poison')")
        connection.commit()
        sent = [event("a"), event("poison"), event("b")]
        answer = client.post("/api/v1/events/batch", json={"events": sent})
        assert (answer.status_code, answer.json()["accepted"]) == (200, 3)
        assert client.post("/api/v1/events", json=event("poison")).status_code == 200
        assert set(stored(server)) == {sent[0]["event_id"], sent[2]["event_id"]}
        letters = list_dead_letters(connection)
        assert [(letter.read()["unit_id"], "no_poison" in letter.error) for letter in letters] == [("poison", True)] * 2
        assert 'events_received_total{event_type="custom",status="dead_letter"} 2.0' in client.get("/metrics").text


def test_events_are_stored_when_the_database_is_no_longer_read_only(
    server: EmbeddedPostgres, key: str, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"spool_mb": 1, "spool_dir": tmp_path / "spool", "api_retry_delays_ms": NO_WAITING}
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute("ALTER DATABASE lifecycle SET default_transaction_read_only = on")
    with running_api(server.url, **settings) as url, client_of(url, key) as client:
        # Sessions that begin now stay read-only.
        sent = [event(f"u{n}") for n in range(3)]
        for sent_event in sent:
            assert client.post("/api/v1/events", json=sent_event).status_code == 200
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute("SET default_transaction_read_only = off")
            connection.execute("ALTER DATABASE lifecycle RESET default_transaction_read_only")
        wait_until(lambda: gauge(client, "event_spool_size") == 0)
        assert set(stored(server)) == ids(sent)


def test_acknowledged_event_becomes_a_dead_letter_when_postgresql_rejects_it(
    server: EmbeddedPostgres, key: str, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"spool_mb": 1, "spool_dir": tmp_path / "spool", "api_retry_delays_ms": NO_WAITING}
    poison, gone = event("poison", payload={"plan_id": "p\u00e9"}), event("gone")
    others = [event(f"u{n}") for n in range(20)]
    back = event("back")
    with psycopg.connect(server.url) as connection:
        connection.execute(REFUSE)
        record_erased_unit(connection, "user", "gone")
        # As if the unit was erased after its event was received.
        connection.execute("UPDATE exp.erased_units SET erased_at = now() + interval '1 hour'")
        record_erased_unit(connection, "user", "back")
    with running_api(server.url, **settings) as url, client_of(url, key) as client:
        client.post("/api/v1/events", json=others[0])
        server.stop()
        batch = {"events": [*others[:10], poison, gone, back, *others[10:]]}
        assert client.post("/api/v1/events/batch", json=batch).json()["accepted"] == 23
        server.start()
        wait_until(lambda: gauge(client, "event_spool_size") == 0)
        # All but the rejected event and that of the unit erased meanwhile; a unit that came back is treated like any other.
        assert set(stored(server)) == ids([*others, back])
        with psycopg.connect(server.url) as connection:
            (letter,) = list_dead_letters(connection)
            assert (str(letter.event_id), letter.error, letter.tries) == (poison["event_id"], "too narrow", 3)
            assert letter.read()["payload"] == poison["payload"]
            assert replay_dead_letter(connection, letter)[1:] == (None, "too narrow")
            assert list_dead_letters(connection)[0].tries == 4
            connection.execute("DROP TRIGGER refuse_poison ON exp.events")
            assert replay_dead_letter(connection, letter)[1] == "stored"
            assert list_dead_letters(connection) == [] and delete_dead_letters(connection, [letter.id]) == []
    assert poison["event_id"] in stored(server)


def test_spooled_events_of_a_dead_process_are_stored_by_another(
    server: EmbeddedPostgres, key: str, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"spool_mb": 1, "spool_dir": tmp_path / "spool", "api_retry_delays_ms": NO_WAITING}
    sent = [event(f"u{n}") for n in range(5)]
    with running_api(server.url, **settings) as url, client_of(url, key) as client:
        client.post("/api/v1/events", json=event("before"))
        server.stop()
        for sent_event in sent:
            assert client.post("/api/v1/events", json=sent_event).status_code == 200
    # The API ended while the database was down, and something else wrote to its file.
    (left,) = (tmp_path / "spool").glob("*/*.events")
    rewrite_segment(read_segment(left), [b'{"no": "event"}', *read_segment(left).records])
    # A living writer keeps its own segments.
    living = SpoolWriter(tmp_path / "spool", 10_000)
    living.append([b"not yours"])
    server.start()
    with running_api(server.url, **settings):
        wait_until(lambda: len(stored(server)) == 6)
        wait_until(lambda: len(list((tmp_path / "spool" / "damaged").glob("*"))) == 1)
        # Unreadable data is kept for a person, and the living writer's segment is untouched.
        assert living.seal() == [
            path for path in (tmp_path / "spool").glob("*/*.events") if path.parent.name != "damaged"
        ]
    assert set(stored(server)) >= ids(sent)
