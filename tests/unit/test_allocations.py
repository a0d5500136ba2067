"""Shares are exact: parsed, split, shrunk and ramped without binary floats."""

from decimal import Decimal
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experimentation.assignments.bucketing import BUCKETS, VariantWalk
from experimentation.runs.allocations import STEP, WHOLE, candidate_split, parse_share, ramp_shares, shrink_shares


def tenths(*numbers: int) -> list[Decimal]:
    return [Decimal(number) / 10 for number in numbers]


def test_shares_of_four_decimals_are_parsed_exactly() -> None:
    # As binary floats, 573 of them would be off by one bucket.
    assert [int(parse_share(f"{bucket / 10000:.4f}") * 10000) for bucket in range(10001)] == list(range(10001))
    assert int(0.0029 * 10000) == 28
    assert int(parse_share("0.0029") * 10000) == 29
    assert parse_share("0.29") + parse_share("0.58") + parse_share("0.13") == WHOLE != 0.29 + 0.58 + 0.13


@pytest.mark.parametrize("text", ["-0.1", "1.0001", "0.12345", "nan", "inf", "half", ""])
def test_text_is_rejected_when_it_is_not_a_share(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a number|is not between 0 and 1|more than 4 decimals"):
        parse_share(text)


@pytest.mark.parametrize(("share", "remainder"), [("0.1", "0.8"), ("0.0333", "0.9334"), ("0.0001", "0.9998")])
def test_candidate_split_has_two_equal_arms_and_a_remainder(share: str, remainder: str) -> None:
    split = candidate_split(Decimal(share))
    assert split == (Decimal(share), Decimal(remainder), Decimal(share))
    assert sum(split) == WHOLE


@pytest.mark.parametrize("share", ["0", "0.1001", "0.5", "-0.1", "0.00005"])
def test_candidate_split_is_rejected_above_a_tenth(share: str) -> None:
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
    cut = shrink_shares(shares, left)
    assert sum(cut) == WHOLE - left
    for before, after in zip(shares, cut, strict=True):
        assert abs(after - before * (WHOLE - left)) < STEP
        assert before > 0 or after == 0


def test_shrinking_is_rejected_when_shares_do_not_sum_to_one() -> None:
    with pytest.raises(ValueError, match=r"0\.5 \+ 0\.4 is not 1"):
        shrink_shares([Decimal("0.5"), Decimal("0.4")], Decimal("0.1"))


@given(
    arms=st.lists(st.integers(1, 5000), min_size=2, max_size=6, unique=True).map(sorted),
    bucket=st.integers(0, BUCKETS - 1),
)
def test_ramping_never_moves_an_enrolled_unit(arms: list[int], bucket: int) -> None:
    """For any sequence of ramps of control, remainder and treatment."""
    shares: tuple[Decimal, ...] = candidate_split(STEP)
    assert arms[0] > 1 or ramp_shares(shares, STEP * arms[1], 1), "the smallest arm can grow"
    enrolled: int | None = None
    for arm in [arm for arm in arms if arm > 1]:
        shares = ramp_shares(shares, STEP * arm, 1)
        assert shares == (STEP * arm, WHOLE - 2 * STEP * arm, STEP * arm)
        variant = VariantWalk(shares).choose(bucket)
        assert enrolled in (None, variant)
        enrolled = variant if variant != 1 else None


def test_withdrawn_arm_keeps_its_share_when_others_are_ramped() -> None:
    assert ramp_shares(tenths(1, 8, 1), Decimal("0.3"), 1, kept={2}) == tuple(tenths(3, 6, 1))


@pytest.mark.parametrize(
    ("shares", "to", "remainder", "message"),
    [
        ((2, 7, 1), "0.1", 1, "arms only grow"),
        ((2, 6, 2), "0.2", 1, "the arms have that share already"),
        ((2, 6, 2), "0.6", 1, r"the arms together would have 1\.2000 of the units"),
        ((2, 6, 2), "1.2", 1, "not between 0 and 1"),
        ((1, 1, 8), "0.2", 2, "one arm before the remainder and one after it"),
        ((8, 1, 1), "0.2", 0, "one arm before the remainder and one after it"),
        ((1, 1, 7, 1), "0.2", 2, "one arm before the remainder and one after it"),
    ],
)
def test_ramping_is_rejected_when_units_would_move_or_an_arm_shrink(
    shares: tuple[int, ...], to: str, remainder: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ramp_shares(tenths(*shares), Decimal(to), remainder)
