"""The loss: any of the accepted plan's remaining items is right, judged among what was legal, on top of a fixed prior.

At each place of an answer, candidates are the trie's children with a legal item below them; each gets the model's logit plus the log of
the prior below it (popularity times the odds of the product's offsets), and the target is spread over the plan's items that are still
to come, by their weights. The prior is not a parameter: with it, the model learns what popularity and pantry do not explain.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from training.examples import Example
from training.items import ItemTrie


@dataclass(frozen=True)
class Batch:
    """Tensors of one forward pass. B rows, T tokens, P answer places (the last ones), C candidates.

    input_ids, attention_mask, position_ids: (B, T), padded on the left. tokens: (B, P, C) candidates' token ids.
    bias: (B, P, C) log prior mass, −inf where there is no candidate. target: (B, P, C) shares, 0 in places without answer.
    items: how many items the loss is a sum over.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor
    tokens: torch.Tensor
    bias: torch.Tensor
    target: torch.Tensor
    items: int


@dataclass(frozen=True)
class _Place:
    tokens: np.ndarray
    bias: np.ndarray
    target: np.ndarray


def collate(
    examples: Sequence[Example],
    orders: Sequence[Sequence[int]],
    trie: ItemTrie,
    prior: np.ndarray,
    pad: int,
    device: str = "cpu",
) -> Batch:
    """A batch of examples whose items are answered in the given orders (positions within each example's items)."""
    answers = [_answer(example, order, trie, prior) for example, order in zip(examples, orders, strict=True)]
    sequences = [example.prompt + ids[:-1] for example, (ids, _) in zip(examples, answers, strict=True)]
    width, places = max(map(len, sequences)), max(len(ids) for ids, _ in answers)
    widest = max(len(place.tokens) for _, row in answers for place in row)
    count = len(examples)
    input_ids = np.full((count, width), pad, dtype=np.int64)
    attention = np.zeros((count, width), dtype=np.int64)
    tokens = np.zeros((count, places, widest), dtype=np.int64)
    bias = np.full((count, places, widest), -np.inf, dtype=np.float32)
    bias[:, :, 0] = 0.0
    target = np.zeros((count, places, widest), dtype=np.float32)
    for row, (sequence, (_, row_places)) in enumerate(zip(sequences, answers, strict=True)):
        input_ids[row, width - len(sequence) :] = sequence
        attention[row, width - len(sequence) :] = 1
        for number, place in enumerate(row_places, start=places - len(row_places)):
            size = len(place.tokens)
            tokens[row, number, :size], bias[row, number, :size], target[row, number, :size] = (
                place.tokens,
                place.bias,
                place.target,
            )
    positions = np.maximum(attention.cumsum(axis=1) - 1, 0)
    here = [torch.from_numpy(array).to(device) for array in (input_ids, attention, positions, tokens, bias, target)]
    return Batch(here[0], here[1], here[2], here[3], here[4], here[5], sum(len(example.items) for example in examples))


def batch_loss(model: Any, batch: Batch) -> torch.Tensor:
    """Summed negative log likelihood of the batch's items, in nats; divide by `batch.items` for a mean."""
    places = batch.tokens.shape[1]
    output = model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        use_cache=False,
        logits_to_keep=places,
    )
    logits = output.logits[:, -places:].float().gather(2, batch.tokens) + batch.bias
    log_shares = torch.log_softmax(logits, dim=2)
    # 0 · −inf would be NaN: places without a candidate have no share of the target either.
    return -(batch.target * log_shares.masked_fill(batch.target == 0, 0.0)).sum()


def _answer(
    example: Example, order: Sequence[int], trie: ItemTrie, prior: np.ndarray
) -> tuple[list[int], list[_Place]]:
    """Token ids of the answer, and candidates and target at each of them."""
    ids: list[int] = []
    places: list[_Place] = []
    legal_prior = np.where(example.legal, prior * example.odds, 0.0)
    wanted = example.wanted.copy()
    for step in order:
        item = example.items[step]
        for number, token in trie.path(item):
            node = trie.nodes[number]
            masses, shares = node.masses(legal_prior), node.masses(wanted)
            open_ = masses > 0
            places.append(_Place(node.tokens[open_], np.log(masses[open_]), shares[open_] / shares.sum()))
            ids.append(token)
        legal_prior[item] = 0.0
        wanted[item] = 0.0
    return ids, places
