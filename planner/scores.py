"""How good a plan is: the five offline scores, and whether it keeps the budget. Pure functions in [0, 1], higher is better.

None means that a score does not apply to the row (no constraint, no budget); its mean leaves such rows out.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import combinations

from planner.catalogue import Catalogue
from planner.constraints import has_constraint, over_budget, violations
from product.protocol import ALIGNMENT, CONSTRAINTS, DIVERSITY, EDITS, LEFTOVERS, Plan, Row, RowInput

STAPLES = frozenset(
    {
        "salt",
        "pepper",
        "black pepper",
        "salt and pepper",
        "water",
        "oil",
        "olive oil",
        "vegetable oil",
        "sugar",
        "flour",
    }
    | {
        "cumin",
        "ground coriander",
        "smoked paprika",
        "paprika",
        "turmeric",
        "cinnamon",
        "garam masala",
        "curry powder",
        "allspice",
    }
    | {
        "oregano",
        "chili flakes",
        "bay leaves",
        "mustard seeds",
        "cardamom",
        "saffron",
        "sumac",
        "za'atar",
        "five-spice powder",
    }
    | {
        "ras el hanout",
        "fennel seeds",
        "caraway seeds",
        "sesame seeds",
        "cornstarch",
        "brown sugar",
        "baking powder",
        "vanilla",
    }
)
"""Ingredients that keep for months once opened: never counted as left over."""


def plan_alignment(predicted: Iterable[str], accepted: Iterable[str]) -> float:
    """Jaccard index of the two sets of recipe ids: shared ÷ all (Jaccard, 1901). Two empty plans score 0: nothing was predicted."""
    left, right = set(predicted), set(accepted)
    return len(left & right) / len(left | right) if left and right else 0.0


def constraint_respect(catalogue: Catalogue, row_input: RowInput, plan: Plan) -> float | None:
    """1 if every meal keeps the household's hard rules, else 0; None where the household has none.

    A repeated meal breaks a rule of the plan, not of the household, and is not counted here.
    """
    if not has_constraint(row_input):
        return None
    return 0.0 if any(broken.rule != "repeat" for broken in violations(catalogue, row_input, plan)) else 1.0


def levenshtein(left: Sequence[str], right: Sequence[str]) -> int:
    """Fewest insertions, deletions and substitutions that turn one sequence into the other (Levenshtein, 1966).

    Computed row by row (Wagner and Fischer, 1974).
    """
    previous = list(range(len(right) + 1))
    for position, item in enumerate(left, start=1):
        current = [position]
        for column, other in enumerate(right, start=1):
            current.append(min(previous[column] + 1, current[-1] + 1, previous[column - 1] + (item != other)))
        previous = current
    return previous[-1]


def edit_distance(predicted: Sequence[str], accepted: Sequence[str]) -> float:
    """1 − edits ÷ meals of the longer plan, over the recipes in the order of their days.

    An edit adds, removes or replaces one meal; other servings of the same meal are not an edit. Two empty plans score 0.
    """
    longer = max(len(predicted), len(accepted))
    return 1.0 - levenshtein(predicted, accepted) / longer if longer else 0.0


def diversity(catalogue: Catalogue, recipe_ids: Sequence[str]) -> float:
    """1 − mean Jaccard similarity of the ingredients of every two meals: intra-list diversity (Smyth and McClave, 2001).

    A plan of fewer than two meals has no variety: 0.
    """
    sets = [set(_ingredients(catalogue, recipe_id)) for recipe_id in recipe_ids]
    pairs = list(combinations(sets, 2))
    if not pairs:
        return 0.0
    return 1.0 - sum(len(a & b) / len(a | b) if a or b else 1.0 for a, b in pairs) / len(pairs)


def leftovers(catalogue: Catalogue, row_input: RowInput, recipe_ids: Sequence[str]) -> float | None:
    """Share of what could be left over that the plan uses up; staples aside, by ingredient name.

    Two kinds of things can be left over: what is in the pantry, used up by at least one meal that needs it; and what the plan buys and
    opens, used up when at least two of its meals need it. None where there is neither; an empty plan uses nothing: 0.
    """
    if not recipe_ids:
        return 0.0
    pantry = {item["name"].strip().casefold() for item in (row_input.get("pantry") or {}).get("items") or ()} - STAPLES
    needed = Counter(name for recipe_id in recipe_ids for name in set(_ingredients(catalogue, recipe_id)) - STAPLES)
    opened = {name: meals for name, meals in needed.items() if name not in pantry}
    if not pantry and not opened:
        return None
    used_up = sum(1 for name in pantry if name in needed) + sum(1 for meals in opened.values() if meals >= 2)
    return used_up / (len(pantry) + len(opened))


def budget_respect(catalogue: Catalogue, row_input: RowInput, plan: Plan) -> float | None:
    """1 within the budget, else 0; None without a budget or where a meal's cost is unknown. Reported separately: not a hard rule."""
    over = over_budget(catalogue, row_input, plan)
    return None if over is None else 0.0 if over else 1.0


def all_scores(catalogue: Catalogue, row: Row, plan: Plan) -> dict[str, float | None]:
    """Every score of one plan for one dataset row, by the name under which it is reported."""
    predicted = _in_order(plan)
    accepted = _in_order(row["target"]["accepted_plan"])
    row_input = row["input"]
    return {
        ALIGNMENT: plan_alignment(predicted, accepted),
        CONSTRAINTS: constraint_respect(catalogue, row_input, plan),
        EDITS: edit_distance(predicted, accepted),
        DIVERSITY: diversity(catalogue, predicted),
        LEFTOVERS: leftovers(catalogue, row_input, predicted),
        "budget_respect_score": budget_respect(catalogue, row_input, plan),
    }


def _in_order(plan: Plan) -> list[str]:
    return [meal["recipe_id"] for meal in sorted(plan["meals"], key=lambda meal: meal["day"])]


def _ingredients(catalogue: Catalogue, recipe_id: str) -> list[str]:
    """Names in lower case; a recipe that the catalogue does not know has none (`violations` reports it)."""
    recipe = catalogue.get(recipe_id)
    return [] if recipe is None else [name.strip().casefold() for name in recipe.ingredients]
