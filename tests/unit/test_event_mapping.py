"""A mapping says what it says, and every rule that it breaks is told with file and line, all at once."""

from dataclasses import replace
from pathlib import Path

import pytest
from import_support import CLICKS, TRIAL, mapping_of, written

from eventlog.imports.mapping import Value
from eventlog.imports.mapping_file import MappingMissingError, read_mapping
from experimentation.config.yaml_nodes import ConfigError

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"


def complaints(folder: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        mapping_of(folder, text)
    return [f"{problem.place.line}: {problem.rule}" for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("instead_of", "given", "complaint"),
    [
        ("user}", "user", "5: This is not YAML"),
        ("unit_id:", "unit:", "4: A mapping has no key 'unit'"),
        ("event_type: custom.click", "", "3: An event needs event_type."),
        ("custom.click", "click", "2: There is no event type click: use edit_applied, exposure,"),
        ("unit_type: user", "unit_type: person", "3: unit_type must be one of household, session, user, not person."),
        ("{column: user}", "{colum: user}", "4: unit_id has no key 'colum'"),
        ("{column: user}", "{columns: []}", "4: The columns of unit_id are none."),
        ("{column: user}", "{default: x}", "4: unit_id must be a constant, or name its `column`"),
        ("{column: user}", "{column: yes}", "4: The column of unit_id must be text, not yes or no: put it in quotes."),
        ("{column: user}", "{column: user, as: hash}", "4: `as: hash` makes an event_id of a text"),
        ("{column: at}", "yesterday", "5: timestamp must be a time like 2025-01-31T08:00:00Z."),
        ("{column: at}", "2020-01-01T00:00:00", "5: timestamp must name its offset from UTC"),
        ("{column: at}", "{column: at, format: epoch}", "5: The format of timestamp must be iso, epoch_s,"),
        ("{column: at}", "{column: at, format: '%d.%m.%Y'}", "5: timestamp has a format without an offset (%z)"),
        ("{column: at}", "{column: at, zone: Europe/Berlni}", "5: The zone of timestamp must be like Europe/Berlin"),
        ("{column: at}", "{column: at}\nmetrics: {ms: fast}", "6: metrics.ms must be a number, yes or no, not fast."),
        ("{column: at}", "{column: at}\npayload: {'*': 1}", "6: payload.* must name the one column"),
        ("{column: at}", "{column: at}\nexperiment: trial", "6: `experiment` and `variant` go together"),
        ("{column: at}", "{column: at}\nheader: [a, a]", "6: `header` names a column twice."),
        ("{column: at}", "{column: at}\nevents: []", "6: `events` is empty"),
        ("{column: at}", "{column: at}\nwhere: {kind: {a: 1}}", "6: `where` of kind must be single values."),
        (
            "{column: at}",
            "{column: at}\nevent_id: {column: id}\nevents: [{metrics: [a]}, {metrics: [b]}]",
            "7: The events of a row would share one event_id",
        ),
    ],
)
def test_complaints_name_their_line(tmp_path: Path, instead_of: str, given: str, complaint: str) -> None:
    text = CLICKS.lstrip("\n").replace(instead_of, given)
    text = "# where from\n" + text
    assert any(said.startswith(complaint) for said in complaints(tmp_path, text)), complaints(tmp_path, text)


def test_what_is_wrong_in_several_places_is_told_at_once(tmp_path: Path) -> None:
    text = """event_type: plan_acepted
unit_type: person
unit_id: {colum: user}
timestamp: yesterday
metrics: {ms: fast}
where: {kind: {a: 1}}
"""
    told = complaints(tmp_path, text)
    assert sorted({one.partition(":")[0] for one in told}) == ["1", "2", "3", "4", "5", "6"]
    assert told[0].endswith("Did you mean plan_accepted?")


@pytest.mark.parametrize(
    ("instead_of", "given", "complaint"),
    [
        ("allocation: 0.5}\n    b", "allocation: 0.4}\n    b", "7: The allocations of trial must sum to 1"),
        ("treatment", "control", "7: trial needs exactly one variant with the role control."),
        (
            "{role: treatment, allocation: 0.5}",
            "{role: treatment, allocation: 0}",
            "8: The allocation of trial's variant b is 0",
        ),
        ("ended: 2020-02-01", "ended: 2019-02-01", "5: trial must end after it started."),
        ("ended: 2020-02-01T00:00:00Z", "ended: 2020-02-01", "5: The end of trial must name its offset"),
        ("name: trial", "name: a/b", "2: The name of experiment a/b must have no /"),
        ("{column: variant}", "c", "9: trial has no variant c that units are in: it has a, b."),
        ("unit_id:", "unit_type: session\nunit_id:", "11: The units of trial are of the type user"),
    ],
)
def test_complaints_about_an_experiment(tmp_path: Path, instead_of: str, given: str, complaint: str) -> None:
    text = TRIAL.lstrip("\n").replace(instead_of, given, 1)
    assert any(said.startswith(complaint) for said in complaints(tmp_path, text)), complaints(tmp_path, text)


def test_all_complaints_come_at_once(tmp_path: Path) -> None:
    text = CLICKS.replace("custom.click", "click").replace("{column: at}", "{column: at}\nmetrics: {a: x, b: y}")
    assert len(complaints(tmp_path, text)) == 3


@pytest.mark.parametrize("text", ["", "[]", "a", "&x {event_type: *x}", "event_type: [a]", "\x00", "{? {a: 1} : 2}"])
def test_what_is_no_mapping_is_a_complaint(tmp_path: Path, text: str) -> None:
    assert complaints(tmp_path, text)


def test_a_mapping_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(MappingMissingError, match="does not exist"):
        read_mapping(tmp_path / "none.yml")


def test_events_take_over_what_is_shared(tmp_path: Path) -> None:
    text = CLICKS + "metrics: [ms]\nevents:\n  - {event_type: exposure, metrics: {}}\n  - unit_id: {column: buyer}\n"
    first, second = mapping_of(tmp_path, text).events
    assert (first.event_type.constant, dict(first.metrics), first.unit_id.columns) == ("exposure", {}, ("user",))
    assert (second.event_type.constant, list(second.metrics), second.unit_id.columns) == (
        "custom.click",
        ["ms"],
        ("buyer",),
    )


def test_the_digest_is_of_what_is_said(tmp_path: Path) -> None:
    plain = mapping_of(tmp_path, CLICKS).digest
    assert (
        mapping_of(tmp_path, "# of the web shop\n" + CLICKS.replace("{column: at}", "\n  column: at")).digest == plain
    )
    assert mapping_of(tmp_path, CLICKS.replace("user}", "person}")).digest != plain
    assert len(plain) == 64


@pytest.mark.parametrize("name", ["cookie_cats", "adsmart"])
def test_the_examples_can_be_read(name: str) -> None:
    mapping = read_mapping(EXAMPLES / f"{name}.yml")
    assert mapping.declared is not None and mapping.declared.name == name


def test_columns_are_found_wherever_they_stand(tmp_path: Path) -> None:
    text = (
        TRIAL
        + "assigned_at: {columns: [day, hour], format: '%d %H', zone: UTC}\nwhere: {kind: [x]}\npayload: ['p']\nevent_id: {column: i}\n"
    )
    found = mapping_of(tmp_path, text).columns()
    assert set(found) == {"variant", "user", "at", "day", "hour", "kind", "p", "i"}
    assert found["user"].line == 12


def test_constants_keep_their_text(tmp_path: Path) -> None:
    """An id that looks like a number is not one, and a value of the payload is what YAML takes it for."""
    mapping = mapping_of(tmp_path, CLICKS.replace("{column: user}", "007") + "payload: {n: 7, yes: yes, s: '7'}\n")
    (event,) = mapping.events
    assert event.unit_id.constant == "007"
    assert {key: value.constant for key, value in event.payload.items()} == {"n": 7, "yes": True, "s": "7"}
    assert replace(event.unit_id, place=event.unit_type.place) == Value(
        event.unit_type.place, constant="007", kind="text"
    )


def test_bytes_that_are_no_text_are_a_complaint(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no text"):
        read_mapping(written(tmp_path, "mapping.yml", b"\xff\xfe"))
