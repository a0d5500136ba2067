"""Planners scored on the same rows as candidate and baseline, so that a score has a scale.

The last two are controls. What the untuned base reaches with the same prior was not learnt in fine-tuning. And a candidate that reads
its prompt must get worse when it is shown another household's prompt.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from product.planners import PopularityPlanner, RandomPlanner
from product.protocol import HasOffsets, HasRules, Product, Row, RowInput
from replay.answers import MODEL_ERRORS, Answer, Predicts, Progress, answers, inputs_of
from training.dataset import unit_of
from training.examples import PROMPT_FROM

SEED = 42
HALF_LIFE_DAYS = 365.0
"""Half-life of recency-weighted popularity, the strongest simple planner on a diary of several years."""

UNTUNED_PARAMS: Mapping[str, Any] = {"adapter": False}
"""Asks a packaged planner model for its base with the same prior, without what was fine-tuned."""


class ReferencePlanner(Protocol):
    """Anything that answers rows with plans."""

    @property
    def name(self) -> str:
        """Its name in tables."""
        ...

    @property
    def description(self) -> str:
        """What it is, in one sentence."""
        ...

    def answers(self, rows: Sequence[Row], *, batch_size: int, on_progress: Progress | None = None) -> list[Answer]:
        """One answer a row, in order; it never looks at `target`."""
        ...


@dataclass(frozen=True)
class RulePlanner:
    """A planner without a model: `choose` gives a row's items from its input and a generator of the row's own."""

    name: str
    description: str
    product: Product = field(repr=False)
    choose: Callable[[RowInput, np.random.Generator], list[str]] = field(repr=False)

    def answers(self, rows: Sequence[Row], *, batch_size: int, on_progress: Progress | None = None) -> list[Answer]:
        """One plan a row. Random choices depend on the row's event id and the seed, not on its position."""
        plans = [self._answer(row) for row in rows]
        if on_progress is not None:
            on_progress(self.name, len(rows), len(rows))
        return plans

    def _answer(self, row: Row) -> Answer:
        try:
            return Answer(self.product.plan(row["input"], self.choose(row["input"], _own_generator(row))), 0)
        except MODEL_ERRORS as error:
            return Answer({"meals": []}, 0, f"{type(error).__name__}: {error}")


@dataclass(frozen=True)
class ModelPlanner:
    """A model asked differently: with parameters, or with inputs changed by `prepare`."""

    name: str
    description: str
    model: Predicts = field(repr=False)
    params: Mapping[str, Any] = field(default_factory=dict)
    prepare: Callable[[Sequence[Row]], list[RowInput]] = inputs_of

    def answers(self, rows: Sequence[Row], *, batch_size: int, on_progress: Progress | None = None) -> list[Answer]:
        """The model's plans."""
        return answers(
            self.model,
            self.prepare(rows),
            name=self.name,
            batch_size=batch_size,
            params=dict(self.params),
            on_progress=on_progress,
        )


def reference_planners(
    product: Product, taught: Sequence[Row], candidate: Predicts, *, fine_tuned: bool, borrows: bool, households: int
) -> tuple[list[ReferencePlanner], list[str]]:
    """The references that apply, and a sentence for each that does not.

    `taught` are the rows that popularity is counted on: those that the candidate was trained on. `fine_tuned` says whether the candidate
    is a fine-tuned language model, which has an untuned base; `borrows` whether it can be shown another row's prompt; `households` how
    many there are among the replayed rows.
    """
    planners: list[ReferencePlanner] = [
        RulePlanner(
            "random",
            "Legal items, drawn uniformly.",
            product,
            lambda row_input, rng: RandomPlanner().plan(product, row_input, rng),
        )
    ]
    left_out = []
    if taught:
        planners += _popularity(product, taught)
    else:
        left_out.append("popularity: there are no rows other than the replayed ones to count on.")
    if isinstance(product, HasRules):
        planners.append(
            RulePlanner(
                "heuristic",
                "Rules over catalogue and row, no history of others.",
                product,
                lambda row_input, rng: product.rule_items(row_input),
            )
        )
    if fine_tuned:
        planners.append(
            ModelPlanner(
                "untuned base", "The candidate's own base and prior, without fine-tuning.", candidate, UNTUNED_PARAMS
            )
        )
    if borrows and households > 1:
        planners.append(
            ModelPlanner(
                "shuffled prompts",
                "The candidate, shown the prompt of another household.",
                candidate,
                prepare=shuffled_inputs,
            )
        )
    if not fine_tuned:
        left_out.append("untuned base and shuffled prompts: the candidate is not a fine-tuned language model.")
    elif not borrows:
        left_out.append("shuffled prompts: the candidate's package cannot be shown another row's prompt.")
    elif households < 2:
        left_out.append("shuffled prompts: all rows are of one household, so there is no other prompt.")
    return planners, left_out


def shuffled_inputs(rows: Sequence[Row], seed: int = SEED) -> list[RowInput]:
    """Each row's input with the prompt of another household's row; what may be eaten stays its own.

    Which row lends its prompt depends only on the rows and the seed. Raises ValueError if there is only one household.
    """
    units = [unit_of(row) for row in rows]
    if len(set(units)) < 2:
        raise ValueError("Shuffled prompts need rows of at least two households.")
    order = np.random.default_rng(seed).permutation(len(rows)).tolist()
    mixed: list[RowInput] = [{}] * len(rows)
    for place, at in enumerate(order):
        following = (order[(place + step) % len(rows)] for step in range(1, len(rows)))
        lender = next(other for other in following if units[other] != units[at])
        mixed[at] = {**rows[at]["input"], PROMPT_FROM: rows[lender]["input"]}
    return mixed


def _popularity(product: Product, taught: Sequence[Row]) -> Iterable[ReferencePlanner]:
    newest = max(row["metadata"]["timestamp"] for row in taught)
    aged = [
        (
            (newest - row["metadata"]["timestamp"]).total_seconds() / 86_400,
            product.chosen(row["target"]["accepted_plan"]),
        )
        for row in taught
    ]
    plain = PopularityPlanner.fit(product, aged)
    yield RulePlanner(
        "popularity",
        "Most often accepted in the training rows.",
        product,
        lambda row_input, rng: plain.plan(product, row_input, rng),
    )
    if isinstance(product, HasOffsets):
        yield _with_offsets(product, product, plain)
    if max(age for age, _ in aged) > HALF_LIFE_DAYS:
        recent = PopularityPlanner.fit(product, aged, half_life_days=HALF_LIFE_DAYS)
        yield RulePlanner(
            "recent popularity",
            "The same, where a plan counts half after a year.",
            product,
            lambda row_input, rng: recent.plan(product, row_input, rng),
        )


def _with_offsets(product: Product, offsets: HasOffsets, popularity: PopularityPlanner) -> ReferencePlanner:
    """What a model's prior alone plans. The candidate learnt whatever it leads this by."""
    shares = popularity.log_shares(product)

    def choose(row_input: RowInput, rng: np.random.Generator) -> list[str]:
        asked = offsets.offsets(row_input)
        worth = {item: share + asked.get(item, 0.0) for item, share in shares.items()}
        chosen: list[str] = []
        while len(chosen) < product.slots(row_input) and (legal := product.legal_items(row_input, chosen)):
            chosen.append(max(legal, key=worth.__getitem__))
        return chosen

    return RulePlanner(
        "popularity and offsets", "The same, and what the product itself asks for: the prior alone.", product, choose
    )


def _own_generator(row: Row) -> np.random.Generator:
    event = hashlib.sha256(str(row["metadata"]["event_id"]).encode()).digest()
    return np.random.default_rng([SEED, int.from_bytes(event[:8], "big")])
