"""Targeting rules in CEL: which rules are rejected, and what a valid rule returns for a context."""

from typing import Any

import pytest

from experimentation.assignments.targeting import MAX_RULE, MAX_VALUES, Targeting, TargetingError, TargetingInput


@pytest.mark.parametrize(
    ("rule", "context", "holds"),
    [
        ('context.platform == "ios"', {"platform": "ios"}, True),
        ('context.platform == "ios"', {"platform": "web"}, False),
        ('context.platform == "ios"', {}, False),
        ('context.region in ["north", "south"]', {"region": "south"}, True),
        ('has(context.plan) && context.plan != "free"', {}, False),
        ('!has(context.plan) || context.plan != "free"', {}, True),
        ('unit_type == "user" && context.locale.startsWith("de")', {"locale": "de-AT"}, True),
        ("context.age >= 18 && context.age < 65", {"age": 18}, True),
        ("context.age >= 18", {"age": "18"}, None),
        ("context.age >= 18", {"age": None}, None),
        ('context["app-version"].matches("^2[.]")', {"app-version": "2.4"}, True),
        ("context.tags.exists(tag, tag == 'beta')", {"tags": ["alpha", "beta"]}, True),
        ("context.tags.exists(tag, tag == 'beta')", {"tags": 3}, None),
        ("context.flag", {"flag": True}, True),
        ("context.flag", {"flag": "yes"}, None),
        ("context.big > 1", {"big": 2**80}, True),
        ("context.tags[5] == 1", {"tags": []}, None),
    ],
)
def test_rule_matches_context(rule: str, context: dict[str, Any], holds: bool | None) -> None:
    assert Targeting(rule).holds(TargetingInput("user", context)) is holds


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ("context.platform ==", "not a valid CEL expression"),
        ("(((", "not a valid CEL expression"),
        ("(" * MAX_RULE, "not a valid CEL expression"),
        ("", "not a valid CEL expression"),
        ("unit_id == 'h1'", "it uses unit_id; a rule can only use unit_type and context"),
        ("platform == 'ios'", "it uses platform"),
        ("has(context.a) && lookup(context.a)", "it calls lookup"),
        ("1 + 1", "it returns 2; a rule must return true or false"),
        ("'ios'", "it returns 'ios'"),
        ("'a'.matches('[')", "it can't be evaluated"),
        ("context.a.matches(context.b)", "the pattern of `matches` must be a string literal"),
        ("true || " * MAX_RULE + "true", "at most 2,000 are allowed"),
    ],
)
def test_invalid_rule_raises_targeting_error(rule: str, why: str) -> None:
    with pytest.raises(TargetingError) as raised:
        Targeting(rule)
    assert why in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("wide", [{"a": [1] * MAX_VALUES}, {str(n): {} for n in range(MAX_VALUES)}])
def test_rule_is_not_evaluated_when_context_has_too_many_values(wide: dict[str, Any]) -> None:
    rule = Targeting("has(context.a) || true")
    assert rule.holds(TargetingInput("user", wide)) is None
    assert rule.holds(TargetingInput("user", {"a": [1] * (MAX_VALUES - 2)})) is True


def test_targeting_input_can_be_used_for_many_rules() -> None:
    targeting_input = TargetingInput("user", {"n": 3})
    assert [Targeting(f"context.n > {n}").holds(targeting_input) for n in range(5)] == [True, True, True, False, False]
