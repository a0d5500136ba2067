"""The built-in base model: a tiny Llama-type model, pre-trained on the spot on synthetic rows of the product.

It exists for machines without a GPU and without a network: an ordinary transformers folder, loaded like any other base.
"""

import argparse
import hashlib
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundation.errors import LifecycleError
from foundation.settings import settings
from product.loading import MakesTasters, class_path, load_product
from product.protocol import Product, Row
from training.config import BUILT_IN, PreprocessingSection, TrainingSection, hyphens
from training.dataset import read_dataset, read_product
from training.errors import TrainingError
from training.reporting import Reporter, reporter
from training.versions import BaseModelVersion

if TYPE_CHECKING:
    from training.examples import Codec

INFO_FILE = "base_model.json"
SPECIAL_TOKENS = ("<pad>", "<unk>", "<s>", "</s>")
FORMAT = 2
"""Increased when the same settings would give other weights, so that older folders are rebuilt."""


@dataclass(frozen=True)
class BuiltInSettings:
    """Size of the model and of its pre-training. 128 wide with 2 layers is 0.35 million parameters."""

    hidden_size: int = 128
    intermediate_size: int = 256
    layers: int = 2
    heads: int = 4
    tasters: int = 6000
    epochs: int = 2
    batch_size: int = 64
    learning_rate: float = 2e-3
    max_positions: int = 512
    seed: int = 42
    threads: int = 1


def build(
    product: Product, output_dir: Path, settings: BuiltInSettings, progress: Reporter, rows: Sequence[Row] = ()
) -> BaseModelVersion:
    """Build the base in `output_dir`, or return the one there if it was built from the same product and settings.

    `rows` are needed only for a product that makes no synthetic rows: their inputs are continued with random legal items.
    The folder appears complete or not at all. Raises TrainingError if there is nothing to learn from.
    """
    fingerprint = _fingerprint(product, settings, rows)
    if (output_dir / INFO_FILE).exists():
        info = json.loads((output_dir / INFO_FILE).read_text())
        if info["fingerprint"] == fingerprint:
            return BaseModelVersion(BUILT_IN, str(output_dir), info["digest"])
    import torch

    from training.base_and_adapters import folder_digest, quiet

    quiet()

    torch.set_num_threads(settings.threads)
    synthetic = _rows(product, settings, rows)
    tokenizer = _tokenizer(product, synthetic)
    model = _model(len(tokenizer), settings)
    progress.say(
        f"Base model: {sum(weight.numel() for weight in model.parameters()):,} parameters, {len(synthetic):,} synthetic households, "
        f"{len(product.items())} items"
    )
    _pretrain(model, _codec(product, tokenizer, settings), synthetic, settings, progress)
    partial = output_dir.parent / f".{output_dir.name}.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        model.save_pretrained(partial, safe_serialization=True)
        tokenizer.save_pretrained(partial)
        digest = folder_digest(partial)
        (partial / INFO_FILE).write_text(
            json.dumps(
                {
                    "fingerprint": fingerprint,
                    "digest": digest,
                    "product": class_path(product),
                    "settings": asdict(settings),
                }
            )
        )
        if output_dir.exists():
            _make_room(output_dir)
        partial.rename(output_dir)
    except OSError as error:
        raise TrainingError(
            f"The base model cannot be written to {output_dir} ({error}): give --output-dir a folder you may write."
        ) from error
    return BaseModelVersion(BUILT_IN, str(output_dir), digest)


def _make_room(output_dir: Path) -> None:
    """Remove an older built-in base. Raises TrainingError if the folder has anything else in it, which is the user's."""
    if not (output_dir / INFO_FILE).exists() and any(output_dir.iterdir()):
        raise TrainingError(
            f"{output_dir} contains something other than a built-in base model: give --output-dir an empty or new folder."
        )
    shutil.rmtree(output_dir)


def _fingerprint(product: Product, settings: BuiltInSettings, rows: Sequence[Row]) -> str:
    content: dict[str, Any] = {"format": FORMAT, "product": class_path(product), "reference": product.reference()}
    content["settings"] = asdict(settings)
    if not isinstance(product, MakesTasters):
        content["rows"] = [row["input"] for row in rows]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _rows(product: Product, settings: BuiltInSettings, rows: Sequence[Row]) -> list[Row]:
    if isinstance(product, MakesTasters):
        return product.synthetic_rows(settings.tasters, settings.seed)
    if not rows:
        raise TrainingError(
            f"The product {class_path(product)} makes no synthetic rows (a method `synthetic_rows(count, seed)`), so the built-in "
            "base needs --dataset to learn from."
        )
    return random_plans(product, rows, settings.seed)


def random_plans(product: Product, rows: Sequence[Row], seed: int) -> list[Row]:
    """The rows' inputs with random legal plans: teaches what a plan looks like, and nothing about taste."""
    import numpy as np

    random = np.random.default_rng(seed)
    planned = []
    for row in rows:
        legal = product.legal_items(row["input"], [])
        if legal:
            count = min(product.slots(row["input"]), len(legal))
            chosen = [legal[int(index)] for index in random.choice(len(legal), size=count, replace=False)]
            planned.append(
                {"input": row["input"], "target": {"accepted_plan": product.plan(row["input"], chosen)}, "metadata": {}}
            )
    return planned


def _tokenizer(product: Product, rows: Sequence[Row]) -> Any:
    """One token per word: every item, and every word of the rows' prompts."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    items = [product.item_text(item) for item in product.items()]
    words = sorted({word for row in rows for word in product.prompt(row["input"]).split()} - set(items))
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys([*SPECIAL_TOKENS, *items, *words]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    pad, unknown, start, end = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        unk_token=unknown,
        bos_token=start,
        eos_token=end,
        padding_side="left",
    )


def _model(vocabulary: int, settings: BuiltInSettings) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(settings.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=settings.hidden_size,
            intermediate_size=settings.intermediate_size,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.heads,
            num_key_value_heads=settings.heads,
            max_position_embeddings=settings.max_positions,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=2,
            eos_token_id=3,
            dtype="float32",
        )
    )


def _codec(product: Product, tokenizer: Any, settings: BuiltInSettings) -> "Codec":
    from training.examples import Codec

    return Codec(product, tokenizer, PreprocessingSection(), settings.max_positions)


def _pretrain(model: Any, codec: "Codec", rows: Sequence[Row], settings: BuiltInSettings, progress: Reporter) -> None:
    """Learn the synthetic plans with the objective of fine-tuning and the product's offsets. Popularity is left to the dataset."""
    from training.items import uniform_prior
    from training.loop import Task, fit

    task = Task(codec.examples(rows, 1.0), (), codec.trie, uniform_prior(len(codec.items)), codec.pad)
    loop = TrainingSection(
        learning_rate=settings.learning_rate,
        batch_size=settings.batch_size,
        gradient_accumulation_steps=1,
        epochs=settings.epochs,
        seed=settings.seed,
    )
    fit(model, task, loop, lambda _, step, total, loss: progress.step("base model", step, total, loss), log_every=5)
    model.eval()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns 0, or 1 after one sentence on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m training.builtin_base_model",
        description="Build the built-in base model of a product.",
        allow_abbrev=False,
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--dataset", metavar="DIR", help="dataset folder whose product it is for")
    source.add_argument("--reference", metavar="FILE", help="JSON file with the product's reference data")
    parser.add_argument("--product", default=settings().product, help="class that the reference data belongs to")
    parser.add_argument("--output-dir", required=True, metavar="DIR", help="folder to create")
    for name, default in asdict(BuiltInSettings()).items():
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=type(default), default=default, help=f"default {default}"
        )
    given = parser.parse_args([hyphens(argument) for argument in (sys.argv[1:] if arguments is None else arguments)])
    built_in = BuiltInSettings(**{name: getattr(given, name) for name in asdict(BuiltInSettings())})
    try:
        with reporter() as progress:
            product, rows = _source(given)
            record = build(product, Path(given.output_dir), built_in, progress, rows)
            progress.finished("base_model", record, {"digest": record.digest, "items": len(product.items())})
    except LifecycleError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(record.to_dict()))
    return 0


def _source(given: argparse.Namespace) -> tuple[Product, Sequence[Row]]:
    if given.reference is not None:
        try:
            reference = json.loads(Path(given.reference).read_text())
        except (OSError, ValueError) as error:
            raise TrainingError(
                f"The reference data {given.reference} cannot be read ({error}): give a JSON file."
            ) from error
        return load_product(given.product, reference), ()
    product = read_product(given.dataset)
    if isinstance(product, MakesTasters):
        return product, ()
    return product, read_dataset(given.dataset).train


if __name__ == "__main__":
    sys.exit(main())
