"""Greedy decoding over what a household may eat: rows in, chosen items out.

Only legal items can come out: at every place the candidates are the trie's children with a legal item below. A row's answer does
not depend on the rows around it: rows are padded to lengths that depend on themselves alone and always run in passes of the same
number of rows, so that every matrix product has the same shape however the caller batches.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from product.protocol import RowInput
from training.errors import is_out_of_memory, out_of_memory
from training.examples import Codec

ROWS_A_PASS = 32
LENGTH_STEP = 16
DECIMALS = 4
"""Scores are compared at so many decimals: float noise then breaks no tie, the product's order of items does."""

ROW_ERRORS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What a broken row raises inside a product: it fails alone, with its message."""


@dataclass(frozen=True)
class Decoded:
    """One row's answer: items in order, tokens generated, and what went wrong with this row, if anything."""

    items: list[str]
    tokens: int
    error: str | None = None


@dataclass
class _Walk:
    """Where one row stands: items so far, what is legal next, the prior with the row's offsets, and its node in the trie."""

    number: int
    row_input: RowInput
    prompt: list[int]
    slots: int
    legal: np.ndarray
    prior: np.ndarray
    node: int = 0
    tokens: int = 0
    done: bool = False
    error: str | None = None

    def __post_init__(self) -> None:
        self.items: list[str] = []


class Decoder:
    """A model, its codec and the prior it was trained on."""

    def __init__(self, model: Any, codec: Codec, prior: np.ndarray, rows_a_pass: int = ROWS_A_PASS) -> None:
        self.model = model
        self.codec = codec
        self.prior = prior
        self.rows_a_pass = rows_a_pass
        self.device = next(model.parameters()).device

    def decode(self, row_inputs: Sequence[RowInput]) -> list[Decoded]:
        """An answer for every row, in their order. Raises TrainingError when memory runs out; a broken row only fails itself."""
        answers: list[Decoded | None] = [None] * len(row_inputs)
        by_length: dict[int, list[_Walk]] = {}
        for number, row_input in enumerate(row_inputs):
            walk = self._start(number, row_input)
            if isinstance(walk, Decoded):
                answers[number] = walk
            else:
                by_length.setdefault(-(-len(walk.prompt) // LENGTH_STEP) * LENGTH_STEP, []).append(walk)
        for length, walks in sorted(by_length.items()):
            for at in range(0, len(walks), self.rows_a_pass):
                chunk = walks[at : at + self.rows_a_pass]
                self._pass(chunk, length)
                for walk in chunk:
                    answers[walk.number] = Decoded(walk.items, walk.tokens, walk.error)
        return [answer for answer in answers if answer is not None]

    def _start(self, number: int, row_input: RowInput) -> _Walk | Decoded:
        try:
            slots = self.codec.product.slots(row_input)
            longest = max(len(sequence) for sequence in self.codec.trie.sequences)
            prompt = self.codec.prompt(row_input, slots * longest)
            prior = self.prior * self.codec.odds(row_input)
            walk = _Walk(number, row_input, prompt, slots, self.codec.legal(row_input), prior)
        except ROW_ERRORS as error:
            return Decoded([], 0, f"{type(error).__name__}: {error}")
        if slots == 0 or not walk.legal.any():
            return Decoded([], 0, None if slots == 0 else "No item is legal for this row.")
        return walk

    def _pass(self, walks: list[_Walk], length: int) -> None:
        """Decode up to `rows_a_pass` rows whose prompts are padded to `length`."""
        rows = self.rows_a_pass
        input_ids = torch.full((rows, length), self.codec.pad, dtype=torch.long)
        attention = torch.zeros((rows, length), dtype=torch.long)
        for row in range(rows):
            # Rows that nobody asked for repeat the first one, so that every pass has the same shape.
            prompt = walks[row if row < len(walks) else 0].prompt
            input_ids[row, length - len(prompt) :] = torch.tensor(prompt)
            attention[row, length - len(prompt) :] = 1
        positions = (attention.cumsum(dim=1) - 1).clamp(min=0)
        try:
            self._loop(walks, input_ids.to(self.device), attention.to(self.device), positions.to(self.device))
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                raise out_of_memory(rows) from error
            raise

    @torch.inference_mode()  # type: ignore[untyped-decorator]  # torch is not followed (pyproject.toml)
    def _loop(
        self, walks: list[_Walk], input_ids: torch.Tensor, attention: torch.Tensor, positions: torch.Tensor
    ) -> None:
        cache: Any = None
        while True:
            output = self.model(
                input_ids=input_ids,
                attention_mask=attention,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            cache = output.past_key_values
            logits = output.logits[:, -1].float().cpu().numpy()
            following = np.full((self.rows_a_pass, 1), self.codec.pad, dtype=np.int64)
            for row, walk in enumerate(walks):
                if not walk.done:
                    following[row, 0] = self._advance(walk, logits[row])
            if all(walk.done for walk in walks):
                return
            input_ids = torch.from_numpy(following).to(self.device)
            attention = torch.cat([attention, torch.ones_like(attention[:, :1])], dim=1)
            positions = positions[:, -1:] + 1

    def _advance(self, walk: _Walk, logits: np.ndarray) -> int:
        """Take the best next token of a row and return it; at the end of an item, ask the product what is legal after it."""
        node = self.codec.trie.nodes[walk.node]
        masses = node.masses(np.where(walk.legal, walk.prior, 0.0))
        candidates = np.flatnonzero(masses > 0)
        scores = logits[node.tokens[candidates]].astype(np.float64) + np.log(masses[candidates])
        best = int(candidates[int(np.argmax(np.round(scores, DECIMALS)))])
        walk.tokens += 1
        walk.node = int(node.follows[best])
        if walk.node < 0:
            walk.items.append(self.codec.items[-1 - walk.node])
            walk.node = 0
            try:
                walk.legal = self.codec.legal(walk.row_input, walk.items)
            except ROW_ERRORS as error:
                walk.error, walk.done = f"{type(error).__name__}: {error}", True
            walk.done = walk.done or len(walk.items) >= walk.slots or not walk.legal.any()
        return int(node.tokens[best])
