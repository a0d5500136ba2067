"""Decoding: plans contain only legal items and do not depend on the batch, with any tokenizer."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_support import foreign_base, rows_of, small_base, small_product

from product.protocol import Row
from training.base_and_adapters import load_model
from training.config import PreprocessingSection
from training.decoding import Decoder
from training.examples import Codec
from training.items import uniform_prior

PRODUCT = small_product()
ROWS = rows_of(PRODUCT, 70, seed=11)
INPUTS = [row["input"] for row in ROWS]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=["built-in", "qwen2", "gpt2"])
def decoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    folder = tmp_path_factory.mktemp("models") / request.param
    base = small_base(folder, PRODUCT) if request.param == "built-in" else foreign_base(folder, request.param)
    return decoder_of(base, uniform_prior(len(PRODUCT.items())))


def decoder_of(folder: Path, prior: np.ndarray, **options: Any) -> Decoder:
    model, tokenizer = load_model(str(folder), "cpu")
    return Decoder(model, Codec(PRODUCT, tokenizer, PreprocessingSection(), 1024), prior, **options)


def test_plans_contain_only_legal_items_without_duplicates(decoder: Decoder) -> None:
    inputs = INPUTS if decoder.model.config.model_type == "llama" else INPUTS[:12]
    for row_input, answer in zip(inputs, decoder.decode(inputs), strict=True):
        assert answer.error is None
        assert len(answer.items) == len(set(answer.items)) == PRODUCT.slots(row_input)
        assert set(answer.items) <= set(PRODUCT.legal_items(row_input, []))
        assert PRODUCT.violations(row_input, PRODUCT.plan(row_input, answer.items)) == []
        tokens = [len(decoder.codec.trie.sequences[decoder.codec.index[item]]) for item in answer.items]
        assert answer.tokens == sum(tokens)


def test_an_item_of_a_foreign_tokenizer_is_several_tokens(decoder: Decoder) -> None:
    lengths = {len(sequence) for sequence in decoder.codec.trie.sequences}
    built_in = decoder.model.config.model_type == "llama"
    assert lengths == {1} if built_in else min(lengths) > 1


def test_plans_do_not_depend_on_the_batch(decoder: Decoder) -> None:
    # A foreign tokenizer writes a prompt of a thousand tokens: fewer rows tell as much.
    inputs = INPUTS[: 40 if decoder.model.config.model_type == "llama" else 5]
    together = decoder.decode(inputs)
    assert [decoder.decode([row_input])[0] for row_input in inputs] == together
    order = np.random.default_rng(0).permutation(len(inputs)).tolist()
    shuffled = decoder.decode([inputs[at] for at in order])
    assert shuffled == [together[at] for at in order]
    assert decoder.decode(inputs[:3]) + decoder.decode(inputs[3:]) == together


def test_strong_prior_decides_and_ties_follow_the_product_order(tmp_path: Path) -> None:
    folder = small_base(tmp_path / "base", PRODUCT)
    popular = np.full(len(PRODUCT.items()), 1e-30)
    popular[[3, 5, 7, 9]] = 0.25
    free: Row = {**ROWS[0]["input"], "recent_plans": [], "previous_plan": None}
    free["pantry"] = {"items": []}
    free["household"] = {**free["household"], "restrictions": []}
    free["constraints"] = {"budget": None, "max_prep_time": None, "excluded_ingredients": []}
    decoder = decoder_of(folder, popular)
    assert set(decoder.decode([free])[0].items) == {PRODUCT.items()[at] for at in (3, 5, 7, 9)}
    with torch.no_grad():
        decoder.model.lm_head.weight.zero_()
    assert decoder.decode([free])[0].items == [PRODUCT.items()[at] for at in (3, 5, 7, 9)]


def test_only_broken_rows_of_a_batch_fail(decoder: Decoder) -> None:
    whole = decoder.decode(INPUTS[:6])
    broken = [dict(row_input) for row_input in INPUTS[:6]]
    broken[2]["household"] = None
    broken[4]["recent_plans"] = [{"days_ago": "soon", "meals": [{}]}]
    answers = decoder.decode(broken)
    assert [number for number, answer in enumerate(answers) if answer.error] == [2, 4]
    assert [answers[number] for number in (0, 1, 3, 5)] == [whole[number] for number in (0, 1, 3, 5)]
    assert answers[2].items == [] and "TypeError" in (answers[2].error or "")


def test_plan_is_empty_with_an_error_when_no_item_is_legal(decoder: Decoder) -> None:
    hungry = {**INPUTS[0], "constraints": {"budget": None, "max_prep_time": 1, "excluded_ingredients": []}}
    answer = decoder.decode([hungry])[0]
    assert answer.items == [] and answer.error == "No item is legal for this row."


def test_long_prompts_lose_their_oldest_history(decoder: Decoder) -> None:
    codec = Codec(PRODUCT, decoder.codec._tokenizer, PreprocessingSection(), 64)
    longest = max(INPUTS, key=lambda row_input: len(decoder.codec.prompt(row_input)))
    whole, cut = decoder.codec.prompt(longest), codec.prompt(longest, room=60)
    assert len(cut) == min(4, len(whole)) and cut == whole[-4:]
