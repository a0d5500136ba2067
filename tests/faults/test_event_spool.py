"""PostgreSQL goes away under a running API: events are acknowledged, kept on disk, and stored once when it is back."""

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

from eventlog.dead_letters import dead_letters, drop, replay
from eventlog.erased_units import note_erased
from eventlog.spool import SpoolWriter, read_segment, rewrite
from foundation.api_keys import make_api_key
from foundation.migrate import migrate
from orchestration.local.postgres import EmbeddedPostgres

# Refuses one unit's events, as a column that turns out too narrow would.
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


def until(holds: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not so within {seconds} s"


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


def stored(server: EmbeddedPostgres) -> dict[str, list[str]]:
    """Flags by id."""
    with psycopg.connect(server.url) as connection:
        rows = connection.execute("SELECT id::text, flags FROM exp.events").fetchall()
    assert len(rows) == len(dict(rows))
    return dict(rows)


def gauge(client: httpx.Client, name: str) -> float | None:
    lines = client.get("/metrics").text.splitlines()
    return next((float(line.split()[1]) for line in lines if line.startswith(f"{name} ")), None)


def test_events_are_kept_while_the_database_is_away(server: EmbeddedPostgres, key: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"spool_mb": 1, "spool_dir": tmp_path / "spool", "api_retry_delays_ms": NO_WAITING}
    late = event(timestamp=(datetime.now(UTC) - timedelta(days=8)).isoformat())
    sent = [event(), late, *(event(f"u{n}") for n in range(50))]
    # Keys are checked for each request, as soon as the database is there.
    with running_api(server.url, **settings) as url, client_of(url, key) as client:
        assert client.post("/api/v1/events", json=sent[0]).status_code == 200
        server.stop()
        for one in sent[:2]:
            answer = client.post("/api/v1/events", json=one)
            assert (answer.status_code, answer.json()) == (200, {"event_id": one["event_id"], "status": "accepted"})
        answer = client.post("/api/v1/events/batch", json={"events": [*sent[2:], event(unit_id="")]})
        assert (answer.status_code, answer.json()["accepted"], answer.json()["rejected"]) == (207, 50, 1)
        assert gauge(client, "event_spool_size") == 52
        assert 'events_received_total{event_type="custom",status="spooled"} 52.0' in client.get("/metrics").text
        # A key that was never checked can't be.
        assert client_of(url, "lk_" + key[3:-1] + "x").post("/api/v1/events", json=event()).status_code in (401, 503)
        server.start()
        until(lambda: gauge(client, "event_spool_size") == 0)
        assert client.post("/api/v1/events", json=event("after")).status_code == 200
        held = stored(server)
        assert set(held) >= {one["event_id"] for one in sent} and len(held) == 53
        assert held[late["event_id"]] == ["no_experiment_context", "no_policy_version_id", "late"]
        assert held[sent[0]["event_id"]] == ["no_experiment_context", "no_policy_version_id"]


def test_a_full_spool_is_503_and_keeps_what_it_has(server: EmbeddedPostgres, key: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"spool_mb": 1, "spool_dir": tmp_path / "spool", "api_retry_delays_ms": NO_WAITING}
    large = {"text": "x" * 200_000}
    with running_api(server.url, **settings) as url, client_of(url, key) as client:
        client.post("/api/v1/events", json=event())
        server.stop()
        answers: list[tuple[str, httpx.Response]] = []
        while not answers or answers[-1][1].status_code == 200:
            one = event(payload=large)
            answers.append((one["event_id"], client.post("/api/v1/events", json=one)))
        assert len(answers) == 6
        refused = answers[-1][1]
        assert (refused.status_code, refused.json()["error"], refused.headers["retry-after"]) == (
            503,
            "service_unavailable",
            "5",
        )
        assert "the spool is full" in refused.json()["message"]
        server.start()
        until(lambda: gauge(client, "event_spool_size") == 0)
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


def test_a_full_disk_is_503_and_what_was_acknowledged_is_stored(
    server: EmbeddedPostgres, key: str, small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings: dict[str, Any] = {"spool_mb": 1, "spool_dir": small_disk / "spool", "api_retry_delays_ms": NO_WAITING}
    with running_api(server.url, **settings) as url, client_of(url, key) as client:
        assert client.post("/api/v1/events", json=event()).status_code == 200
        server.stop()
        acknowledged: list[tuple[str, httpx.Response]] = []
        refused: list[tuple[str, httpx.Response]] = []
        for number in range(60):
            one = event(f"u{number}", payload={"text": "x" * 2000})
            answer = client.post("/api/v1/events", json=one)
            (acknowledged if answer.status_code == 200 else refused).append((one["event_id"], answer))
        assert len(acknowledged) > 5 and len(refused) > 5
        for _, answer in refused:
            assert (answer.status_code, answer.json()["error"], answer.headers["retry-after"]) == (
                503,
                "service_unavailable",
                "5",
            )
        assert "can't be written: No space left on device" in caplog.text
        server.start()
        until(lambda: gauge(client, "event_spool_size") == 0)
        assert {event_id for event_id, _ in acknowledged} <= set(stored(server))
        # The room is there again.
        server.stop()
        assert client.post("/api/v1/events", json=event()).status_code == 200
        server.start()


def test_without_a_spool_nothing_is_acknowledged(server: EmbeddedPostgres, key: str) -> None:
    with running_api(server.url, api_retry_delays_ms=NO_WAITING) as url, client_of(url, key) as client:
        client.post("/api/v1/events", json=event())
        server.stop()
        assert client.post("/api/v1/events", json=event()).status_code == 503
        assert client.post("/api/v1/events/batch", json={"events": [event()]}).status_code == 503


def test_what_postgresql_refuses_is_refused_alone(server: EmbeddedPostgres, key: str) -> None:
    with running_api(server.url) as url, client_of(url, key) as client, psycopg.connect(server.url) as connection:
        connection.execute(REFUSE)
        connection.commit()
        good = [event("a"), event("b")]
        answer = client.post("/api/v1/events/batch", json={"events": [good[0], event("poison"), good[1]]})
        assert (answer.status_code, answer.json()["event_ids"]) == (207, [one["event_id"] for one in good])
        assert answer.json()["errors"] == [{"index": 1, "error": "invalid_event"}]
        assert client.post("/api/v1/events", json=event("poison")).status_code == 400
        assert client.post("/api/v1/events/batch", json={"events": [event("poison")] * 2}).status_code == 400
        assert set(stored(server)) == {one["event_id"] for one in good}


def test_what_a_rule_of_the_database_refuses_is_kept(server: EmbeddedPostgres, key: str) -> None:
    """Somebody's trigger or constraint is not the sender's fault."""
    with running_api(server.url) as url, client_of(url, key) as client, psycopg.connect(server.url) as connection:
        connection.execute("ALTER TABLE exp.events ADD CONSTRAINT no_poison CHECK (unit_id <> 'poison')")
        connection.commit()
        sent = [event("a"), event("poison"), event("b")]
        answer = client.post("/api/v1/events/batch", json={"events": sent})
        assert (answer.status_code, answer.json()["accepted"]) == (200, 3)
        assert client.post("/api/v1/events", json=event("poison")).status_code == 200
        assert set(stored(server)) == {sent[0]["event_id"], sent[2]["event_id"]}
        letters = dead_letters(connection)
        assert [(letter.read()["unit_id"], "no_poison" in letter.error) for letter in letters] == [("poison", True)] * 2
        assert 'events_received_total{event_type="custom",status="dead_letter"} 2.0' in client.get("/metrics").text


def test_a_database_that_was_read_only_is_written_to_again(server: EmbeddedPostgres, key: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"spool_mb": 1, "spool_dir": tmp_path / "spool", "api_retry_delays_ms": NO_WAITING}
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute("ALTER DATABASE lifecycle SET default_transaction_read_only = on")
    with running_api(server.url, **settings) as url, client_of(url, key) as client:
        # Sessions that begin now stay read-only.
        sent = [event(f"u{n}") for n in range(3)]
        for one in sent:
            assert client.post("/api/v1/events", json=one).status_code == 200
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute("SET default_transaction_read_only = off")
            connection.execute("ALTER DATABASE lifecycle RESET default_transaction_read_only")
        until(lambda: gauge(client, "event_spool_size") == 0)
        assert set(stored(server)) == {one["event_id"] for one in sent}


def test_what_was_acknowledged_and_is_refused_becomes_a_dead_letter(
    server: EmbeddedPostgres, key: str, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"spool_mb": 1, "spool_dir": tmp_path / "spool", "api_retry_delays_ms": NO_WAITING}
    poison, gone = event("poison", payload={"plan_id": "p\u00e9"}), event("gone")
    others = [event(f"u{n}") for n in range(20)]
    back = event("back")
    with psycopg.connect(server.url) as connection:
        connection.execute(REFUSE)
        note_erased(connection, "user", "gone")
        # As if it happened after its event was received.
        connection.execute("UPDATE exp.erased_units SET erased_at = now() + interval '1 hour'")
        note_erased(connection, "user", "back")
    with running_api(server.url, **settings) as url, client_of(url, key) as client:
        client.post("/api/v1/events", json=others[0])
        server.stop()
        batch = {"events": [*others[:10], poison, gone, back, *others[10:]]}
        assert client.post("/api/v1/events/batch", json=batch).json()["accepted"] == 23
        server.start()
        until(lambda: gauge(client, "event_spool_size") == 0)
        # All but the one that is refused, and the one whose unit was erased meanwhile; a unit that came back is one like any other.
        assert set(stored(server)) == {one["event_id"] for one in [*others, back]}
        with psycopg.connect(server.url) as connection:
            (letter,) = dead_letters(connection)
            assert (str(letter.event_id), letter.error, letter.tries) == (poison["event_id"], "too narrow", 3)
            assert letter.read()["payload"] == poison["payload"]
            assert replay(connection, letter)[1:] == (None, "too narrow")
            assert dead_letters(connection)[0].tries == 4
            connection.execute("DROP TRIGGER refuse_poison ON exp.events")
            assert replay(connection, letter)[1] == "stored"
            assert dead_letters(connection) == [] and drop(connection, [letter.id]) == []
    assert poison["event_id"] in stored(server)


def test_what_a_dead_process_left_is_stored_by_another(server: EmbeddedPostgres, key: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"spool_mb": 1, "spool_dir": tmp_path / "spool", "api_retry_delays_ms": NO_WAITING}
    sent = [event(f"u{n}") for n in range(5)]
    with running_api(server.url, **settings) as url, client_of(url, key) as client:
        client.post("/api/v1/events", json=event("before"))
        server.stop()
        for one in sent:
            assert client.post("/api/v1/events", json=one).status_code == 200
    # It ended while the database was away, and something else wrote into its file.
    (left,) = (tmp_path / "spool").glob("*/*.events")
    rewrite(read_segment(left), [b'{"no": "event"}', *read_segment(left).records])
    # One that lives keeps its own.
    living = SpoolWriter(tmp_path / "spool", 10_000)
    living.append([b"not yours"])
    server.start()
    with running_api(server.url, **settings):
        until(lambda: len(stored(server)) == 6)
        until(lambda: len(list((tmp_path / "spool" / "damaged").glob("*"))) == 1)
        # What can't be read is kept for a person; the living one's is untouched.
        assert living.sealed() == [
            path for path in (tmp_path / "spool").glob("*/*.events") if path.parent.name != "damaged"
        ]
    assert set(stored(server)) >= {one["event_id"] for one in sent}
