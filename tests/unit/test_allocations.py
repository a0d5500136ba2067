"""Shares are exact: read, split, cut and grown without a binary float."""

from decimal import Decimal
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experimentation.assignments.bucketing import BUCKETS, VariantWalk
from experimentation.runs.allocations import STEP, WHOLE, candidate_split, ramped, share_of, shrunk


def tenths(*numbers: int) -> list[Decimal]:
    return [Decimal(number) / 10 for number in numbers]


def test_every_share_of_four_decimals_is_read_exactly() -> None:
    # As binary floats 573 of them would be off by one bucket.
    assert [int(share_of(f"{bucket / 10000:.4f}") * 10000) for bucket in range(10001)] == list(range(10001))
    assert int(0.0029 * 10000) == 28
    assert int(share_of("0.0029") * 10000) == 29
    assert share_of("0.29") + share_of("0.58") + share_of("0.13") == WHOLE != 0.29 + 0.58 + 0.13


@pytest.mark.parametrize("text", ["-0.1", "1.0001", "0.12345", "nan", "inf", "half", ""])
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a number|is not between 0 and 1|more than 4 decimals"):
        share_of(text)


@pytest.mark.parametrize(("share", "remainder"), [("0.1", "0.8"), ("0.0333", "0.9334"), ("0.0001", "0.9998")])
def test_a_candidate_has_two_equal_arms_and_the_rest_is_not_enrolled(share: str, remainder: str) -> None:
    split = candidate_split(Decimal(share))
    assert split == (Decimal(share), Decimal(remainder), Decimal(share))
    assert sum(split) == WHOLE


@pytest.mark.parametrize("share", ["0", "0.1001", "0.5", "-0.1", "0.00005"])
def test_a_candidate_gets_at_most_a_tenth(share: str) -> None:
    with pytest.raises(ValueError, match=r"at most 0\.10|between 0 and 1|4 decimals"):
        candidate_split(Decimal(share))


@given(
    cuts=st.lists(st.integers(0, 10000), max_size=6),
    room=st.integers(0, 10000),
)
def test_shrunk_shares_sum_exactly_and_stay_in_proportion(cuts: list[int], room: int) -> None:
    edges = [0, *sorted(cuts), 10000]
    shares = [STEP * (high - low) for low, high in pairwise(edges)]
    left = STEP * room
    cut = shrunk(shares, left)
    assert sum(cut) == WHOLE - left
    for before, after in zip(shares, cut, strict=True):
        assert abs(after - before * (WHOLE - left)) < STEP
        assert before > 0 or after == 0


def test_shares_that_do_not_sum_to_one_are_not_shrunk() -> None:
    with pytest.raises(ValueError, match=r"0\.5 \+ 0\.4 is not 1"):
        shrunk([Decimal("0.5"), Decimal("0.4")], Decimal("0.1"))


@given(
    arms=st.lists(st.integers(1, 5000), min_size=2, max_size=6, unique=True).map(sorted),
    bucket=st.integers(0, BUCKETS - 1),
)
def test_a_ramp_moves_no_enrolled_unit(arms: list[int], bucket: int) -> None:
    """Any sequence of ramps of control, remainder, treatment, by the walk that enrols."""
    shares: tuple[Decimal, ...] = candidate_split(STEP)
    assert arms[0] > 1 or ramped(shares, STEP * arms[1], 1), "the smallest arm there is can grow"
    enrolled: int | None = None
    for arm in [arm for arm in arms if arm > 1]:
        shares = ramped(shares, STEP * arm, 1)
        assert shares == (STEP * arm, WHOLE - 2 * STEP * arm, STEP * arm)
        variant = VariantWalk(shares).choose(bucket)
        assert enrolled in (None, variant)
        enrolled = variant if variant != 1 else None


def test_a_withdrawn_arm_keeps_its_share() -> None:
    assert ramped(tenths(1, 8, 1), Decimal("0.3"), 1, kept={2}) == tuple(tenths(3, 6, 1))


@pytest.mark.parametrize(
    ("shares", "to", "remainder", "why"),
    [
        ((2, 7, 1), "0.1", 1, "arms only grow"),
        ((2, 6, 2), "0.2", 1, "that is what the arms have"),
        ((2, 6, 2), "0.6", 1, r"the arms would have 1\.2000 of the units together"),
        ((2, 6, 2), "1.2", 1, "not between 0 and 1"),
        ((1, 1, 8), "0.2", 2, "one arm before the remainder and one after it"),
        ((8, 1, 1), "0.2", 0, "one arm before the remainder and one after it"),
        ((1, 1, 7, 1), "0.2", 2, "one arm before the remainder and one after it"),
    ],
)
def test_a_ramp_that_would_move_units_or_shrink_an_arm_is_refused(
    shares: tuple[int, ...], to: str, remainder: int, why: str
) -> None:
    with pytest.raises(ValueError, match=why):
        ramped(tenths(*shares), Decimal(to), remainder)
