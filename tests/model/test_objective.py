"""The loss: its value for a silent model, its independence of order and padding, and items of several tokens."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from training.examples import Example
from training.items import ItemTrie
from training.objective import batch_loss, collate

ITEMS = 5
PRIOR = np.array([0.4, 0.3, 0.15, 0.1, 0.05])
TRIE = ItemTrie([[2], [3], [4], [5], [6]], None)


class Says:
    """A model whose logits depend on the last token alone."""

    def __init__(self, table: torch.Tensor) -> None:
        self.table = table

    def __call__(self, input_ids: torch.Tensor, logits_to_keep: int, **_: Any) -> Any:
        return SimpleNamespace(logits=self.table[input_ids][:, -logits_to_keep:])


SILENT = Says(torch.zeros(10, 10))


def example(
    items: list[int], legal: list[int] | None = None, prompt: int = 1, odds: list[float] | None = None
) -> Example:
    mask = np.ones(ITEMS, dtype=bool) if legal is None else np.isin(np.arange(ITEMS), legal)
    wanted = np.zeros(ITEMS)
    wanted[items] = 1.0
    return Example([1] * prompt, items, wanted, mask, np.array(odds or [1.0] * ITEMS))


def loss(model: Any, *examples: Example, orders: list[list[int]] | None = None, trie: ItemTrie = TRIE) -> float:
    orders = orders or [list(range(len(one.items))) for one in examples]
    return float(batch_loss(model, collate(examples, orders, trie, PRIOR, 0)))


def test_loss_of_a_silent_model_is_that_of_the_prior() -> None:
    assert loss(SILENT, example([0])) == pytest.approx(-np.log(0.4))
    assert loss(SILENT, example([4])) == pytest.approx(-np.log(0.05))


def test_only_legal_items_compete() -> None:
    assert loss(SILENT, example([3], legal=[3, 4])) == pytest.approx(-np.log(0.1 / 0.15))
    assert loss(SILENT, example([3], legal=[3])) == pytest.approx(0.0, abs=1e-6)


def test_product_offsets_are_added_to_popularity() -> None:
    # Odds of 2 on item 4: 0.05 · 2 of the weighted sum 0.95 + 0.10.
    assert loss(SILENT, example([4], odds=[1, 1, 1, 1, 2])) == pytest.approx(-np.log(0.10 / 1.05))
    assert loss(SILENT, example([3], legal=[3, 4], odds=[1, 1, 1, 1, 2])) == pytest.approx(-np.log(0.1 / 0.2))


def test_any_of_the_remaining_items_is_right_at_each_place() -> None:
    first = -0.5 * (np.log(0.4) + np.log(0.3))
    assert loss(SILENT, example([0, 1]), orders=[[0, 1]]) == pytest.approx(first - np.log(0.3 / 0.6))
    assert loss(SILENT, example([0, 1]), orders=[[1, 0]]) == pytest.approx(first - np.log(0.4 / 0.7))


def test_swapped_in_items_count_more() -> None:
    weighted = example([0, 4])
    weighted.wanted[4] = 3.0
    first_place = -(0.25 * np.log(0.4) + 0.75 * np.log(0.05))
    assert loss(SILENT, weighted) == pytest.approx(first_place - np.log(0.05 / 0.6))


def test_loss_does_not_depend_on_padding() -> None:
    torch.manual_seed(0)
    model = Says(torch.randn(10, 10))
    short, long = example([0], prompt=2), example([1, 2, 3], prompt=9)
    assert loss(model, short, long) == pytest.approx(loss(model, short) + loss(model, long), rel=1e-5)


def test_loss_of_an_item_does_not_depend_on_its_number_of_tokens() -> None:
    """Whatever the tokenizer, a silent model gives each item its prior; forced tokens cost nothing."""
    trie = ItemTrie([[2, 3, 4], [2, 3, 5], [2, 6], [7, 8], [7, 9]], None)
    for item in range(ITEMS):
        assert loss(SILENT, example([item]), trie=trie) == pytest.approx(-np.log(PRIOR[item]), rel=1e-5)


def test_gradients_are_finite_where_candidates_are_missing() -> None:
    table = torch.zeros(10, 10, requires_grad=True)
    batch = collate([example([0], legal=[0, 1]), example([1, 2, 3])], [[0], [2, 0, 1]], TRIE, PRIOR, 0)
    batch_loss(Says(table), batch).backward()
    assert table.grad is not None and torch.isfinite(table.grad).all() and table.grad.abs().sum() > 0
