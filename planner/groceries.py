"""What the simulated world knows of food: the features that tastes are about, and in which amounts things are bought."""

from typing import Any

import numpy as np

from planner.catalogue import Catalogue
from planner.scores import STAPLES

_PIECES = frozenset(
    {
        "eggs",
        "onions",
        "red onion",
        "shallots",
        "carrots",
        "bell peppers",
        "lemon",
        "lime",
        "orange",
        "apples",
        "pears",
        "avocado",
    }
    | {
        "potatoes",
        "sweet potatoes",
        "tomatoes",
        "zucchini",
        "eggplant",
        "cucumber",
        "leeks",
        "mango",
        "chili peppers",
        "cauliflower",
    }
    | {
        "broccoli",
        "cabbage",
        "lettuce",
        "fennel",
        "corn tortillas",
        "flour tortillas",
        "naan",
        "pita bread",
        "burger buns",
    }
)
_BUNCHES = frozenset(
    {
        "basil",
        "parsley",
        "cilantro",
        "mint",
        "dill",
        "chives",
        "rosemary",
        "thyme",
        "sage",
        "tarragon",
        "thai basil",
        "scallions",
    }
    | {"radishes", "celery", "garlic", "ginger", "lemongrass"}
)
_CANS = frozenset(
    {"canned tomatoes", "coconut milk", "chickpeas", "black beans", "kidney beans", "cannellini beans", "canned tuna"}
)
_LIQUIDS = (
    "stock",
    "milk",
    "cream",
    "sauce",
    "vinegar",
    "wine",
    "yogurt",
    "mirin",
    "marsala",
    "tamari",
    "honey",
    "syrup",
    "oil",
)


def bought(name: str, rng: np.random.Generator) -> dict[str, Any]:
    """A pantry item (`name`, `quantity`, `unit`) in an amount in which one would find it in a kitchen."""
    if name in _PIECES:
        return {"name": name, "quantity": float(rng.integers(1, 7)), "unit": "piece"}
    if name in _BUNCHES:
        return {"name": name, "quantity": 1.0, "unit": "bunch"}
    if name in _CANS:
        return {"name": name, "quantity": float(rng.integers(1, 4)), "unit": "can"}
    unit = "ml" if any(word in _LIQUIDS for word in name.split()) else "g"
    return {"name": name, "quantity": float(50 * rng.integers(1, 11)), "unit": unit}


def taste_features(catalogue: Catalogue) -> np.ndarray:
    """(recipes, features): labels weigh most, common ingredients less, minutes and cost some; columns centred and scaled."""
    recipes = list(catalogue)
    columns = []
    for label, carriers in catalogue.by_label.items():
        if 2 <= len(carriers) < len(recipes):
            columns.append((1.6, [float(label in recipe.labels) for recipe in recipes]))
    for name, count in catalogue.ingredient_counts.items():
        if name not in STAPLES and 5 <= count < len(recipes) / 2:
            columns.append((0.5, [float(name in recipe.ingredients) for recipe in recipes]))
    minutes = [float(recipe.prep_minutes or 0) for recipe in recipes]
    columns.append((2.0, [float(np.log1p(value)) for value in minutes]))
    columns.append((1.0, [float(recipe.cost_per_serving or 0.0) for recipe in recipes]))
    matrix = np.array([values for _, values in columns]).T
    matrix -= matrix.mean(axis=0)
    spread = matrix.std(axis=0)
    # A rare label would dominate if scaled to spread 1; the square root keeps common ones ahead.
    scaled = matrix / np.sqrt(np.maximum(spread, 1e-9))
    return np.asarray(scaled * np.array([weight for weight, _ in columns]))
