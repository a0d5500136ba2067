"""Items as token sequences: the trie that decoding and the loss walk through, and the popularity prior.

An item is one token for the built-in tokenizer and several for a hub model's. A plan's score is then a product of choices along
the trie; with one token an item the trie is one node, and nothing is lost.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby, pairwise

import numpy as np

from training.errors import TrainingError


@dataclass(frozen=True)
class Node:
    """A place in the trie. All arrays are positions; `child` and `items` run in parallel.

    tokens: token of each child. follows: node number of each child, or −1 − item where the child completes an item.
    items: items at or below this node, ascending. child: which child leads to each of them.
    """

    tokens: np.ndarray
    follows: np.ndarray
    items: np.ndarray
    child: np.ndarray

    def masses(self, weights: np.ndarray) -> np.ndarray:
        """Sum of the items' weights below each child, in float64."""
        return np.bincount(self.child, weights=weights[self.items], minlength=len(self.tokens))


class ItemTrie:
    """Every item's token sequence. Node 0 is the root."""

    def __init__(self, sequences: Sequence[Sequence[int]], end_token: int | None) -> None:
        """`end_token` closes items if one item's tokens begin another's. Raises TrainingError for two items with the same tokens."""
        self.sequences = [tuple(sequence) for sequence in sequences]
        if not _prefix_free(self.sequences):
            if end_token is None:
                raise TrainingError(
                    "The base model's tokenizer writes one item as the beginning of another and has no end token."
                )
            self.sequences = [(*sequence, end_token) for sequence in self.sequences]
        if len(set(self.sequences)) < len(self.sequences) or not all(self.sequences):
            raise TrainingError(
                "The base model's tokenizer writes two items identically: use a tokenizer that knows their characters, or rebuild the "
                "built-in base model from this catalogue."
            )
        self.nodes: list[Node] = []
        self._paths: dict[int, list[tuple[int, int]]] = {}
        self._grow(sorted(range(len(self.sequences)), key=lambda item: self.sequences[item]), 0)

    def _grow(self, members: list[int], depth: int) -> int:
        number = len(self.nodes)
        self.nodes.append(Node(*(np.zeros(0, dtype=np.int64) for _ in range(4))))
        groups = [
            (token, list(group)) for token, group in groupby(members, key=lambda item: self.sequences[item][depth])
        ]
        # Children are ordered by their first item, so that a tie goes to the item that the product names first.
        groups.sort(key=lambda group: min(group[1]))
        follows = [
            -1 - group[0] if len(self.sequences[group[0]]) == depth + 1 else self._grow(group, depth + 1)
            for _, group in groups
        ]
        pairs = sorted((item, child) for child, (_, group) in enumerate(groups) for item in group)
        self.nodes[number] = Node(
            tokens=np.array([token for token, _ in groups], dtype=np.int64),
            follows=np.array(follows, dtype=np.int64),
            items=np.array([item for item, _ in pairs], dtype=np.int64),
            child=np.array([child for _, child in pairs], dtype=np.int64),
        )
        return number

    def path(self, item: int) -> list[tuple[int, int]]:
        """(node, token) of each step to the item."""
        if item not in self._paths:
            steps, node = [], 0
            for token in self.sequences[item]:
                steps.append((node, token))
                node = int(self.nodes[node].follows[list(self.nodes[node].tokens).index(token)])
            self._paths[item] = steps
        return self._paths[item]


def uniform_prior(count: int) -> np.ndarray:
    """The same share for every item: adding it changes nothing."""
    return np.full(count, 1.0 / count)


def popularity_prior(
    items: Sequence[str],
    plans: Iterable[tuple[Sequence[str], datetime]],
    smoothing: float = 1.0,
    half_life_days: float | None = None,
) -> np.ndarray:
    """Each item's share of the plans' items, in the order of `items`; older plans count less with a half-life."""
    index: Mapping[str, int] = {item: number for number, item in enumerate(items)}
    dated = list(plans)
    newest = max((when for _, when in dated), default=None)
    counts = np.full(len(items), smoothing, dtype=np.float64)
    for chosen, when in dated:
        age_days = 0.0 if newest is None else (newest - when).total_seconds() / 86_400
        weight = 1.0 if half_life_days is None else math.pow(0.5, age_days / half_life_days)
        for item in chosen:
            if item in index:
                counts[index[item]] += weight
    shares: np.ndarray = counts / counts.sum()
    return shares


def _prefix_free(sequences: Sequence[tuple[int, ...]]) -> bool:
    ordered = sorted(sequences)
    return all(after[: len(before)] != before or after == before for before, after in pairwise(ordered))
