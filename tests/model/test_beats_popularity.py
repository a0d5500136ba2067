"""What a tiny planner model must do on households that it never saw: beat popularity, its own prior and its own untuned base, by reading
the prompt.

The simulated households edit what an exploring legacy planner showed them; a fifth of them is never trained on. Everything is seeded,
so the numbers are the same each time on one machine; the bounds leave room for other machines.
"""

from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_support import Quiet

from planner.catalogue import sample_catalogue
from planner.meal_planner import MealPlanner
from planner.rows import planner_rows
from planner.sessions import events_frame
from planner.simulator import simulate
from product.planners import PopularityPlanner, RandomPlanner
from product.protocol import Row, RowInput, RowWindow
from training.base_and_adapters import load_model, with_adapters
from training.builtin_base_model import BuiltInSettings, build
from training.config import load
from training.decoding import Decoder
from training.examples import PROMPT_FROM, Codec
from training.items import popularity_prior
from training.loop import Outcome, Task, fit

PRODUCT = MealPlanner()
SHIPPED = Path(__file__).resolve().parents[2] / "training" / "config" / "planner.yaml"


class Tried:
    """One training on the sample, and what each planner says about the unseen rows."""

    def __init__(self, folder: Path) -> None:
        sample = simulate(sample_catalogue(), seed=101, households=300, end=date(2025, 1, 5))
        window = RowWindow(sample.start, sample.end, 28)
        rows: list[Row] = planner_rows(events_frame(sample.events), sample.tables, window).to_dicts()
        split = {
            name: [row for row in rows if row["metadata"]["split"] == name]
            for name in ("train", "validation", "replay")
        }
        self.unseen = split["replay"]
        assert not {row["input"]["household"]["id"] for row in self.unseen} & {
            row["input"]["household"]["id"] for row in split["train"]
        }
        config = load(SHIPPED)
        build(PRODUCT, folder, BuiltInSettings(tasters=4000), Quiet())
        base, tokenizer = load_model(str(folder), "cpu", config)
        codec = Codec(PRODUCT, tokenizer, config.dataset.preprocessing, config.dataset.max_length)
        plans = [
            (PRODUCT.chosen(row["target"]["accepted_plan"]), row["metadata"]["timestamp"]) for row in split["train"]
        ]
        prior = popularity_prior(codec.items, plans)
        self.untuned = self.scores(self.decoded(Decoder(base, codec, prior)))

        def tuned_on(train: list[Row], start: Any) -> tuple[Any, Outcome]:
            model = with_adapters(start, config)
            taught, watched = codec.examples(train, 1.0), codec.examples(split["validation"], 1.0)
            outcome = fit(model, Task(taught, watched, codec.trie, prior, codec.pad), config.training, lambda *_: None)
            model.eval()
            return model, outcome

        model, self.outcome = tuned_on(split["train"], base)
        decoder = Decoder(model, codec, prior)
        self.tuned = self.scores(self.decoded(decoder))
        self.lent = self.scores([answer.items for answer in decoder.decode(lent(self.unseen))])
        misled, _ = tuned_on(
            [{**row, "input": swapped} for row, swapped in zip(split["train"], lent(split["train"]), strict=True)],
            load_model(str(folder), "cpu", config)[0],
        )
        self.misled = self.scores(self.decoded(Decoder(misled, codec, prior)))
        popular = PopularityPlanner.fit(PRODUCT, [(0.0, items) for items, _ in plans])
        self.popularity = self.scores([popular.plan(PRODUCT, row["input"]) for row in self.unseen])
        self.prior = self.scores([best_by(prior * codec.odds(row["input"]), codec, row) for row in self.unseen])
        random = np.random.default_rng(0)
        self.chance = self.scores([RandomPlanner().plan(PRODUCT, row["input"], random) for row in self.unseen])

    def decoded(self, decoder: Decoder) -> list[list[str]]:
        inputs: list[RowInput] = [row["input"] for row in self.unseen]
        return [answer.items for answer in decoder.decode(inputs)]

    def scores(self, answers: list[list[str]]) -> np.ndarray:
        """Mean Jaccard of each unseen household."""
        by_household: dict[str, list[float]] = {}
        for row, items in zip(self.unseen, answers, strict=True):
            accepted, given = set(PRODUCT.chosen(row["target"]["accepted_plan"])), set(items)
            household = row["input"]["household"]["id"]
            by_household.setdefault(household, []).append(len(accepted & given) / len(accepted | given))
        return np.array([np.mean(by_household[household]) for household in sorted(by_household)])


def lent(rows: list[Row]) -> list[RowInput]:
    """Each row's input with the prompt of another row; what may be eaten, and what the pantry asks for, stay its own."""
    lenders = np.random.default_rng(0).permutation(len(rows)).tolist()
    return [{**row["input"], PROMPT_FROM: rows[lender]["input"]} for row, lender in zip(rows, lenders, strict=True)]


def best_by(worth: np.ndarray, codec: Codec, row: Row) -> list[str]:
    """The legal items that are worth most, without a model."""
    legal = np.flatnonzero(codec.legal(row["input"]))
    best = legal[np.argsort(-worth[legal], kind="stable")][: PRODUCT.slots(row["input"])]
    return [codec.items[int(at)] for at in best]


def gain(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """Mean lead over households, and the lower end of its 95 % interval."""
    lead = ours - theirs
    return float(lead.mean()), float(lead.mean() - 1.96 * lead.std(ddof=1) / np.sqrt(len(lead)))


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> Any:
    before = torch.get_num_threads()
    yield Tried(tmp_path_factory.mktemp("models") / "base")
    torch.set_num_threads(before)


def test_fine_tuning_lowers_the_loss_on_unseen_households(tried: Tried) -> None:
    assert tried.outcome.base_loss is not None and tried.outcome.best_loss is not None
    assert tried.outcome.best_loss < tried.outcome.base_loss - 0.05


def test_tuned_model_beats_popularity_on_unseen_households(tried: Tried) -> None:
    assert gain(tried.tuned, tried.popularity)[1] > 0
    assert tried.popularity.mean() > 2.5 * tried.chance.mean()


def test_tuned_model_beats_its_prior(tried: Tried) -> None:
    """Popularity and the pantry alone, as every place of a plan starts from them: what is above is learnt."""
    assert gain(tried.tuned, tried.prior)[0] > 0.005


def test_tuned_model_beats_its_untuned_base_with_the_same_prior(tried: Tried) -> None:
    assert gain(tried.tuned, tried.untuned)[0] > 0.005


def test_tuned_model_does_not_beat_its_prior_when_prompts_are_swapped(tried: Tried) -> None:
    """The control: what it gains, it reads in the prompt. A model that gained without reading would pass the tests above for nothing."""
    assert tried.lent.mean() < tried.tuned.mean() - 0.01
    assert tried.lent.mean() <= tried.prior.mean() + 0.005
    assert tried.lent.mean() > tried.chance.mean()


def test_model_does_not_beat_its_prior_when_trained_on_swapped_prompts(tried: Tried) -> None:
    """The other control: with prompts shuffled in training, nothing in a prompt tells of a plan, and only the prior is left."""
    assert tried.misled.mean() < tried.tuned.mean() - 0.005
    assert tried.misled.mean() <= tried.prior.mean() + 0.005
    assert tried.misled.mean() > tried.chance.mean()
