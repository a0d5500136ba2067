"""Single values: times in zones, numbers, yes and no, missing values, and values that can't be used."""

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from import_support import CLICKS, mapping_of, written

from eventlog.imports.rows import RowReader
from eventlog.imports.runs import Experiments
from eventlog.imports.values import flag_of, moment_of, number_of, text_of
from foundation.table_files import UnusableError, open_table

NEW_YORK = ZoneInfo("America/New_York")
NOW = datetime(2026, 6, 1, tzinfo=UTC)
MOMENTS = st.datetimes(datetime(1971, 1, 1), datetime(2037, 1, 1), timezones=st.just(UTC))


@given(MOMENTS)
def test_moment_is_read_from_every_format(moment: datetime) -> None:
    seconds = moment.replace(microsecond=0)
    local = moment.astimezone(NEW_YORK)
    assert moment_of(moment.isoformat(), "iso", None) == moment
    assert moment_of(local.isoformat(), "iso", None) == moment
    assert moment_of(str(int(seconds.timestamp())), "epoch_s", None) == seconds
    assert moment_of(int(moment.timestamp()) * 1_000_000 + moment.microsecond, "epoch_us", None) == moment
    assert moment_of(f"{int(moment.timestamp())}.{moment.microsecond:06d}", "epoch_s", None) == moment
    assert moment_of(moment.strftime("%d/%m/%Y %H:%M:%S.%f %z"), "%d/%m/%Y %H:%M:%S.%f %z", None) == moment
    assert moment_of(moment, "iso", None) == moment


@given(MOMENTS, st.sampled_from(["America/New_York", "Europe/Berlin", "Australia/Lord_Howe", "Asia/Kathmandu"]))
def test_a_local_time_is_the_first_of_two_moments_when_clocks_go_back(moment: datetime, name: str) -> None:
    zone = ZoneInfo(name)
    local = moment.astimezone(zone)
    read = moment_of(local.replace(tzinfo=None).isoformat(), "iso", zone)
    assert read == moment if local.fold == 0 else timedelta(0) < moment - read <= timedelta(hours=1)


def test_a_local_time_is_refused_when_clocks_skip_it() -> None:
    with pytest.raises(ValueError, match="clocks in America/New_York skipped"):
        moment_of("2026-03-08T02:30:00", "iso", NEW_YORK)
    assert moment_of("2026-11-01T01:30:00", "iso", NEW_YORK) == datetime(2026, 11, 1, 5, 30, tzinfo=UTC)
    assert moment_of(date(2026, 3, 8), "iso", NEW_YORK) == datetime(2026, 3, 8, 5, tzinfo=UTC)
    with pytest.raises(ValueError, match="give its `zone`"):
        moment_of("2026-03-08 12:00", "iso", None)


@pytest.mark.parametrize(
    ("text", "number"),
    [("3", 3), (" -1.5e3 ", -1500.0), ("True", 1), ("no", 0), ("N", 0), (True, 1), (Decimal("0.25"), 0.25), (7, 7)],
)
def test_number_of_reads_numbers_yes_and_no(text: object, number: float) -> None:
    assert number_of(text) == number


@pytest.mark.parametrize("text", ["1_000", "3,5", "", "maybe", "0x10", "1" * 5000 + "x", [1], {}])
def test_number_of_refuses_other_values(text: object) -> None:
    with pytest.raises(ValueError):
        number_of(text)


def test_flag_of_and_text_of_convert_or_refuse() -> None:
    assert [flag_of(value) for value in ("yes", "0", 1, False)] == [True, False, True, False]
    with pytest.raises(ValueError, match="neither yes nor no"):
        flag_of("2")
    assert [text_of(value) for value in (12.0, 12.5, True, b"\xc3\xa9", 7)] == ["12", "12.5", "true", "é", "7"]
    with pytest.raises(ValueError):
        text_of({"a": 1})


def read_row(folder: Path, mapping: str, content: str, name: str = "log.csv") -> list[dict[str, object]]:
    """The events of the first row."""
    shared = CLICKS.replace("timestamp: {column: at}\n", "") if "timestamp:" in mapping else CLICKS
    event_mapping = mapping_of(folder, shared + mapping)
    table = open_table(written(folder, name, content), event_mapping.header)
    table.require(event_mapping.columns())
    line, row = next(table.rows())
    reader = RowReader(event_mapping, table, Experiments({}), identity="file", now=NOW)
    events, _ = reader.read(line, row)
    return [
        {
            "type": event.event_type,
            "unit": event.unit_id,
            "metrics": event.metrics,
            "payload": event.payload,
            "at": event.timestamp,
        }
        for event in events
    ]


@pytest.mark.parametrize(
    ("form", "at"),
    [
        ("epoch_s", "soon"),
        ("epoch_s", "nan"),
        ("epoch_s", "1e999999999"),
        ("epoch_s", "-1e15"),
        ("epoch_ms", "99999999999999999"),
        ("iso", "2020-13-01"),
        ("'%d.%m.%Y %z'", "1.2.2020"),
    ],
)
def test_row_is_rejected_when_its_time_cannot_be_read(tmp_path: Path, form: str, at: str) -> None:
    with pytest.raises(UnusableError) as caught:
        read_row(tmp_path, f"timestamp: {{column: at, format: {form}}}\n", f"user,at\nu,{at}\n")
    assert caught.value.reason == "invalid_timestamp"


def test_json_numbers_can_be_times_and_nulls(tmp_path: Path) -> None:
    mapping = "timestamp: {column: at, format: '%Y%m%d', zone: UTC}\nmetrics: [m, n]\nnulls: ['-999']\n"
    (event,) = read_row(tmp_path, mapping, '{"user": 1, "at": 20200102, "m": -999, "n": -9990}', "log.jsonl")
    assert event["metrics"] == {"n": -9990} and event["at"] == datetime(2020, 1, 2, tzinfo=UTC)


def test_missing_values_are_left_out_and_never_zero(tmp_path: Path) -> None:
    mapping = "nulls: [NA, -999]\nmetrics: [a, b, c]\npayload: {k: {column: k}, d: {column: b, default: 5}}\n"
    (event,) = read_row(tmp_path, mapping, "user,at,a,b,c,k\nu,2020-01-01T00:00:00Z,,NA,-999,\n")
    assert event["metrics"] == {} and event["payload"] == {"d": 5}


def test_values_are_replaced_or_refused(tmp_path: Path) -> None:
    mapping = "metrics: {bought: {column: a, values: {kauf: 1, 'nein': 0}}}\n"
    row = "user,at,a\nu,2020-01-01T00:00:00Z,{}\n"
    assert read_row(tmp_path, mapping, row.format("kauf"))[0]["metrics"] == {"bought": 1}
    with pytest.raises(UnusableError, match="'Kauf', which `values` does not list") as caught:
        read_row(tmp_path, mapping, row.format("Kauf"))
    assert caught.value.reason == "unlisted_value"


def test_json_lines_keep_their_types_and_whole_objects(tmp_path: Path) -> None:
    mapping = "payload: {'*': {column: properties}, os: {column: device.os}}\nmetrics: {'*': {column: numbers}}\n"
    line = (
        '{"user": 7, "at": "2020-01-01T00:00:00Z", "properties": {"a": [1, ""], "b": null}, '
        '"device": {"os": "x"}, "numbers": {"n": 1.5}}'
    )
    (event,) = read_row(tmp_path, mapping, line, "log.jsonl")
    assert event["payload"] == {"a": [1, ""], "os": "x"} and event["metrics"] == {"n": 1.5} and event["unit"] == "7"


def test_row_becomes_the_events_whose_condition_matches(tmp_path: Path) -> None:
    mapping = "events: [{where: {kind: [buy, rent]}}, {where: {kind: see}, event_type: exposure}]\n"
    row = "user,at,kind\nu,2020-01-01T00:00:00Z,{}\n"
    kinds = {
        kind: [event["type"] for event in read_row(tmp_path, mapping, row.format(kind))]
        for kind in ("rent", "see", "Buy")
    }
    assert kinds == {"rent": ["custom.click"], "see": ["exposure"], "Buy": []}


@pytest.mark.parametrize(
    ("user", "at", "metric", "reason"),
    [
        ("", "2020-01-01T00:00:00Z", "1", "missing_unit_id"),
        ("u" * 256, "2020-01-01T00:00:00Z", "1", "invalid_unit_id"),
        ("u\0", "2020-01-01T00:00:00Z", "1", "invalid_unit_id"),
        ("u", "", "1", "missing_timestamp"),
        ("u", "01.02.2020", "1", "invalid_timestamp"),
        ("u", "2026-06-01T00:06:00Z", "1", "timestamp_in_future"),
        ("u", "2020-01-01T00:00:00Z", "nan", "invalid_metric"),
        ("u", "2020-01-01T00:00:00Z", "1e999", "invalid_metric"),
        ("u", "2020-01-01T00:00:00Z", "many", "invalid_metric"),
    ],
)
def test_rows_are_refused_as_by_the_api(tmp_path: Path, user: str, at: str, metric: str, reason: str) -> None:
    with pytest.raises(UnusableError) as caught:
        read_row(tmp_path, "metrics: [m]\n", f"user,at,m\n{user},{at},{metric}\n")
    assert caught.value.reason == reason


def test_credentials_are_removed(tmp_path: Path) -> None:
    (event,) = read_row(tmp_path, "payload: [password, at]\n", "user,at,password\nu,2020-01-01T00:00:00Z,x\n")
    assert event["payload"] == {"at": "2020-01-01T00:00:00Z"}
