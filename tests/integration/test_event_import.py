"""Logs imported into PostgreSQL: stored exactly once, units with their variants, names resolved, hostile values unchanged."""

import gzip
import json
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from conftest import SHARED_DATA
from ground_support import config_of, every_model_exists
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from import_support import CLICKS, FIRST_DAY, TRIAL, judge, judge_and_store, mapping_of, rows, store, written

from eventlog.erased_units import record_erased_unit
from eventlog.imports import judging, storing
from eventlog.imports.storing import ImportRefusedError
from eventlog.store import store_read_events
from eventlog.validation import Event
from experimentation.config.sync import sync
from experimentation.runs.imported import ImportedRunError
from foundation.yaml_files import ConfigError

HEADER = "user,variant,at\n"
AT = "2020-01-02T00:00:00Z"
SYNCED = """
experiments:
  - name: trial
    unit_type: user
    status: active
    variants: [{name: control, allocation: 1}]
"""
STATE = """
SELECT (SELECT jsonb_agg(e ORDER BY e.id) FROM exp.events e), (SELECT jsonb_agg(a ORDER BY a.id) FROM exp.assignments a),
       (SELECT jsonb_agg(r) FROM exp.experiments r), (SELECT jsonb_agg(v ORDER BY v.id) FROM exp.variants v),
       (SELECT jsonb_agg(i) FROM exp.imports i)
"""
ENROLLED = """
SELECT a.unit_id, v.name, a.assigned_at FROM exp.assignments a JOIN exp.variants v ON v.id = a.variant_id ORDER BY a.unit_id
"""


def test_a_finished_experiment_is_imported_with_its_units(database_url: str, tmp_path: Path) -> None:
    content = HEADER + f"u1,a,{AT}\nu2,b,2020-01-05T00:00:00Z\nu2,b,2020-01-03T00:00:00Z\n"
    path = written(tmp_path, "log.csv", content)
    imported = store(database_url, path, mapping_of(tmp_path, TRIAL))
    assert (imported.new_events, imported.new_units, imported.units) == (3, 2, {"a": 1, "b": 1})

    enrolled = rows(database_url, ENROLLED)
    assert enrolled == [("u1", "a", datetime(2020, 1, 2, tzinfo=UTC)), ("u2", "b", datetime(2020, 1, 3, tzinfo=UTC))]
    assert rows(
        database_url,
        "SELECT e.status, e.made_by, e.run, e.start_at = p.started_at, p.epoch, "
        "(SELECT count(*) FROM jsonb_each(p.allocations)), (SELECT min(propensity) FROM exp.assignments) = 0.5 "
        "FROM exp.experiments e JOIN exp.allocation_epochs p ON p.experiment_id = e.id",
    ) == [("completed", "file", 1, True, 1, 2, True)]
    carried = rows(
        database_url,
        "SELECT count(*), bool_and(flags = '{no_policy_version_id}') FROM exp.events "
        "JOIN exp.assignments USING (unit_id) WHERE experiments = jsonb_build_array(jsonb_build_object("
        "'experiment_id', experiment_id, 'variant_id', variant_id))",
    )
    assert carried == [(3, True)]
    audited = rows(
        database_url,
        "SELECT action, actor, after ->> 'events' FROM exp.audit_log WHERE action ~ 'import' ORDER BY id",
    )
    assert sorted(audited) == [
        ("events.import_begun", "test", None),
        ("events.imported", "test", "3"),
        ("experiment.imported", "test", None),
    ]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=15)
@given(
    st.lists(st.tuples(st.sampled_from("uvwxyz"), st.sampled_from("abc"), st.integers(0, 20)), min_size=1),
    st.integers(0, 1 << 32),
)
def test_every_row_is_stored_or_rejected_and_a_second_import_changes_nothing(
    database_url: str, tmp_path: Path, log: list[tuple[str, str, int]], salt: int
) -> None:
    """A unit keeps its first variant. Rows with an unknown variant are rejected and do not decide a unit's variant."""
    prefix = f"{salt}-{uuid.uuid4().hex[:6]}-"
    start = datetime(2020, 1, 1, tzinfo=UTC)
    content = HEADER + "".join(
        f"{prefix}{unit},{variant},{(start + timedelta(days=day)).isoformat()}\n" for unit, variant, day in log
    )
    variants: dict[str, str] = {}
    kept = [
        (unit, variant, day)
        for unit, variant, day in log
        if variant != "c" and variants.setdefault(unit, variant) == variant
    ]
    path, mapping = written(tmp_path, "log.csv", content), mapping_of(tmp_path, TRIAL)
    listed = tmp_path / "rejects.jsonl"

    judged = judge(database_url, path, mapping, listed)
    imported = store(database_url, path, mapping)
    assert judged.tally == imported.tally
    assert imported.new_events == len(kept) == imported.tally.total_events and imported.new_units == len(variants)
    assert imported.tally.rows == len(log) == len(kept) + imported.tally.rejected
    assert imported.tally.rejects["unknown_variant"] == sum(variant == "c" for _, variant, _ in log)
    rejects = [json.loads(line) for line in listed.read_text().splitlines()]
    lines = [line for line, row in enumerate(log, start=2) if row[1] == "c" or variants[row[0]] != row[1]]
    assert [reject["line"] for reject in rejects] == lines
    enrolled = [row for row in rows(database_url, ENROLLED) if row[0].startswith(prefix)]
    first = {unit: min(day for other, _, day in kept if other == unit) for unit in variants}
    assert enrolled == [
        (prefix + unit, variants[unit], start + timedelta(days=first[unit])) for unit in sorted(variants)
    ]

    before = rows(database_url, STATE)
    again = store(database_url, path, mapping)
    assert again.before and rows(database_url, STATE) == before


def test_a_second_file_adds_units_to_the_run(database_url: str, tmp_path: Path) -> None:
    mapping = mapping_of(tmp_path, TRIAL)
    store(database_url, written(tmp_path, "one.csv", HEADER + f"u1,a,{AT}\n"), mapping)
    second = store(database_url, written(tmp_path, "two.csv", HEADER + f"u1,b,{AT}\nu1,a,{AT}\nu2,b,{AT}\n"), mapping)
    assert (second.new_units, dict(second.tally.rejects)) == (1, {"unit_in_two_variants": 1})
    assert [row[:2] for row in rows(database_url, ENROLLED)] == [("u1", "a"), ("u2", "b")]


def test_import_is_refused_when_the_stored_run_has_other_allocations(database_url: str, tmp_path: Path) -> None:
    store(database_url, written(tmp_path, "one.csv", HEADER + f"u1,a,{AT}\n"), mapping_of(tmp_path, TRIAL))
    path = written(tmp_path, "two.csv", HEADER + f"u2,a,{AT}\n")
    other = TRIAL.replace("0.5", "0.4", 1).replace(
        "b: {role: treatment, allocation: 0.5", "b: {role: treatment, allocation: 0.6"
    )
    with pytest.raises(ImportedRunError, match=r"trial run 1 was imported with .* a \(control\) 0.5000"):
        judge(database_url, path, mapping_of(tmp_path, other))


def test_sync_leaves_an_imported_run_alone(database_url: str, tmp_path: Path) -> None:
    store(database_url, written(tmp_path, "log.csv", HEADER + f"u1,a,{AT}\n"), mapping_of(tmp_path, TRIAL))
    before = rows(database_url, STATE)
    with psycopg.connect(database_url) as connection:
        other = sync(connection, config_of(tmp_path), model_stage=every_model_exists, by="test")
        same_name = sync(connection, config_of(tmp_path, SYNCED), model_stage=every_model_exists, by="test")
    assert (other.changes, other.notes, same_name.changes) == ((), (), ())
    assert same_name.notes == ("trial run 1 is completed for good: to run it again, give the experiment another name",)
    assert rows(database_url, STATE) == before


def test_experiment_names_are_looked_up_in_the_database(database_url: str, tmp_path: Path) -> None:
    with psycopg.connect(database_url) as connection:
        sync(connection, config_of(tmp_path, SYNCED), model_stage=every_model_exists, by="test")
    path = written(tmp_path, "log.csv", HEADER + f"u1,control,{AT}\nu2,,{AT}\nu3,contrl,{AT}\n")
    named = CLICKS + "variant: {column: variant}\nexperiment: {name: trial, run: 1}\n"
    imported = store(database_url, path, mapping_of(tmp_path, named))
    assert dict(imported.tally.rejects) == {"unknown_variant": 1} and imported.tally.without_experiment == 1
    stored = "SELECT v.name FROM exp.events e JOIN exp.variants v ON e.experiments->0->>'variant_id' = v.id::text"
    assert rows(database_url, stored) == [("control",)]
    assert rows(database_url, "SELECT count(*) FROM exp.assignments") == [(0,)]

    for experiment, complaint in (
        ("trail", "mapping.yml:7: The database has no experiment trail: did you mean trial? Choose from trial."),
        ("{name: trial, run: 3}", "mapping.yml:7: trial has no run 3: its runs are 1 to 1."),
    ):
        wrong = named.replace("{name: trial, run: 1}", experiment)
        with pytest.raises(ConfigError) as caught:
            judge(database_url, path, mapping_of(tmp_path, wrong))
        assert str(caught.value).endswith(complaint)
    declared = TRIAL.replace("a: {", "control: {")
    with pytest.raises(ImportedRunError, match="trial run 1 ran here and is active"):
        judge(database_url, path, mapping_of(tmp_path, declared))
    in_a_column = (
        CLICKS + "variant: {column: variant}\nexperiment: {column: user, values: {u1: trial, u2: trial, u3: none}}\n"
    )
    assert judge(database_url, path, mapping_of(tmp_path, in_a_column)).tally.rejects["unknown_experiment"] == 1


def test_a_file_is_refused_when_it_was_stored_by_another_mapping(database_url: str, tmp_path: Path) -> None:
    path = written(tmp_path, "log.csv", f"user,at\nu1,{AT}\n")
    store(database_url, path, mapping_of(tmp_path, CLICKS))
    with pytest.raises(ImportRefusedError, match="was imported with another mapping"):
        store(database_url, path, mapping_of(tmp_path, CLICKS.replace("click", "visit")))
    assert rows(database_url, "SELECT event_type FROM exp.events") == [("custom.click",)]


def test_event_ids_are_kept_or_hashed(database_url: str, tmp_path: Path) -> None:
    known = uuid.uuid4()
    path = written(tmp_path, "log.csv", f"user,at,id\nu1,{AT},{known}\nu1,{AT},{known}\nu2,{AT},order-7\n")
    imported = store(database_url, path, mapping_of(tmp_path, CLICKS + "event_id: {column: id}\n"))
    assert (imported.new_events, dict(imported.tally.rejects)) == (1, {"invalid_event_id": 1})
    assert rows(database_url, "SELECT id FROM exp.events") == [(known,)]
    for name in ("one", "two"):
        hashed = written(tmp_path, f"{name}.csv", f"user,at,id,{name}\nu2,{AT},order-7,1\n")
        store(database_url, hashed, mapping_of(tmp_path, CLICKS + "event_id: {column: id, as: hash}\n"))
    assert rows(database_url, "SELECT count(*) FROM exp.events WHERE unit_id = 'u2'") == [(1,)]


def test_events_are_stored_in_their_days_and_in_history(database_url: str, tmp_path: Path) -> None:
    """A day whose partition was dropped gets a new one."""
    first, third = (f"exp.events_{FIRST_DAY + timedelta(days=days):%Y%m%d}" for days in (0, 3))
    moments = ["1999-12-31T23:59:59Z", f"{FIRST_DAY}T00:00:00Z", f"{FIRST_DAY + timedelta(days=3)}T12:00:00+02:00"]
    store(database_url, written(tmp_path, "none.csv", f"user,at\nu,{AT}\n"), mapping_of(tmp_path, CLICKS))
    with psycopg.connect(database_url) as connection:
        connection.execute(f"DROP TABLE {third}")
    path = written(tmp_path, "log.csv", "user,at\n" + "".join(f"u,{moment}\n" for moment in moments))
    store(database_url, path, mapping_of(tmp_path, CLICKS))
    partitions = rows(database_url, "SELECT tableoid::regclass::text FROM exp.events ORDER BY timestamp")
    assert [name for (name,) in partitions] == ["exp.events_history", "exp.events_history", first, third]


def test_erased_units_are_not_imported_again(database_url: str, tmp_path: Path) -> None:
    with psycopg.connect(database_url) as connection:
        record_erased_unit(connection, "user", "gone")
    path, rejects = written(tmp_path, "log.csv", HEADER + f"gone,a,{AT}\nhere,a,{AT}\n"), tmp_path / "rejects.jsonl"
    mapping = mapping_of(tmp_path, TRIAL)
    judge(database_url, path, mapping, rejects)
    assert "gone" not in rejects.read_text() and json.loads(rejects.read_text())["reason"] == "erased_unit"
    store(database_url, path, mapping)
    assert (
        rows(database_url, "SELECT unit_id FROM exp.events UNION ALL SELECT unit_id FROM exp.assignments")
        == [("here",)] * 2
    )


@pytest.mark.parametrize("when", ["judged", "stored"])
def test_unit_is_not_stored_when_it_is_erased_during_the_import(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """A unit erased between judging and storing is not enrolled either. Later its enrolment is stored already, and erased with the unit."""
    monkeypatch.setattr(judging, "ROWS_AT_ONCE", 1)

    def erase(doing: str, share: float) -> None:
        if doing == when:
            with psycopg.connect(database_url) as connection:
                record_erased_unit(connection, "user", "gone")

    path = written(tmp_path, "log.csv", HEADER + f"here,a,{AT}\ngone,a,{AT}\n")
    imported = judge_and_store(database_url, path, mapping_of(tmp_path, TRIAL), erase)
    assert imported.new_events == 1 and rows(database_url, "SELECT unit_id FROM exp.events") == [("here",)]
    enrolled = [row[0] for row in rows(database_url, ENROLLED)]
    assert enrolled == (["here"] if when == "judged" else ["gone", "here"])


def test_an_erasure_waits_for_the_chunk_that_is_being_stored(database_url: str, tmp_path: Path) -> None:
    mapping = mapping_of(tmp_path, CLICKS)
    path = written(tmp_path, "log.csv", f"user,at\nu,{AT}\n")
    held: list[bool] = []

    def note(connection: psycopg.Connection[Any], events: list[Event]) -> int:
        stored = store_read_events(connection, events)
        with psycopg.connect(database_url) as other, pytest.raises(psycopg.errors.LockNotAvailable):
            other.execute("SET lock_timeout = '100ms'")
            record_erased_unit(other, "user", "u")
        held.append(True)
        return stored

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(storing, "store_read_events", note)
        assert store(database_url, path, mapping).new_events == 1
    assert held == [True]


@pytest.mark.parametrize("wrong", ["where: {user: nobody}\n", "timestamp"])
def test_mapping_without_stored_events_does_not_block_another_mapping(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    path = written(tmp_path, "log.csv", f"user,at\nu,{AT}\n")
    if wrong == "timestamp":
        monkeypatch.setattr(storing, "store_read_events", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            store(database_url, path, mapping_of(tmp_path, CLICKS))
        monkeypatch.undo()
    else:
        assert store(database_url, path, mapping_of(tmp_path, CLICKS + wrong)).new_events == 0
    right = mapping_of(tmp_path, CLICKS.replace("click", "visit"))
    assert store(database_url, path, right).new_events == 1
    assert store(database_url, path, right).before
    assert rows(database_url, "SELECT counts ->> 'events' FROM exp.imports") == [("1",)]
    with pytest.raises(ImportRefusedError, match="was imported with another mapping"):
        store(database_url, path, mapping_of(tmp_path, CLICKS))


def test_grown_log_is_reported_unless_it_has_event_ids(database_url: str, tmp_path: Path) -> None:
    short, grown = f"user,at,id\nu,{AT},a\n", f"user,at,id\nu,{AT},a\nv,{AT},b\n"
    plain, hashed = mapping_of(tmp_path, CLICKS), mapping_of(tmp_path, CLICKS + "event_id: {column: id, as: hash}\n")
    assert store(database_url, written(tmp_path, "log.csv", short), plain).other_content is None
    assert store(database_url, written(tmp_path, "log.csv", short), plain).other_content is None
    path = written(tmp_path, "log.csv", grown)
    assert judge(database_url, path, plain).other_content is not None
    assert judge(database_url, path, hashed).other_content is None
    compressed = written(tmp_path, "log.csv.gz", gzip.compress(short.encode()))
    assert judge(database_url, compressed, plain).other_content is not None
    assert judge(database_url, written(tmp_path, "other.csv", grown), plain).other_content is None


@pytest.mark.parametrize(("name", "content"), [("log.csv", "usr,at\n1,2\n"), ("log.jsonl", '{"usr": 1, "at": 2}\n')])
def test_missing_columns_are_reported_with_the_line_of_the_mapping(
    database_url: str, tmp_path: Path, name: str, content: str
) -> None:
    path = written(tmp_path, name, content)
    with pytest.raises(ConfigError) as caught:
        judge(database_url, path, mapping_of(tmp_path, CLICKS + "metrics: {m: {column: zzz}}\n"))
    assert [(problem.place.line, problem.rule) for problem in caught.value.problems] == [
        (4, f"{name} has no column user: did you mean usr?"),
        (6, f"{name} has no column zzz. It has usr, at."),
    ]


def test_naughty_strings_are_stored_and_found_unchanged(database_url: str, tmp_path: Path) -> None:
    file = SHARED_DATA / "hostile_input" / "naughty_strings.json"
    if not file.exists():
        pytest.skip(f"the naughty strings are not at {file}")
    strings = [text for text in json.loads(file.read_text()) if text]
    as_json = "".join(
        json.dumps({"user": text, "at": AT, "message": {"text": text, "deep": [text]}}) + "\n" for text in strings
    )
    path = written(tmp_path, "log.jsonl", as_json)
    imported = store(database_url, path, mapping_of(tmp_path, CLICKS + "payload: {'*': {column: message}}\n"))
    fitting = [text for text in strings if len(text) <= 255 and "\0" not in text]
    assert dict(imported.tally.rejects) == (
        {"invalid_unit_id": len(strings) - len(fitting)} if len(fitting) < len(strings) else {}
    )
    stored = rows(database_url, "SELECT unit_id, payload ->> 'text', payload -> 'deep' ->> 0 FROM exp.events")
    assert sorted(stored) == sorted((text, text, text) for text in fitting) and len(stored) > 500
