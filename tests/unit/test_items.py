"""Items as token sequences, and the popularity prior."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from training.errors import TrainingError
from training.items import ItemTrie, popularity_prior, uniform_prior


def test_one_token_items_are_one_node_in_the_products_order() -> None:
    trie = ItemTrie([[9], [4], [7]], None)
    assert len(trie.nodes) == 1
    assert trie.nodes[0].tokens.tolist() == [9, 4, 7]
    assert trie.nodes[0].follows.tolist() == [-1, -2, -3]
    assert [trie.path(item) for item in range(3)] == [[(0, 9)], [(0, 4)], [(0, 7)]]


def test_path_ends_at_its_item_when_items_share_tokens() -> None:
    sequences = [[1, 2, 3], [1, 2, 4], [1, 5], [6]]
    trie = ItemTrie(sequences, None)
    for item, sequence in enumerate(sequences):
        steps = trie.path(item)
        assert [token for _, token in steps] == sequence
        node = 0
        for step_node, token in steps:
            assert step_node == node
            node = int(trie.nodes[node].follows[trie.nodes[node].tokens.tolist().index(token)])
        assert node == -1 - item


def test_masses_along_a_path_multiply_to_the_share_of_the_item() -> None:
    trie = ItemTrie([[1, 2, 3], [1, 2, 4], [1, 5], [6]], None)
    weights = np.array([0.4, 0.1, 0.3, 0.2])
    assert trie.nodes[0].masses(weights).tolist() == pytest.approx([0.8, 0.2])
    for item in range(4):
        share = 1.0
        for node, token in trie.path(item):
            masses = trie.nodes[node].masses(weights)
            share *= masses[trie.nodes[node].tokens.tolist().index(token)] / masses.sum()
        assert share == pytest.approx(weights[item])


def test_an_item_that_begins_another_is_closed_by_the_end_token() -> None:
    trie = ItemTrie([[1], [1, 2]], 0)
    assert trie.sequences == [(1, 0), (1, 2, 0)]
    with pytest.raises(TrainingError, match="no end token"):
        ItemTrie([[1], [1, 2]], None)


def test_items_with_the_same_tokens_are_refused() -> None:
    with pytest.raises(TrainingError, match="two items identically"):
        ItemTrie([[1, 2], [1, 2]], 0)


def test_prior_is_the_smoothed_share_of_items() -> None:
    now = datetime(2025, 1, 1, tzinfo=UTC)
    prior = popularity_prior(["a", "b", "c"], [(["a", "b"], now), (["a"], now), (["unknown"], now)])
    assert prior.tolist() == pytest.approx([3 / 6, 2 / 6, 1 / 6])
    assert uniform_prior(4).tolist() == [0.25] * 4


def test_old_plans_count_less_with_a_half_life() -> None:
    now = datetime(2025, 1, 1, tzinfo=UTC)
    plans = [(["a"], now), (["b"], now - timedelta(days=10)), (["b"], now - timedelta(days=10))]
    prior = popularity_prior(["a", "b"], plans, smoothing=1e-9, half_life_days=5)
    assert prior.tolist() == pytest.approx([1 / 1.5, 0.5 / 1.5])
