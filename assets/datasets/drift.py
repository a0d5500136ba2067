"""Did a distribution shift? The population stability index, with the size that chance alone would give.

PSI = Σ (p − q) · ln(p / q) over categories. The usual reading is Siddiqi's (Credit Risk Scorecards, 2006): above 0.25 is a shift.
Two samples of the same distribution have a PSI near χ²(B − 1) · (1/n + 1/m) (Yurdakul and Naranjo, Journal of Risk Model
Validation 14(4), 2020), so that small samples over many categories pass 0.25 by chance: a shift must exceed both.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl

SHIFT = 0.25
MOST_CATEGORIES = 20
"""The most frequent values before; all others form one more category."""

CHANCE = 2.326
"""Standard deviations above the mean that chance passes once in a hundred comparisons."""


@dataclass(frozen=True)
class Drift:
    """One feature's index, and the index that chance would pass once in a hundred times."""

    feature: str
    psi: float
    noise: float

    @property
    def drifted(self) -> bool:
        """Beyond the usual limit and beyond chance."""
        return self.psi > max(SHIFT, self.noise)


def drift(feature: str, before: pl.Series, now: pl.Series, samples: tuple[int, int] | None = None) -> Drift:
    """Compare two lists of categories. `samples`: the number of independent draws in each, if values come in groups."""
    ranked = before.value_counts(name="count").sort("count", before.name, descending=[True, False])
    kept = ranked[before.name].head(MOST_CATEGORIES).to_list()
    first, second = _shares(before, kept), _shares(now, kept)
    psi = float(np.sum((second - first) * np.log(second / first)))
    degrees = len(first) - 1
    drawn, drawn_now = samples or (before.len(), now.len())
    noise = (degrees + CHANCE * np.sqrt(2 * degrees)) * (1 / max(drawn, 1) + 1 / max(drawn_now, 1))
    return Drift(feature, psi, float(noise))


def _shares(values: pl.Series, kept: list[str]) -> np.ndarray:
    """Shares of the kept categories and of all others. Half an observation is added to each, since log 0 is undefined."""
    counts = dict(values.value_counts(name="count").rows())
    known = np.array([counts.get(name, 0) for name in kept], dtype=float)
    smoothed = np.append(known, values.len() - known.sum()) + 0.5
    return np.asarray(smoothed / smoothed.sum())
