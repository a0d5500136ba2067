"""Rows as token ids: prompts, the items of accepted plans, what was legal, and what the household itself chose."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from product.protocol import HasOffsets, Product, Row, RowInput
from training.errors import TrainingError
from training.items import ItemTrie

if TYPE_CHECKING:  # a packaged planner of rules needs no pydantic-settings
    from training.config import PreprocessingSection

PROMPT_FROM = "prompt_from"
"""Optional field of an input: another row's input, whose prompt the model is shown instead. What is legal stays the row's own. It is a
control: a model that reads its prompt loses what it learnt about a household."""


@dataclass(frozen=True)
class Example:
    """One row to learn from. All arrays run over items.

    prompt: token ids. items: numbers of the accepted plan's items. wanted: how much each item was wanted (0 for all but the accepted
    ones, unless the row says more). legal: mask. odds: factor on the prior from the product's offsets (1: none).
    """

    prompt: list[int]
    items: list[int]
    wanted: np.ndarray
    legal: np.ndarray
    odds: np.ndarray


class Codec:
    """A product's prompts and items in a tokenizer's ids."""

    def __init__(
        self,
        product: Product,
        tokenizer: Any,
        templates: "PreprocessingSection",
        max_length: int,
        offset_weight: float = 1.0,
    ) -> None:
        """`tokenizer` is a transformers tokenizer; `offset_weight` scales the product's offsets.

        Raises TrainingError when the tokenizer cannot tell the items apart.
        """
        self.product = product
        self.items = list(product.items())
        self.index = {item: number for number, item in enumerate(self.items)}
        self.templates = templates
        self.max_length = max_length
        self.offset_weight = offset_weight
        self._tokenizer = tokenizer
        self._answer_start = templates.output_template.partition("{items}")[0]
        sequences = [self._ids(" " + product.item_text(item)) for item in self.items]
        unknown = tokenizer.unk_token_id
        strange = [
            item for item, ids in zip(self.items, sequences, strict=True) if unknown is not None and unknown in ids
        ]
        if strange:
            raise TrainingError(
                f"The base model's tokenizer does not know {len(strange)} of {len(self.items)} items (such as {strange[0]!r}): build "
                "the built-in base model again from this catalogue, or take a base with a byte-level tokenizer."
            )
        self.trie = ItemTrie(sequences, tokenizer.eos_token_id)
        # Padding is masked, so any id will do; a tokenizer's own pad token may lie beyond the model's embeddings.
        self.pad = 0

    def prompt(self, row_input: RowInput, room: int = 0) -> list[int]:
        """Token ids of a row's prompt, its left cut off where fewer than `room` tokens would be left for the answer."""
        text = (
            self.templates.input_template.replace(
                "{prompt}", self.product.prompt(row_input.get(PROMPT_FROM) or row_input)
            )
            + self._answer_start.rstrip()
        )
        ids = list(self._tokenizer(text, add_special_tokens=True)["input_ids"])
        if ids and ids[-1] == self._tokenizer.eos_token_id:
            ids.pop()
        most = max(self.max_length - room, 1)
        return ids[-most:]

    def legal(self, row_input: RowInput, chosen: Sequence[str] = ()) -> np.ndarray:
        """Mask over items: what may come next."""
        mask = np.zeros(len(self.items), dtype=bool)
        mask[[self.index[item] for item in self.product.legal_items(row_input, list(chosen))]] = True
        return mask

    def odds(self, row_input: RowInput) -> np.ndarray:
        """Factor on each item's prior for this row: e to the product's offset; 1 where it has none."""
        odds = np.ones(len(self.items))
        if self.offset_weight and isinstance(self.product, HasOffsets):
            for item, offset in self.product.offsets(row_input).items():
                odds[self.index[item]] = np.exp(self.offset_weight * offset)
        return odds

    def example(self, row: Row, swap_weight: float) -> Example | None:
        """The row to learn from; None when no accepted item is legal for it, so that there is nothing to learn."""
        legal = self.legal(row["input"])
        accepted = self.product.chosen(row["target"]["accepted_plan"])
        proposed_plan = row["metadata"].get("proposed_plan")
        proposed = set(self.product.chosen(proposed_plan)) if proposed_plan else None
        known = [item for item in dict.fromkeys(accepted) if item in self.index and legal[self.index[item]]]
        if not known:
            return None
        wanted = np.zeros(len(self.items))
        for item, weight in (row["target"].get("item_weights") or dict.fromkeys(known, 1.0)).items():
            swapped_in = proposed is not None and item not in proposed
            wanted[self.index[item]] = weight * (swap_weight if swapped_in else 1.0)
        numbers = [self.index[item] for item in known]
        room = sum(len(self.trie.sequences[number]) for number in numbers)
        return Example(
            self.prompt(row["input"], room), numbers, np.where(legal, wanted, 0.0), legal, self.odds(row["input"])
        )

    def examples(self, rows: Sequence[Row], swap_weight: float) -> list[Example]:
        """Every row that there is something to learn from."""
        all_examples = (self.example(row, swap_weight) for row in rows)
        return [example for example in all_examples if example is not None]

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
