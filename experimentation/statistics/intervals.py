"""Means and paired differences with intervals, for rows in clusters (several plans of a household).

Rows of the same household resemble each other, so they carry less information than independent rows. The mean over rows is a ratio of
two sums over households, Σ S_g ÷ Σ n_g, and its variance follows from the delta method:

    Var(ȳ) = G/(G−1) · Σ_g (S_g − ȳ·n_g)² ÷ N²

with G households, n_g rows and sum S_g in household g, and N rows in all. It is the ratio estimator of Cochran, *Sampling Techniques*
(3rd ed., 1977, §6.3 and §9A), the form that Deng, Knoblich and Lu, "Applying the Delta Method in Metric Analytics" (KDD 2018) give for
online experiments, and the cluster-robust CR1 variance of a regression on a constant (Liang and Zeger, 1986). The interval uses
Student's t with G − 1 degrees of freedom (Cameron and Miller, 2015). With one row per unit it is the ordinary t interval. Sums are exact
(`math.fsum`), so the order of rows does not change the result.
"""

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

from scipy.special import stdtrit

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over `rows` rows of `units` units, with a two-sided interval at `level`.

    `mean` is None if there are no rows. `low` and `high` are None for fewer than two units: one household says nothing about others.
    """

    mean: float | None
    low: float | None
    high: float | None
    rows: int
    units: int
    level: float = LEVEL


def clustered_mean(values: Sequence[float], units: Sequence[Hashable], level: float = LEVEL) -> Estimate:
    """The mean of `values` with an interval; `units` has the unit of each value.

    Raises ValueError for different lengths, a level outside (0, 1), or a value that is not a finite number.
    """
    if len(values) != len(units):
        raise ValueError(f"Each value needs a unit: got {len(values)} values and {len(units)} units.")
    if not 0 < level < 1:
        raise ValueError(f"The level of an interval must be between 0 and 1, not {level}.")
    if not all(math.isfinite(value) for value in values):
        raise ValueError("A mean needs finite numbers: count failed rows instead of passing them as NaN.")
    if not values:
        return Estimate(None, None, None, 0, 0, level)
    by_unit: defaultdict[Hashable, list[float]] = defaultdict(list)
    for value, unit in zip(values, units, strict=True):
        by_unit[unit].append(value)
    rows, groups = len(values), len(by_unit)
    mean = math.fsum(values) / rows
    if groups < 2:
        return Estimate(mean, None, None, rows, groups, level)
    squares = math.fsum(math.fsum(value - mean for value in unit_values) ** 2 for unit_values in by_unit.values())
    error = math.sqrt(groups / (groups - 1) * squares) / rows
    half_width = float(stdtrit(groups - 1, 0.5 + level / 2)) * error
    return Estimate(mean, mean - half_width, mean + half_width, rows, groups, level)


def paired_difference(
    left: Sequence[float], right: Sequence[float], units: Sequence[Hashable], level: float = LEVEL
) -> Estimate:
    """The mean of `left` − `right`, row by row, with an interval. Raises ValueError as `clustered_mean` does."""
    if len(left) != len(right):
        raise ValueError(f"Each pair needs two values: got {len(left)} left and {len(right)} right values.")
    return clustered_mean([a - b for a, b in zip(left, right, strict=True)], units, level)


def mean_where_known(values: Iterable[float | None], units: Iterable[Hashable], level: float = LEVEL) -> Estimate:
    """`clustered_mean` over the rows that have a value."""
    known = [(value, unit) for value, unit in zip(values, units, strict=True) if value is not None]
    return clustered_mean([value for value, _ in known], [unit for _, unit in known], level)
