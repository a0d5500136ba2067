"""Layers, targeting and overrides in experiments.yml: what they say, and every broken rule with its file and line."""

from decimal import Decimal
from pathlib import Path

import pytest
from ground_support import NO_POLICIES, config_of

from experimentation.config.yaml_nodes import ConfigError
from experimentation.runs.run import LayerRange

FILE = """\
layers:
  - name: plan_page
    description: Whatever changes the plan page.
    holdout: 0.05
experiments:
  - name: cards
    unit_type: user
    status: active
    layer: {name: plan_page, from: 500, to: 5250}
    targeting: context.platform == "ios"
    overrides: {h0001: with_cards}
    variants:
      - {name: control, allocation: 0.5}
      - {name: with_cards, allocation: 0.5}
  - name: colours
    unit_type: user
    layer: {name: plan_page, from: 5250, to: 10000}
    variants:
      - {name: control, allocation: 1}
"""
MORE = "  - name: more\n    unit_type: user\n    variants: [{name: control, allocation: 1}]\n"


def problems(folder: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config_of(folder, text, NO_POLICIES)
    return str(caught.value).replace(f"{folder}/", "").splitlines()


def test_what_the_file_says_is_read(tmp_path: Path) -> None:
    read = config_of(tmp_path, FILE, NO_POLICIES)
    (layer,) = read.layers
    assert (layer.name, layer.holdout, layer.description, layer.place.line) == (
        "plan_page",
        Decimal("0.05"),
        "Whatever changes the plan page.",
        2,
    )
    cards, colours = read.experiments
    assert (cards.layer, colours.layer) == (LayerRange("plan_page", 500, 5250), LayerRange("plan_page", 5250, 10_000))
    assert cards.layer_place is not None and cards.layer_place.line == 9
    assert (cards.targeting, cards.overrides) == ('context.platform == "ios"', {"h0001": "with_cards"})
    assert (colours.targeting, colours.overrides) == (None, {})


def test_layers_may_stand_behind_experiments_and_need_no_holdout(tmp_path: Path) -> None:
    layers, _, experiments = FILE.partition("experiments:")
    layers = layers.replace("    holdout: 0.05\n", "")
    behind = f"experiments:{experiments}{layers}"
    read = config_of(tmp_path, behind, NO_POLICIES)
    assert [str(layer.holdout) for layer in read.layers] == ["0.0000"]
    assert [entry.name for entry in read.experiments] == ["cards", "colours"]


def test_a_rule_may_take_several_lines(tmp_path: Path) -> None:
    text = FILE.replace(
        'context.platform == "ios"\n', '>-\n      context.platform == "ios"\n      && context.weeks >= 4\n'
    )
    assert config_of(tmp_path, text, NO_POLICIES).experiments[0].targeting == (
        'context.platform == "ios" && context.weeks >= 4'
    )


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("holdout: 0.05", "holdout: 0.00001", "4: The holdout of layer plan_page must be a number from 0 to 1 of at most 4 decimals: "
         "0.00001 has more than 4 decimals."),
        ("holdout: 0.05", "share: 0.05", "4: A layer has no key 'share': it may have name, description, holdout."),
        ("    holdout: 0.05", "    holdout: 0.05\n  - name: plan_page", "5: Layer plan_page stands here twice."),
        ("from: 500,", "from: -1,", "9: `from` in the layer of cards must be a whole number from 0 to 10000, not -1."),
        ("from: 500,", "from: 5e2,", "9: `from` in the layer of cards must be a whole number from 0 to 10000, not 5e2."),
        ("to: 10000", "to: 10001", "17: `to` in the layer of colours must be a whole number from 0 to 10000, not 10001."),
        ("to: 5250", "to: 500", "9: `to` in the layer of cards must be above its `from`, 500."),
        ("from: 500, ", "", "9: The layer of cards needs from."),
        ("layer: {name: plan_page, from: 500, to: 5250}", "layer: plan_page", "9: The layer of cards must be a mapping, not text."),
        ("from: 500", "from: 499", "9: cards takes the buckets 499 to 5250 of plan_page, whose first 500 are its holdout: "
         "take a range behind them."),
        ("from: 5250", "from: 5249", "17: colours takes the buckets 5249 to 10000 of plan_page, and cards takes 500 to 5250: ranges of "
         "experiments that are not completed must not overlap."),
        ("name: plan_page, from: 500", "name: plan_pages, from: 500", "9: cards is in the layer plan_pages, which `layers` of this file "
         "does not list."),
        ('context.platform == "ios"', "context.platform ==", "10: The targeting of cards can't be used: it is not a valid CEL expression "
         "(1:20: Syntax error: mismatched input '<EOF>')."),
        ('context.platform == "ios"', 'platform == "ios"', "10: The targeting of cards can't be used: it uses platform; a rule can "
         "only use unit_type and context."),
        ('context.platform == "ios"', "lower(context.platform)", "10: The targeting of cards can't be used: it calls lower, which is "
         "not a CEL function."),
        ('context.platform == "ios"', "yes", "10: The targeting of cards must be text, not yes or no: put it in quotes."),
        ('context.platform == "ios"', '"context.a == \\"\\0\\""', "10: The targeting of cards holds a character that PostgreSQL "
         "can't keep: NUL, or half of one."),
        ("h0001: with_cards", "1: with_cards", "11: A unit in the overrides of cards must be text, not a number: put it in quotes."),
        ("h0001: with_cards", "a: control, a: control", "11: The overrides of cards have the unit a twice."),
        ("h0001: with_cards", "u" * 256 + ": control", "11: A unit in the overrides of cards has 256 characters, of at most 255."),
        ("h0001: with_cards", '"a\\0": control', "11: A unit in the overrides of cards holds a character that PostgreSQL can't keep: NUL, "
         "or half of one."),
        ("{h0001: with_cards}", "[h0001]", "11: The overrides of cards must be a mapping, not a list."),
        ("layers:\n", "layers: 3\nlayer:\n", "2: experiments.yml has no key 'layer': it may have experiments, layers."),
    ],
)  # fmt: skip
def test_a_broken_rule_is_told_with_file_and_line(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert old in FILE
    assert problems(tmp_path, FILE.replace(old, new, 1))[0] == f"experiments.yml:{expected}"


def test_every_override_that_is_wrong_is_told(tmp_path: Path) -> None:
    text = FILE.replace("{h0001: with_cards}", "{1: control, b: control, c: yes}")
    assert problems(tmp_path, text) == [
        "experiments.yml:11: A unit in the overrides of cards must be text, not a number: put it in quotes.",
        "experiments.yml:11: The variant of c in the overrides of cards must be text, not yes or no: put it in quotes.",
    ]


def test_a_completed_experiment_has_given_its_range_back(tmp_path: Path) -> None:
    text = (
        FILE.replace("status: active", "status: completed")
        .replace("from: 5250", "from: 500")
        .replace("500, to: 5250", "0, to: 5250")
    )
    assert [entry.status for entry in config_of(tmp_path, text, NO_POLICIES).experiments] == ["completed", "draft"]


def test_a_layer_that_is_wrong_is_told_once_and_not_as_missing(tmp_path: Path) -> None:
    assert problems(tmp_path, FILE.replace("holdout: 0.05", "holdout: most")) == [
        "experiments.yml:4: The holdout of layer plan_page must be a number from 0 to 1, not text."
    ]


def test_ranges_of_other_layers_are_no_matter(tmp_path: Path) -> None:
    text = FILE.replace("experiments:", "  - name: other\nexperiments:").replace(
        "{name: plan_page, from: 5250", "{name: other, from: 0"
    )
    assert len(config_of(tmp_path, text + MORE, NO_POLICIES).experiments) == 3
