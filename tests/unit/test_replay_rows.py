"""Which rows may be scored: never one that either model was trained on."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from replay_support import dataset_folder, sample_rows

from replay.rows import ReplayError, RowKey, TrainedOn, choose_rows, read_rows
from training.errors import TrainingError

DAY = datetime(2025, 1, 1, tzinfo=UTC)


def key(number: int, household: str, day: int, split: str | None = "train") -> RowKey:
    return RowKey(f"e{number}", household, DAY + timedelta(days=day), split)


KEYS = [
    key(0, "seen", 0),
    key(1, "seen", 1),
    key(2, "new", 0, "replay"),
    key(3, "new", 1, "replay"),
    key(4, "seen", 5),
]
CANDIDATE = TrainedOn("planner_model 2", frozenset({"e0", "e1"}), frozenset({"seen"}), DAY + timedelta(days=1))
BASELINE = TrainedOn("planner_model 1")


def test_held_out_households_and_rows_after_the_cut_off_are_unseen() -> None:
    positions, selection = choose_rows(KEYS, [CANDIDATE, BASELINE])
    assert positions == [2, 3, 4]
    assert selection.seen == {"planner_model 2": 2, "planner_model 1": 0}
    assert (selection.eligible, selection.scored, selection.overlap, selection.later_rows_of_known_households) == (
        3,
        3,
        0,
        1,
    )


def test_a_row_must_be_unseen_by_both_models() -> None:
    other = TrainedOn("planner_model 1", frozenset({"e3"}), frozenset({"new"}), DAY + timedelta(days=1))
    positions, selection = choose_rows(KEYS, [CANDIDATE, other])
    assert positions == [4], "the other model learnt from the new household until day 1"
    assert selection.seen == {"planner_model 2": 2, "planner_model 1": 2}


def test_earlier_row_of_a_trained_household_counts_as_seen() -> None:
    trained = TrainedOn("m", frozenset({"e1"}), frozenset({"seen"}), DAY + timedelta(days=1))
    assert choose_rows(KEYS, [trained])[0] == [2, 3, 4]


def test_an_event_that_was_trained_on_is_seen_at_any_time_and_in_any_household() -> None:
    trained = TrainedOn("m", frozenset({"e4"}), frozenset(), None)
    assert 4 not in choose_rows(KEYS, [trained])[0]


def test_all_rows_are_refused_with_the_count_when_some_were_trained_on() -> None:
    with pytest.raises(ReplayError, match=r"asks for 5 rows, and training saw 2 of them by planner_model 2"):
        choose_rows(KEYS, [CANDIDATE, BASELINE], choice="all")


def test_held_out_choice_returns_the_replay_split() -> None:
    assert choose_rows(KEYS, [CANDIDATE, BASELINE], choice="held-out")[0] == [2, 3]


def test_held_out_rows_are_refused_when_a_model_saw_them() -> None:
    leaked = TrainedOn("planner_model 1", frozenset({"e2"}), frozenset({"new"}), DAY)
    with pytest.raises(ReplayError, match="training saw 1 of them by planner_model 1"):
        choose_rows(KEYS, [CANDIDATE, leaked], choice="held-out")


def test_the_error_names_the_models_that_saw_the_rows_when_none_is_unseen() -> None:
    with pytest.raises(ReplayError, match=r"None of the dataset's 2 rows is unseen.*2 by planner_model 2"):
        choose_rows(KEYS[:2], [CANDIDATE, BASELINE])
    with pytest.raises(ReplayError, match="held out for replay"):
        choose_rows(KEYS[:2], [BASELINE], choice="held-out")


def test_sample_is_repeatable_by_seed_and_keeps_the_order() -> None:
    keys = [key(number, f"h{number}", number % 7) for number in range(200)]
    first, selection = choose_rows(keys, [BASELINE], sample_size=50)
    assert first == sorted(first) and len(set(first)) == 50
    assert (selection.eligible, selection.scored, selection.seed) == (200, 50, 42)
    assert choose_rows(keys, [BASELINE], sample_size=50)[0] == first
    assert choose_rows(keys, [BASELINE], sample_size=50, seed=43)[0] != first
    assert choose_rows(keys, [BASELINE], sample_size=200)[0] == choose_rows(keys, [BASELINE], sample_size=None)[0]


def test_sample_size_of_zero_is_refused() -> None:
    with pytest.raises(ReplayError, match="at least 1"):
        choose_rows(KEYS, [BASELINE], sample_size=0)


households = st.sampled_from(["a", "b", "c", "d"])
rows = st.lists(st.tuples(households, st.integers(0, 20)), min_size=1, max_size=40)


@settings(deadline=None)  # a busy machine is no failure
@given(rows, st.sets(st.integers(0, 39)), st.sets(st.integers(0, 39)), st.integers(1, 40))
def test_chosen_rows_were_never_trained_on(
    drawn: list[tuple[str, int]], first: set[int], second: set[int], size: int
) -> None:
    keys = [key(number, household, day) for number, (household, day) in enumerate(drawn)]

    def trained(name: str, numbers: set[int]) -> TrainedOn:
        taught = [keys[number] for number in numbers if number < len(keys)]
        until = max((row.timestamp for row in taught), default=None)
        return TrainedOn(
            name, frozenset(row.event_id for row in taught), frozenset(row.household for row in taught), until
        )

    models = [trained("one", first), trained("two", second)]
    try:
        positions, selection = choose_rows(keys, models, sample_size=size)
    except ReplayError:
        return
    assert selection.scored == len(positions) <= size
    for at in positions:
        for model in models:
            assert keys[at].event_id not in model.event_ids
            if keys[at].household in model.households:
                assert model.until is not None and keys[at].timestamp > model.until


def test_dataset_is_read_with_keys_and_rows(tmp_path: Path) -> None:
    rows = sample_rows(households=4, plans=2, held_out=2)
    dataset = read_rows(dataset_folder(tmp_path / "planner" / "2025-01-26", rows))
    assert (dataset.name, dataset.version) == ("planner", "2025-01-26")
    keys = dataset.keys()
    assert [row_key.event_id for row_key in keys] == [row["metadata"]["event_id"] for row in rows]
    assert [row_key.split for row_key in keys[:4]] == ["replay", "replay", "train", "train"]
    assert keys[0].timestamp == rows[0]["metadata"]["timestamp"]
    (taken,) = dataset.take([3])
    assert taken["input"]["household"]["id"] == "h03"


def test_a_dataset_that_changed_is_refused(tmp_path: Path) -> None:
    folder = dataset_folder(tmp_path / "planner" / "2025-01-26", sample_rows(households=4, plans=1))
    with pytest.raises(ReplayError, match="is not the one that was recorded"):
        read_rows(folder, digest="f" * 64)


def test_a_duplicate_event_is_refused(tmp_path: Path) -> None:
    rows = sample_rows(households=4, plans=1)
    folder = dataset_folder(tmp_path / "planner" / "2025-01-26", [*rows, rows[0]])
    with pytest.raises(ReplayError, match="1 events twice"):
        read_rows(folder).keys()


def test_missing_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="There is no dataset at"):
        read_rows(str(tmp_path / "nowhere"))
