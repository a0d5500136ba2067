"""Intervals compared with published and independent results, and their coverage when rows are clustered."""

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experimentation.statistics.intervals import Estimate, clustered_mean, mean_where_known, paired_difference

# Student (1908): extra hours of sleep of ten patients on two drugs; R's data set `sleep`.
FIRST = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
SECOND = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]


def test_one_row_a_unit_is_students_published_paired_interval() -> None:
    difference = paired_difference(FIRST, SECOND, range(10))
    # As printed by R: t.test(first, second, paired = TRUE).
    assert difference.mean == pytest.approx(-1.58, abs=1e-12)
    assert (difference.low, difference.high) == pytest.approx((-2.4598858, -0.7001142), abs=5e-8)
    assert (difference.rows, difference.units) == (10, 10)


@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_one_row_a_unit_agrees_with_scipy(level: float) -> None:
    from scipy import stats

    values = np.random.default_rng(1).normal(size=37).tolist()
    theirs = stats.ttest_1samp(values, 0).confidence_interval(level)
    ours = clustered_mean(values, range(37), level)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), rel=1e-12)


def test_equal_units_agree_with_scipy_over_the_units_means() -> None:
    from scipy import stats

    table = np.random.default_rng(2).normal(size=(12, 5))
    theirs = stats.ttest_1samp(table.mean(axis=1), 0).confidence_interval(0.95)
    ours = clustered_mean(table.ravel().tolist(), np.repeat(range(12), 5).tolist())
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), rel=1e-9)


def test_unequal_units_agree_with_the_sandwich_formula_of_a_regression_on_a_constant() -> None:
    from scipy import stats

    rng = np.random.default_rng(3)
    sizes = [1, 2, 7, 3, 3, 10]
    units = np.repeat(range(len(sizes)), sizes)
    values = rng.normal(size=len(units)) + rng.normal(size=len(sizes))[units]
    design = np.ones((len(values), 1))
    bread = np.linalg.inv(design.T @ design)
    residuals = values - values.mean()
    meat = sum(np.outer(s := design[units == g].T @ residuals[units == g], s) for g in range(len(sizes)))
    error = math.sqrt((bread @ meat @ bread)[0, 0] * len(sizes) / (len(sizes) - 1))
    ours = clustered_mean(values.tolist(), units.tolist())
    assert ours.low is not None and ours.mean is not None
    assert ours.mean - ours.low == pytest.approx(stats.t.ppf(0.975, len(sizes) - 1) * error, rel=1e-9)


def test_interval_covers_the_truth_at_its_nominal_rate_when_rows_are_clustered() -> None:
    rng = np.random.default_rng(4)
    rounds, units = 1500, 40
    covered = naive = 0
    for _ in range(rounds):
        sizes = rng.integers(1, 9, size=units)
        owners = np.repeat(range(units), sizes)
        values = 0.25 + 0.1 * rng.normal(size=units)[owners] + 0.1 * rng.normal(size=len(owners))
        ours = clustered_mean(values.tolist(), owners.tolist())
        assert ours.low is not None and ours.high is not None
        covered += ours.low <= 0.25 <= ours.high
        reach = 1.96 * values.std(ddof=1) / math.sqrt(len(values))
        naive += abs(values.mean() - 0.25) <= reach
    # 0.95 ± three standard errors of a share over 1500 rounds, and a little for what is only nearly normal.
    assert 0.925 <= covered / rounds <= 0.97
    assert naive / rounds < 0.85, "a control: rows taken as independent cover too seldom, so clustering is what helps"


def test_mean_needs_a_row_and_interval_needs_two_units() -> None:
    assert clustered_mean([], []).mean is None
    alone = clustered_mean([0.2, 0.4], ["h", "h"])
    assert alone.mean == pytest.approx(0.3)
    assert alone.low is None and alone.high is None


def test_rows_without_a_value_are_left_out_of_the_mean() -> None:
    assert mean_where_known([1.0, None, 0.0], ["a", "b", "c"]).mean == 0.5
    assert mean_where_known([1.0, None, 0.0], ["a", "b", "c"]).rows == 2


@pytest.mark.parametrize(
    ("values", "units", "level", "word"),
    [([1.0], [], 0.95, "units"), ([1.0], ["a"], 1.0, "level"), ([math.nan], ["a"], 0.95, "finite")],
)
def test_wrong_input_is_refused(values: list[float], units: list[str], level: float, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        clustered_mean(values, units, level)


rows = st.lists(st.tuples(st.floats(-5, 5), st.integers(0, 4)), min_size=2, max_size=30)


def mean_of(pairs: list[tuple[float, int]]) -> Estimate:
    return clustered_mean([value for value, _ in pairs], [unit for _, unit in pairs])


@settings(deadline=None)  # a busy machine is no failure
@given(rows, st.integers(0, 2**32))
def test_result_is_identical_for_any_order_of_rows(pairs: list[tuple[float, int]], seed: int) -> None:
    mixed = list(pairs)
    random.Random(seed).shuffle(mixed)
    assert mean_of(pairs) == mean_of(mixed)


@settings(deadline=None)  # a busy machine is no failure
@given(rows, st.floats(-3, 3))
def test_shifting_all_values_shifts_mean_and_interval(pairs: list[tuple[float, int]], shift: float) -> None:
    before = mean_of(pairs)
    after = mean_of([(value + shift, unit) for value, unit in pairs])
    assert before.mean is not None and after.mean == pytest.approx(before.mean + shift, abs=1e-9)
    if before.low is not None:
        assert after.low == pytest.approx(before.low + shift, abs=1e-6)
