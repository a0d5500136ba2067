"""Mapping files: what they say, and every rule that they break with file and line, all at once."""

from dataclasses import replace
from pathlib import Path

import pytest
from ground_support import assert_problem
from import_support import CLICKS, TRIAL, mapping_of, written

from eventlog.imports.mapping import Value
from eventlog.imports.mapping_file import MappingMissingError, read_mapping
from foundation.yaml_files import ConfigError

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"


def problems(folder: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        mapping_of(folder, text)
    return [f"{problem.place.line}: {problem.rule}" for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("user}", "user", 5, "not YAML"),
        ("unit_id:", "unit:", 4, "Unknown key unit. Did you mean unit_id?"),
        ("event_type: custom.click", "", 3, "needs event_type"),
        ("custom.click", "click", 2, "event_type edit_applied, exposure, not click"),
        ("unit_type: user", "unit_type: person", 3, "unit_type household, session, user, not person"),
        ("{column: user}", "{colum: user}", 4, "Unknown key colum. Did you mean column?"),
        ("{column: user}", "{columns: []}", 4, "unit_id.columns is empty"),
        ("{column: user}", "{default: x}", 4, "unit_id must be a constant `column`"),
        ("{column: user}", "{column: yes}", 4, "unit_id.column must be text, not yes or no quotes"),
        ("{column: user}", "{column: user, as: hash}", 4, "unit_id.as text number flag json not hash"),
        ("{column: at}", "{column: at}\nevent_id: {column: id, as: text}", 6, "event_id.as hash not text"),
        ("{column: at}", "yesterday", 5, "timestamp time like 2025-01-31T08:00:00Z"),
        ("{column: at}", "2020-01-01T00:00:00", 5, "timestamp offset from UTC"),
        ("{column: at}", "{column: at, format: epoch}", 5, "timestamp.format iso, epoch_s, not epoch"),
        ("{column: at}", "{column: at, format: '%d.%m.%Y'}", 5, "timestamp format without an offset (%z) zone"),
        ("{column: at}", "{column: at, zone: Europe/Berlni}", 5, "timestamp.zone Europe/Berlin Europe/Berlni unknown"),
        ("{column: at}", "{column: at, as: text}", 5, "Unknown key as"),
        ("{column: at}", "{column: at}\nmetrics: {ms: fast}", 6, "metrics.ms number, yes or no, not fast"),
        ("{column: at}", "{column: at}\npayload: {'*': 1}", 6, "payload one column *"),
        ("{column: at}", "{column: at}\nexperiment: trial", 6, "`experiment` and `variant` go together"),
        ("{column: at}", "{column: at}\nassigned_at: {column: b}", 6, "`assigned_at` declares"),
        ("{column: at}", "{column: at}\nheader: [a, a]", 6, "header names a column twice"),
        ("{column: at}", "{column: at}\nevents: []", 6, "events is empty"),
        ("{column: at}", "{column: at}\nevents: [exposure]", 6, "events[0] mapping, not text"),
        ("{column: at}", "{column: at}\nwhere: {kind: {a: 1}}", 6, "where.kind single value"),
        (
            "{column: at}",
            "{column: at}\nevent_id: {column: id}\nevents: [{metrics: [a]}, {metrics: [b]}]",
            7,
            "events of a row share event_id `as: hash`",
        ),
    ],
)
def test_mapping_is_refused_with_line_and_rule(tmp_path: Path, old: str, new: str, line: int, words: str) -> None:
    text = "# a comment\n" + CLICKS.lstrip("\n").replace(old, new)
    assert_problem(problems(tmp_path, text), f"{line}: ", words)


def test_problems_in_several_places_are_reported_at_once(tmp_path: Path) -> None:
    text = """event_type: plan_acepted
unit_type: person
unit_id: {colum: user}
timestamp: yesterday
metrics: {ms: fast}
where: {kind: {a: 1}}
"""
    reported = problems(tmp_path, text)
    assert sorted({problem.partition(":")[0] for problem in reported}) == ["1", "2", "3", "4", "5", "6"]
    assert reported[0].endswith("Did you mean plan_accepted?")


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("allocation: 0.5}\n    b", "allocation: 0.4}\n    b", 7, "variants allocations sum to 1"),
        ("treatment", "control", 7, "variants exactly one variant with the role control"),
        ("{role: treatment, allocation: 0.5}", "{role: treatment, allocation: 0}", 8, "variants.b.allocation is 0"),
        ("ended: 2020-02-01", "ended: 2019-02-01", 5, "ended must be after started"),
        ("ended: 2020-02-01T00:00:00Z", "ended: 2020-02-01", 5, "ended offset"),
        ("name: trial", "name: a/b", 2, "name must not contain / a/b"),
        ("{column: variant}", "c", 9, "trial has no variant c a, b"),
        ("unit_id:", "unit_type: session\nunit_id:", 11, "units of trial user"),
    ],
)
def test_declared_experiment_is_refused_with_line_and_rule(
    tmp_path: Path, old: str, new: str, line: int, words: str
) -> None:
    assert_problem(problems(tmp_path, TRIAL.lstrip("\n").replace(old, new, 1)), f"{line}: ", words)


def test_several_problems_of_one_event_are_reported_at_once(tmp_path: Path) -> None:
    text = CLICKS.replace("custom.click", "click").replace("{column: at}", "{column: at}\nmetrics: {a: x, b: y}")
    assert len(problems(tmp_path, text)) == 3


@pytest.mark.parametrize("text", ["", "[]", "a", "&x {event_type: *x}", "event_type: [a]", "\x00", "{? {a: 1} : 2}"])
def test_file_that_is_not_a_mapping_is_refused(tmp_path: Path, text: str) -> None:
    assert problems(tmp_path, text)


def test_missing_mapping_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MappingMissingError, match="does not exist"):
        read_mapping(tmp_path / "none.yml")


def test_events_inherit_shared_fields(tmp_path: Path) -> None:
    text = CLICKS + "metrics: [ms]\nevents:\n  - {event_type: exposure, metrics: {}}\n  - unit_id: {column: buyer}\n"
    first, second = mapping_of(tmp_path, text).events
    assert (first.event_type.constant, dict(first.metrics), first.unit_id.columns) == ("exposure", {}, ("user",))
    assert (second.event_type.constant, list(second.metrics), second.unit_id.columns) == (
        "custom.click",
        ["ms"],
        ("buyer",),
    )


def test_digest_ignores_comments_and_layout(tmp_path: Path) -> None:
    plain = mapping_of(tmp_path, CLICKS).digest
    assert (
        mapping_of(tmp_path, "# of the web shop\n" + CLICKS.replace("{column: at}", "\n  column: at")).digest == plain
    )
    assert mapping_of(tmp_path, CLICKS.replace("user}", "person}")).digest != plain
    assert len(plain) == 64


@pytest.mark.parametrize("name", ["cookie_cats", "adsmart"])
def test_example_mappings_can_be_read(name: str) -> None:
    mapping = read_mapping(EXAMPLES / f"{name}.yml")
    assert mapping.declared is not None and mapping.declared.name == name


def test_columns_are_collected_from_all_fields(tmp_path: Path) -> None:
    text = (
        TRIAL
        + "assigned_at: {columns: [day, hour], format: '%d %H', zone: UTC}\nwhere: {kind: [x]}\npayload: ['p']\nevent_id: {column: i}\n"
    )
    columns = mapping_of(tmp_path, text).columns()
    assert set(columns) == {"variant", "user", "at", "day", "hour", "kind", "p", "i"}
    assert columns["user"].line == 12


def test_constants_keep_their_text(tmp_path: Path) -> None:
    """An id that looks like a number is not one, and a value of the payload is what YAML takes it for."""
    mapping = mapping_of(tmp_path, CLICKS.replace("{column: user}", "007") + "payload: {n: 7, yes: yes, s: '7'}\n")
    (event,) = mapping.events
    assert event.unit_id.constant == "007"
    assert {key: value.constant for key, value in event.payload.items()} == {"n": 7, "yes": True, "s": "7"}
    assert replace(event.unit_id, place=event.unit_type.place) == Value(
        event.unit_type.place, constant="007", kind="text"
    )


def test_bytes_that_are_not_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not text"):
        read_mapping(written(tmp_path, "mapping.yml", b"\xff\xfe"))
