"""How a row's input is written for a causal language model, and how a recipe is written as one word.

The oldest history comes first and the household last, so that cutting a long prompt on the left loses the least. History reaches
past the days in which a recipe may not be repeated: what was eaten before says more about taste than what may be eaten next.
The household's id is not written: the model has to work for households that it never saw.
"""

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

HISTORY_ITEMS = 60
"""Most meals of history; the newest are kept."""

BUDGET_STEP = 10
PREP_STEP_MINUTES = 15
MOST_PEOPLE = 8
MOST_WEEKS = 9
SWAPPED_IN = "chosen"
"""Written before a meal that the household itself swapped in: the strongest sign of taste."""


def item_text(recipe_id: str) -> str:
    """One word for a recipe id, without spaces and different for different ids."""
    return "r:" + quote(recipe_id, safe="-._~")


def prompt_text(row_input: Mapping[str, Any]) -> str:
    """What the model continues with recipes. Missing parts (no history, no budget) are left out.

    Raises KeyError or TypeError when the row has no household or constraints: such a row is broken and fails on its own.
    """
    household, constraints = row_input["household"], row_input["constraints"]
    words = _history(row_input.get("recent_plans") or (), row_input.get("previous_plan"))
    words += ["household", f"people:{min(int(household['size']), MOST_PEOPLE)}"]
    words += _words("likes", household["preferences"])
    words += _words("needs", household["restrictions"])
    words += _words("without", constraints["excluded_ingredients"])
    if constraints.get("max_prep_time") is not None:
        words.append(f"minutes:{_step(constraints['max_prep_time'], PREP_STEP_MINUTES)}")
    if constraints.get("budget") is not None:
        words.append(f"budget:{_step(constraints['budget'], BUDGET_STEP)}")
    words += _words("has", [item["name"] for item in (row_input.get("pantry") or {}).get("items") or ()])
    words += [str(row_input.get(name)) for name in ("workflow_type", "mode") if row_input.get(name)]
    return " ".join([*words, "plan"])


def _history(recent_plans: Sequence[Mapping[str, Any]], previous_plan: Mapping[str, Any] | None) -> list[str]:
    """Accepted plans, oldest first; the previous plan alone where a row carries no more."""
    plans = list(recent_plans)
    if not plans and previous_plan:
        plans = [{"days_ago": 7, "meals": previous_plan["meals"]}]
    kept: list[list[str]] = []
    meals_left = HISTORY_ITEMS
    for plan in reversed(plans):
        meals = plan["meals"][:meals_left]
        if not meals:
            break
        meals_left -= len(meals)
        kept.append(_plan_words(int(plan["days_ago"]), meals))
    return [word for words in reversed(kept) for word in words]


def _plan_words(days_ago: int, meals: Sequence[Mapping[str, Any]]) -> list[str]:
    words = [f"weeks-ago:{min((days_ago + 3) // 7, MOST_WEEKS)}"]
    for meal in meals:
        if meal.get("swapped_in"):
            words.append(SWAPPED_IN)
        words.append(item_text(meal["recipe_id"]))
    return words


def _words(kind: str, values: Sequence[str]) -> list[str]:
    return sorted(f"{kind}:{'_'.join(value.lower().split())}" for value in values)


def _step(value: float, step: int) -> int:
    """The value rounded up to a whole number of steps, so that near values are the same word."""
    return int(-(-float(value) // step)) * step
