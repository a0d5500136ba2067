"""Partition keys and their windows."""

from datetime import UTC, datetime

import pytest

from assets.partitions import dataset_window, model_version_key, parse_model_version_key


def test_a_dataset_window_ends_with_its_day() -> None:
    start, end = dataset_window("2026-03-08", 7)
    assert (start, end) == (datetime(2026, 3, 2, tzinfo=UTC), datetime(2026, 3, 9, tzinfo=UTC))


def test_model_version_key_is_parsed_back_into_name_and_version() -> None:
    assert parse_model_version_key(model_version_key("planner_model", 12)) == ("planner_model", 12)


@pytest.mark.parametrize("key", ["planner_model", "@3", "planner_model@", "planner_model@x"])
def test_another_key_is_refused_with_the_right_form(key: str) -> None:
    with pytest.raises(ValueError, match="name@number"):
        parse_model_version_key(key)
