"""Targeting rules in CEL: what is refused when it is written, and what a rule says of a context."""

from typing import Any

import pytest

from experimentation.assignments.targeting import MAX_RULE, MAX_VALUES, Asker, Targeting, TargetingError


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
def test_what_a_rule_says(rule: str, context: dict[str, Any], holds: bool | None) -> None:
    assert Targeting(rule).holds(Asker("user", context)) is holds


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ("context.platform ==", "it is no CEL expression"),
        ("(((", "it is no CEL expression"),
        ("(" * MAX_RULE, "it is no CEL expression"),
        ("", "it is no CEL expression"),
        ("unit_id == 'h1'", "it names unit_id, and a rule knows only unit_type and context"),
        ("platform == 'ios'", "it names platform"),
        ("has(context.a) && lookup(context.a)", "it calls lookup, which CEL does not have"),
        ("1 + 1", "it says 2, and a rule must say true or false"),
        ("'ios'", "it says 'ios'"),
        ("'a'.matches('[')", "it can't be evaluated"),
        ("context.a.matches(context.b)", "the pattern of `matches` must stand in the rule as text"),
        ("true || " * MAX_RULE + "true", "characters, and at most 2,000 are allowed"),
    ],
)
def test_a_rule_that_cannot_work_is_refused(rule: str, why: str) -> None:
    with pytest.raises(TargetingError) as refused:
        Targeting(rule)
    assert why in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("wide", [{"a": [1] * MAX_VALUES}, {str(n): {} for n in range(MAX_VALUES)}])
def test_a_context_of_too_many_values_is_judged_by_no_rule(wide: dict[str, Any]) -> None:
    rule = Targeting("has(context.a) || true")
    assert rule.holds(Asker("user", wide)) is None
    assert rule.holds(Asker("user", {"a": [1] * (MAX_VALUES - 2)})) is True


def test_an_asker_serves_many_rules() -> None:
    asker = Asker("user", {"n": 3})
    assert [Targeting(f"context.n > {n}").holds(asker) for n in range(5)] == [True, True, True, False, False]
