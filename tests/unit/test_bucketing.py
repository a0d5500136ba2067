"""Bucketing, bit for bit: against digests from other tools, a second implementation, and the expected distribution."""

import hashlib
from decimal import Decimal
from fractions import Fraction
from functools import cache
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experimentation.assignments.bucketing import BUCKETS, VariantWalk, bucket_of

RUN = UUID("3F2B8C1E-0D4A-4C58-9F6E-2A1B7C9D0E4F")

# First 16 hexadecimal digits of `printf '%s' "<run>:<unit>" | sha256sum`.
DIGESTS = {
    "unit-1": "c1febda445f53f47",
    "user 2": "2b078a3027013d94",
    "ünï-3": "dac37d6406ff07ac",
    "household-42": "8b1f33176403e9e3",
}

SPLITS = {
    "even": ["0.5", "0.5"],
    "four": ["0.4", "0.2", "0.2", "0.2"],
    "canary": ["0.9", "0.1"],
    "ramp 10": ["0.10", "0.80", "0.10"],
    "ramp 50": ["0.5000", "0.0000", "0.5000"],
    "awkward": ["0.29", "0.57", "0.14"],
}


def decimals(*allocations: str) -> list[Decimal]:
    return [Decimal(allocation) for allocation in allocations]


def reference_walk(allocations: list[Decimal], bucket: int) -> int:
    """A second implementation of the specification, with fractions that are summed for each variant."""
    for index in range(len(allocations)):
        if sum((Fraction(a) * 10000 for a in allocations[: index + 1]), Fraction(0)) > bucket:
            return index
    return max(index for index, allocation in enumerate(allocations) if allocation > 0)


@pytest.mark.parametrize(("unit", "digest"), DIGESTS.items())
def test_bucket_matches_sha256sum(unit: str, digest: str) -> None:
    assert bucket_of(RUN, unit) == int(digest, 16) % 10000


@given(st.uuids(), st.text(min_size=1, max_size=255))
def test_bucket_is_the_first_eight_bytes_of_the_digest(run: UUID, unit: str) -> None:
    key = f"{str(run).lower()}:{unit}".encode()
    assert bucket_of(run, unit) == int(hashlib.sha256(key).hexdigest()[:16], 16) % 10000


@st.composite
def allocations(draw: st.DrawFn) -> list[Decimal]:
    """Shares with four decimals that sum to at most 1. Some are zero."""
    cuts = sorted(draw(st.lists(st.integers(0, BUCKETS), min_size=1, max_size=6)))
    return [Decimal(end - start) / BUCKETS for start, end in zip([0, *cuts], [*cuts, cuts[-1]], strict=True)]


@given(allocations().filter(any), st.integers(0, BUCKETS - 1))
def test_walk_matches_the_specification(shares: list[Decimal], bucket: int) -> None:
    assert VariantWalk(shares).choose(bucket) == reference_walk(shares, bucket)


def test_walk_is_exact_where_floats_are_not() -> None:
    # 0.29 × 10000 is 2900 exactly; as binary floats 0.29 + 0.57 is 0.8599999999999999.
    walk = VariantWalk(decimals("0.29", "0.57", "0.14"))
    assert [walk.choose(bucket) for bucket in (0, 2899, 2900, 8599, 8600, 9999)] == [0, 0, 1, 1, 2, 2]


def test_fallback_is_the_last_variant_with_an_allocation() -> None:
    assert VariantWalk(decimals("0.3", "0.3", "0")).choose(9999) == 1
    with pytest.raises(ValueError, match="None of the 2 variants"):
        VariantWalk(decimals("0", "0.0000"))


@given(st.lists(st.integers(0, 5000), min_size=2, max_size=6).map(sorted), st.integers(0, BUCKETS - 1))
def test_ramping_with_a_remainder_moves_no_enrolled_unit(arms: list[int], bucket: int) -> None:
    """Any sequence of growing arms: control, remainder, treatment."""
    seen = None
    for arm in arms:
        if arm == 0:
            continue
        share = Decimal(arm) / BUCKETS
        variant = VariantWalk([share, 1 - 2 * share, share]).choose(bucket)
        assert seen in (None, variant)
        seen = variant if variant != 1 else None


@given(
    st.lists(st.tuples(st.integers(0, BUCKETS), st.integers(0, BUCKETS)), min_size=2, max_size=8),
    st.integers(0, BUCKETS - 1),
)
def test_arms_that_grow_independently_move_no_enrolled_unit(steps: list[tuple[int, int]], bucket: int) -> None:
    """Control takes buckets from below and treatment from above. The remainder is the rest, which may be empty."""
    control = treatment = 0
    enrolled: int | None = None
    for more_control, more_treatment in steps:
        control = min(BUCKETS - treatment, max(control, more_control))
        treatment = min(BUCKETS - control, max(treatment, more_treatment))
        shares = [Decimal(part) / BUCKETS for part in (control, BUCKETS - control - treatment, treatment)]
        variant = VariantWalk(shares).choose(bucket)
        assert enrolled in (None, variant)
        enrolled = None if variant == 1 else variant


@cache
def buckets(units: int) -> list[int]:
    return [bucket_of(RUN, f"unit-{unit}") for unit in range(units)]


@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS.keys())
def test_units_are_distributed_as_allocated(split: list[str]) -> None:
    """χ² over 100,000 fixed units. A correct implementation exceeds the bound once in 10,000 times by chance."""
    units = 100_000
    shares = decimals(*split)
    walk, counts = VariantWalk(shares), [0] * len(shares)
    for bucket in buckets(units):
        counts[walk.choose(bucket)] += 1
    expected = [float(share) * units for share in shares]
    chi2 = sum((count - want) ** 2 / want for count, want in zip(counts, expected, strict=True) if want)
    assert chi2 < {1: 15.14, 2: 18.42, 3: 21.11}[sum(want > 0 for want in expected) - 1]
    assert all(count == 0 for count, want in zip(counts, expected, strict=True) if not want)
