"""For tests of training: a small product, its rows, dataset folders, and tiny models built on the fly.

Nothing here downloads.
"""

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from planner.catalogue import Catalogue, sample_catalogue
from planner.meal_planner import MealPlanner
from product.loading import class_path
from product.protocol import Product, Row
from training.builtin_base_model import BuiltInSettings, build
from training.versions import BaseModelVersion, ModelVersion

SMALL_BASE = BuiltInSettings(hidden_size=32, intermediate_size=64, layers=1, heads=2, tasters=200, epochs=1)
START = datetime(2025, 1, 6, tzinfo=UTC)


class Quiet:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.steps: list[tuple[str, int, int, float]] = []
        self.results: list[tuple[str, ModelVersion | BaseModelVersion, dict[str, Any]]] = []

    def say(self, message: str) -> None:
        """Kept."""
        self.lines.append(message)

    def step(self, task: str, step: int, total: int, loss: float) -> None:
        """Kept."""
        self.steps.append((task, step, total, loss))

    def finished(self, kind: str, record: ModelVersion | BaseModelVersion, metadata: dict[str, Any]) -> None:
        """Kept."""
        self.results.append((kind, record, metadata))


def small_product(recipes: int = 40) -> MealPlanner:
    """The meal planner with a small catalogue."""
    return MealPlanner(Catalogue(list(sample_catalogue())[:recipes]), meals=4)


def rows_of(product: MealPlanner, count: int = 120, *, seed: int = 3) -> list[Row]:
    """Rows of made-up tasters as a dataset would hold them: one row a household; every fifth validates, every sixth is held out.

    There is one thing to learn in them: recipes with even numbers are accepted, and nothing else.
    """
    rows = product.synthetic_rows(count, seed)
    number_of = {item: number for number, item in enumerate(product.items())}
    random = np.random.default_rng(seed)
    for number, row in enumerate(rows):
        legal = product.legal_items(row["input"], [])
        fitting = [item for item in legal if number_of[item] % 2 == 0] or legal
        chosen = random.permutation(fitting)[: product.slots(row["input"])].tolist()
        row["target"] = {"accepted_plan": product.plan(row["input"], chosen), "user_edits": []}
        row["metadata"] = {
            "timestamp": START + timedelta(hours=number),
            "event_id": f"00000000-0000-4000-8000-{number:012d}",
            "proposed_plan": None,
            "split": "replay" if number % 6 == 5 else "validation" if number % 5 == 4 else "train",
        }
    return rows


def dataset_folder(folder: Path, rows: Sequence[Row], product: Product) -> Path:
    """A dataset version on disk, as training reads it."""
    folder.mkdir(parents=True)
    table = pa.Table.from_pylist([{name: row[name] for name in ("input", "target", "metadata")} for row in rows])
    facts = {"product.class": class_path(product), "product.reference": json.dumps(product.reference())}
    pq.write_table(table.replace_schema_metadata(facts), folder / "training.parquet")
    (folder / "schema.json").write_text("{}")
    return folder


def small_base(folder: Path, product: Product, rows: Sequence[Row] = ()) -> Path:
    """The built-in base, small enough to be made in a second."""
    build(product, folder, SMALL_BASE, Quiet(), rows)
    return folder


def foreign_base(folder: Path, architecture: str) -> Path:
    """A model as a hub would give it (`qwen2` or `gpt2`), with a byte-level tokenizer that knows no recipe: items are several tokens."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(["<end>", *letters])}
    merges = [("Ġ", "r"), ("Ġr", ":"), ("a", "n"), ("e", "r")]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    torch.manual_seed(0)
    if architecture == "gpt2":
        model: Any = GPT2LMHeadModel(
            GPT2Config(vocab_size=len(vocabulary), n_positions=1024, n_embd=32, n_layer=1, n_head=2)
        )
    else:
        model = Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=len(vocabulary),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=1,
                num_attention_heads=2,
                num_key_value_heads=1,
                max_position_embeddings=1024,
            )
        )
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(folder)
    return folder
