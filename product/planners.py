"""Planners that any product can have, because they need nothing but the protocol: random and popularity.

Both choose among the product's legal items alone. The popularity planner ignores `rng`: the same input gives the same plan.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from product.protocol import Product, RowInput

Rng = np.random.Generator


class RandomPlanner:
    """Legal items, each drawn uniformly."""

    def plan(self, product: Product, row_input: RowInput, rng: Rng) -> list[str]:
        """As many items as the plan needs, or fewer if no more are legal."""
        chosen: list[str] = []
        while len(chosen) < product.slots(row_input) and (legal := product.legal_items(row_input, chosen)):
            chosen.append(legal[int(rng.integers(len(legal)))])
        return chosen


@dataclass(frozen=True)
class PopularityPlanner:
    """The legal items most often accepted. `counts` holds each item's acceptances, discounted by age if it was fitted with a half-life."""

    counts: Mapping[str, float]

    @classmethod
    def fit(
        cls, product: Product, accepted: Iterable[tuple[float, Sequence[str]]], *, half_life_days: float | None = None
    ) -> "PopularityPlanner":
        """Counts over accepted plans, each given as (age in days, items); unknown items are left out.

        With a half-life, a plan that old counts half. Raises ValueError for a half-life of 0 or less.
        """
        if half_life_days is not None and half_life_days <= 0:
            raise ValueError(f"The half-life must be more than 0 days, not {half_life_days}.")
        counts = dict.fromkeys(product.items(), 0.0)
        for age_days, items in accepted:
            weight = 1.0 if half_life_days is None else 0.5 ** (age_days / half_life_days)
            for item in items:
                if item in counts:
                    counts[item] += weight
        return cls(counts)

    def log_shares(self, product: Product, *, smoothing: float = 1.0) -> dict[str, float]:
        """Natural logarithm of each item's share of acceptances, with `smoothing` added to every count."""
        total = sum(self.counts.get(item, 0.0) + smoothing for item in product.items())
        return {item: math.log((self.counts.get(item, 0.0) + smoothing) / total) for item in product.items()}

    def plan(self, product: Product, row_input: RowInput, rng: Rng | None = None) -> list[str]:
        """The most popular legal items; equal counts in the order of the product's items."""
        chosen: list[str] = []
        while len(chosen) < product.slots(row_input) and (legal := product.legal_items(row_input, chosen)):
            chosen.append(max(legal, key=lambda item: self.counts.get(item, 0.0)))
        return chosen
