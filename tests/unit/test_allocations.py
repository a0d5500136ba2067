"""Shares are exact: read, split and cut without a binary float."""

from decimal import Decimal
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experimentation.allocations import STEP, WHOLE, candidate_split, share_of, shrunk


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
