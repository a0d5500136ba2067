"""Layers, targeting and overrides in experiments.yml: what they say, and every broken rule with its file and line."""

from decimal import Decimal
from pathlib import Path

import pytest
from ground_support import NO_POLICIES, assert_problem, config_of

from experimentation.runs.run import LayerRange
from foundation.yaml_files import ConfigError

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


def test_layers_targeting_and_overrides_are_read(tmp_path: Path) -> None:
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
    assert cards.place_of("layer").line == 9
    assert (cards.targeting, cards.overrides) == ('context.platform == "ios"', {"h0001": "with_cards"})
    assert (colours.targeting, colours.overrides) == (None, {})


def test_layers_may_follow_experiments_and_need_no_holdout(tmp_path: Path) -> None:
    layers, _, experiments = FILE.partition("experiments:")
    layers = layers.replace("    holdout: 0.05\n", "")
    behind = f"experiments:{experiments}{layers}"
    read = config_of(tmp_path, behind, NO_POLICIES)
    assert [str(layer.holdout) for layer in read.layers] == ["0.0000"]
    assert [entry.name for entry in read.experiments] == ["cards", "colours"]


def test_rule_may_span_several_lines(tmp_path: Path) -> None:
    text = FILE.replace(
        'context.platform == "ios"\n', '>-\n      context.platform == "ios"\n      && context.weeks >= 4\n'
    )
    assert config_of(tmp_path, text, NO_POLICIES).experiments[0].targeting == (
        'context.platform == "ios" && context.weeks >= 4'
    )


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("holdout: 0.05", "holdout: 0.00001", 4, "plan_page holdout at most 4 decimals 0.00001"),
        ("holdout: 0.05", "share: 0.05", 4, "Unknown key share: use name, description, holdout"),
        ("    holdout: 0.05", "    holdout: 0.05\n  - name: plan_page", 5, "name plan_page is repeated"),
        ("from: 500,", "from: -1,", 9, "cards layer.from must be greater than or equal to 0, not -1"),
        ("from: 500,", "from: 5e2,", 9, "cards layer.from must be a whole number, not 5e2"),
        ("to: 10000", "to: 10001", 17, "colours layer.to less than or equal to 10000, not 10001"),
        ("to: 5250", "to: 500", 9, "cards layer.to greater than `from`, 500"),
        ("from: 500, ", "", 9, "cards layer needs from"),
        ("layer: {name: plan_page, from: 500, to: 5250}", "layer: plan_page", 9, "cards layer mapping, not text"),
        ("from: 500", "from: 499", 9, "cards 499 to 5250 of plan_page first 500 holdout"),
        ("from: 5250", "from: 5249", 17, "colours 5249 to 10000 of plan_page cards 500 to 5250 overlap"),
        ("name: plan_page, from: 500", "name: plan_pages, from: 500", 9, "cards layer plan_pages `layers` not list"),
        ('context.platform == "ios"', "context.platform ==", 10, "cards targeting can't be used CEL"),
        ('context.platform == "ios"', 'platform == "ios"', 10, "cards targeting can't be used platform context"),
        ('context.platform == "ios"', "lower(context.platform)", 10, "cards targeting can't be used lower"),
        ('context.platform == "ios"', "yes", 10, "cards targeting must be text, not yes or no quotes"),
        ('context.platform == "ios"', '"context.a == \\"\\0\\""', 10, "cards targeting character PostgreSQL NUL"),
        ("h0001: with_cards", "1: with_cards", 11, "key of cards overrides must be text, not a number quotes"),
        ("h0001: with_cards", "a: control, a: control", 11, "key a is repeated"),
        ("h0001: with_cards", "u" * 256 + ": control", 11, "key of cards overrides 256 at most 255"),
        ("h0001: with_cards", '"a\\0": control', 11, "key of cards overrides character PostgreSQL NUL"),
        ("{h0001: with_cards}", "[h0001]", 11, "cards overrides must be a mapping, not a list"),
        ("layers:\n", "layers: 3\nlayer:\n", 2, "Unknown key layer. Did you mean layers?"),
    ],
)  # fmt: skip
def test_file_is_refused_with_line_and_rule(tmp_path: Path, old: str, new: str, line: int, words: str) -> None:
    assert old in FILE
    assert_problem(problems(tmp_path, FILE.replace(old, new, 1)), f"experiments.yml:{line}: ", words)


def test_every_wrong_override_is_reported(tmp_path: Path) -> None:
    text = FILE.replace("{h0001: with_cards}", "{1: control, b: control, c: yes}")
    assert problems(tmp_path, text) == [
        "experiments.yml:11: A key of experiments[cards].overrides must be text, not a number: put it in quotes.",
        "experiments.yml:11: experiments[cards].overrides.c must be text, not yes or no: put it in quotes.",
    ]


def test_range_of_a_completed_experiment_is_free(tmp_path: Path) -> None:
    text = (
        FILE.replace("status: active", "status: completed")
        .replace("from: 5250", "from: 500")
        .replace("500, to: 5250", "0, to: 5250")
    )
    assert [entry.status for entry in config_of(tmp_path, text, NO_POLICIES).experiments] == ["completed", "draft"]


def test_wrong_layer_is_reported_once_and_not_as_missing(tmp_path: Path) -> None:
    assert problems(tmp_path, FILE.replace("holdout: 0.05", "holdout: most")) == [
        "experiments.yml:4: layers[plan_page].holdout must be a number from 0 to 1, not text."
    ]


def test_ranges_of_different_layers_may_overlap(tmp_path: Path) -> None:
    text = FILE.replace("experiments:", "  - name: other\nexperiments:").replace(
        "{name: plan_page, from: 5250", "{name: other, from: 0"
    )
    assert len(config_of(tmp_path, text + MORE, NO_POLICIES).experiments) == 3
