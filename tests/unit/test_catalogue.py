"""The sample catalogue is plausible and consistent, and a catalogue is the same from any source."""

import json
from collections import Counter

import pytest

from planner.catalogue import DIETS, Catalogue, Recipe, sample_catalogue

# Written down apart from the catalogue, by what is in a food: a tag that contradicts these words is wrong.
MEAT = (
    *(
        "chicken",
        "beef",
        "steak",
        "brisket",
        "pork",
        "bacon",
        "pancetta",
        "prosciutto",
        "ham",
        "sausage",
        "bratwurst",
        "chorizo",
    ),
    *("merguez", "lamb", "turkey", "duck"),
)
FISH = (
    *(
        "salmon",
        "haddock",
        "cod",
        "fish",
        "sea bass",
        "tuna",
        "mackerel",
        "sardines",
        "trout",
        "anchovies",
        "shrimp",
        "mussels",
    ),
    *("squid", "crab", "oyster", "worcestershire", "kimchi", "red curry paste"),
)
RENNET = ("parmesan", "gruyere", "blue cheese", "pesto", "tortellini")
DAIRY = (
    *(
        "butter",
        "ghee",
        "milk",
        "cream",
        "creme",
        "yogurt",
        "buttermilk",
        "ricotta",
        "mozzarella",
        "cheddar",
        "feta",
        "halloumi",
    ),
    *(
        "paneer",
        "cheese",
        "mascarpone",
        "parmesan",
        "gruyere",
        "pesto",
        "tortellini",
        "naan",
        "brioche",
        "puff",
        "shortcrust",
    ),
)
NOT_DAIRY = ("coconut milk", "coconut yogurt", "peanut butter", "butter beans")
EGG = ("eggs", "egg", "mayonnaise", "fresh tagliatelle", "gnocchi", "tortellini", "brioche", "wonton")
GLUTEN = (
    *(
        "spaghetti",
        "linguine",
        "penne",
        "rigatoni",
        "macaroni",
        "orecchiette",
        "tagliatelle",
        "orzo",
        "lasagne",
        "gnocchi",
    ),
    *(
        "tortellini",
        "egg noodles",
        "udon",
        "soba",
        "ramen",
        "bulgur",
        "couscous",
        "barley",
        "farro",
        "flour",
        "breadcrumbs",
    ),
    *(
        "panko",
        "bread",
        "sourdough",
        "pita",
        "naan",
        "buns",
        "flour tortillas",
        "dough",
        "pastry",
        "wonton",
        "soy sauce",
        "miso",
    ),
    *("gochujang", "hoisin", "oyster sauce", "worcestershire", "italian sausage", "bratwurst", "enchilada"),
)
NOT_GLUTEN = ("chickpea flour",)
NUTS = ("peanut", "peanuts", "cashews", "almonds", "walnuts", "pine nuts", "pesto")
FORBIDDEN = {
    "vegetarian": (MEAT + FISH + RENNET, ("vegetarian hard cheese",)),
    "pescatarian": (MEAT + RENNET, ("fish stock",)),
    "vegan": (MEAT + FISH + RENNET + DAIRY + EGG + ("honey",), NOT_DAIRY),
    "gluten-free": (GLUTEN, NOT_GLUTEN),
    "dairy-free": (DAIRY, NOT_DAIRY),
    "nut-free": (NUTS, ()),
}


def has_word(ingredient: str, word: str) -> bool:
    return f" {word} " in f" {ingredient} "


def offenders(recipe: Recipe, diet: str) -> list[str]:
    words, harmless = FORBIDDEN[diet]
    return [item for item in recipe.ingredients if item not in harmless and any(has_word(item, word) for word in words)]


def test_tags_agree_with_ingredients_both_ways() -> None:
    wrong = [
        f"{recipe.id}: tagged {diet} with {offenders(recipe, diet)}"
        if diet in recipe.dietary_tags
        else f"{recipe.id}: nothing speaks against {diet}"
        for recipe in sample_catalogue()
        for diet in DIETS
        if (diet in recipe.dietary_tags) == bool(offenders(recipe, diet))
    ]
    assert wrong == []


def test_the_tag_check_finds_a_wrong_tag() -> None:
    recipe = Recipe("x", "Chicken", ("chicken thighs", "coconut milk"), 20, ("vegetarian",), 4)
    assert offenders(recipe, "vegetarian") == ["chicken thighs"]
    assert offenders(recipe, "dairy-free") == []


def test_main_protein_is_among_the_ingredients() -> None:
    meat = {"chicken": "chicken", "lamb": "lamb", "turkey": "turkey", "duck": "duck"}
    for recipe in sample_catalogue():
        for tag, word in meat.items():
            if tag in recipe.labels:
                assert any(word in item for item in recipe.ingredients) or (tag, "merguez" in recipe.ingredients) == (
                    "lamb",
                    True,
                )


def test_sample_catalogue_is_large_and_varied() -> None:
    catalogue = sample_catalogue()
    assert len(catalogue) >= 120
    assert len({recipe.title for recipe in catalogue}) == len(catalogue)
    assert len({frozenset(recipe.ingredients) for recipe in catalogue}) == len(catalogue)
    tags = Counter(tag for recipe in catalogue for tag in recipe.dietary_tags)
    assert tags["vegan"] >= 25 and tags["gluten-free"] >= 60 and tags["vegetarian"] >= 50
    minutes = [recipe.prep_minutes or 0 for recipe in catalogue]
    assert sum(m <= 30 for m in minutes) >= 40 and min(minutes) >= 15 and max(minutes) <= 240
    assert all(0.5 <= (recipe.cost_per_serving or 0) <= 8 for recipe in catalogue)
    assert all(4 <= len(recipe.ingredients) <= 14 and recipe.servings in (2, 4, 6) for recipe in catalogue)


def test_titles_name_only_ingredients_of_the_recipe() -> None:
    named = (
        "chicken",
        "shrimp",
        "salmon",
        "tofu",
        "lamb",
        "turkey",
        "eggplant",
        "cauliflower",
        "spinach",
        "lentil",
        "paneer",
    )
    for recipe in sample_catalogue():
        for word in named:
            if f" {word} " in f" {recipe.title.lower()} ".replace("-", " "):
                assert any(word in item for item in recipe.ingredients), (recipe.title, word)


def test_catalogue_survives_a_json_round_trip_in_any_order() -> None:
    catalogue = sample_catalogue()
    records = catalogue.to_records()
    assert Catalogue.from_records(json.loads(json.dumps(records))) == catalogue
    assert Catalogue.from_records(reversed(records)).ids == catalogue.ids == tuple(sorted(catalogue.ids))


def test_unknown_minutes_and_cost_stay_unknown() -> None:
    recipe = Recipe.from_record(
        {"id": "1", "title": "Soup", "ingredients": ["Water"], "dietary_tags": ["Vegan"], "servings": None}
    )
    assert (recipe.prep_minutes, recipe.cost, recipe.cost_per_serving, recipe.servings) == (None, None, None, 4)
    assert recipe.dietary_tags == ("vegan",)
    assert Recipe.from_record(recipe.to_record()) == recipe


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"id": "two words"}, "one word without spaces"),
        ({"id": ""}, "one word without spaces"),
        ({"id": "a", "prep_minutes": -3}, "Recipe a: prep_minutes must be a whole number of at least 0"),
        ({"id": "a", "cost": "nan"}, "Recipe a: cost must be a number of at least 0"),
        ({"id": "a", "servings": "many"}, "Recipe a"),
    ],
)
def test_invalid_records_are_refused(record: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe.from_record(record)


def test_duplicate_ids_and_empty_catalogues_are_refused() -> None:
    recipe = Recipe("a", "A", (), None, (), 4)
    with pytest.raises(ValueError, match="the id a twice"):
        Catalogue([recipe, recipe])
    with pytest.raises(ValueError, match="empty"):
        Catalogue([])
