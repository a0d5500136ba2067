"""A recipe catalogue and a dated cooking diary of somebody else → recipes, households, reconstructed events, and what was refused.

What a diary does not say is not invented: no plan_generated, no edits, no pantry, no constraints. A plan is a person's next
`plan_size` different recipes in order of time, accepted when its last meal was cooked, and marked `reconstructed`. Ids are made from
the plan itself, so that importing twice, or a longer diary later, stores nothing twice.
"""

import csv
import hashlib
import io
import json
import os
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from planner.table_files import FileRefusedError, TableFile, read_table
from planner.table_values import (
    LONGEST_ID,
    UnusableError,
    clean_text,
    id_text,
    minutes,
    moment_of,
    number,
    shown,
    texts,
)
from planner.tables import DOMAIN_SCHEMAS, domain_frame

PLAN_IDS = uuid.UUID("5d0c0f0e-6f1c-5b57-9d8c-7f2f6f0f7a11")
"""Namespace of the ids of reconstructed plans and their events; never change it: an import would store everything again."""

COLUMN_GUESSES: dict[str, dict[str, tuple[str, ...]]] = {
    "recipes": {
        "id": ("id", "recipe_id", "recipeid"),
        "title": ("title", "name", "recipe_name", "recipe"),
        "ingredients": ("ingredients", "ingredient_list"),
        "minutes": ("minutes", "prep_minutes", "prep_time", "total_minutes", "total_time"),
        "tags": ("tags", "dietary_tags", "keywords", "labels"),
        "servings": ("servings", "serves", "portions"),
        "cost": ("cost", "price"),
        "submitted": ("submitted", "published", "created", "date"),
    },
    "interactions": {
        "person": ("user_id", "household_id", "person_id", "user", "household", "person", "userid", "author_id"),
        "recipe": ("recipe_id", "recipe", "recipeid", "item_id"),
        "date": ("date", "cooked_at", "cooked_on", "day", "timestamp", "time", "datetime"),
        "rating": ("rating", "stars", "score"),
    },
}
"""File → field → column names that are taken for it, in this order, in any case of letters."""

REQUIRED = {"recipes": ("id",), "interactions": ("person", "recipe", "date")}
DEFAULT_SERVINGS = 4


class HistoryRefusedError(FileRefusedError):
    """A file was read, and can't be used as what it was given as; the message says why."""


@dataclass(frozen=True)
class HistoryOptions:
    """How a diary is read. `mapping`: field of COLUMN_GUESSES → column name, where the guess is not right."""

    mapping: Mapping[str, str] | None = None
    plan_size: int = 5
    """Different recipes of one plan (1–7): they get the days 0, 1, 2, …"""
    household_size: int = 1
    """People of every household, and servings of every meal: a diary names one person."""
    max_minutes: int = 24 * 60
    """A recipe that takes longer is refused with all its records: such numbers are typing errors, marinades and freezing."""
    unrated: float | None = 0.0
    """The rating that means "no rating given"; None when every number is a rating."""
    not_after: datetime | None = None
    """Records after this moment are refused; None means now."""


@dataclass(frozen=True)
class Reject:
    """One row that can't be used: its file, the line on which it starts, a reason to count by, and the detail."""

    file: str
    line: int
    reason: str
    detail: str


@dataclass(frozen=True)
class History:
    """What came of the two files. `events` are plan_accepted, in order of (timestamp, event id); `rejects` in order of file and line."""

    recipes: pl.DataFrame
    households: pl.DataFrame
    events: list[dict[str, Any]]
    rejects: list[Reject]
    counts: dict[str, int]
    digest: str
    """SHA-256 of both files and the options: what `exp.imports` remembers."""

    @property
    def tables(self) -> dict[str, pl.DataFrame]:
        """All four domain tables; a diary says nothing about pantries and constraints."""
        empty = {name: domain_frame(name, ()) for name in DOMAIN_SCHEMAS}
        return {**empty, "recipes": self.recipes, "households": self.households}

    def rejects_by_reason(self) -> dict[str, int]:
        """Reason → how many rows."""
        return dict(sorted(Counter(reject.reason for reject in self.rejects).items()))


@dataclass(frozen=True)
class _Record:
    person: str
    recipe: str
    moment: datetime
    dated: str
    rating: float | None


def read_history(recipes_file: Path, interactions_file: Path, options: HistoryOptions | None = None) -> History:
    """Read both files. Nothing is stored; two calls with the same files and options give the same.

    Raises FileRefusedError (or its HistoryRefusedError) when a file is broken, lacks a column, or has no usable row.
    """
    options = options or HistoryOptions()
    _check(options)
    rejects: list[Reject] = []
    recipe_table, diary_table = read_table(recipes_file), read_table(interactions_file)
    recipe_columns = _columns(recipe_table, "recipes", options.mapping or {})
    diary_columns = _columns(diary_table, "interactions", options.mapping or {})
    recipes, refused = _recipes(recipe_table, recipe_columns, options, rejects)
    records = _records(diary_table, diary_columns, set(recipes), refused, options, rejects)
    _require_some(recipe_table, len(recipes), rejects, "recipe")
    _require_some(diary_table, len(records), rejects, "record")
    events, left_over, repeated = _events(records, options)
    first = {record.person: record.moment for record in reversed(records)}
    households: list[dict[str, Any]] = [
        {
            "id": person,
            "size": options.household_size,
            "preferences": [],
            "restrictions": [],
            "region": None,
            "created_at": moment,
        }
        for person, moment in first.items()
    ]
    counts = {
        "recipes_read": len(recipe_table.rows) + len(recipe_table.uneven),
        "recipes": len(recipes),
        "records_read": len(diary_table.rows) + len(diary_table.uneven),
        "records": len(records),
        "households": len(first),
        "plans": len(events),
        "rated_plans": sum("rating_mean" in event["metrics"] for event in events),
        "records_repeated_in_a_plan": repeated,
        "records_of_unfinished_plans": left_over,
        "rejected": len(rejects),
    }
    return History(
        domain_frame("recipes", recipes.values()),
        domain_frame("households", households),
        events,
        sorted(rejects, key=lambda reject: (reject.file, reject.line)),
        counts,
        _digest(recipes_file, interactions_file, options),
    )


def write_rejects(rejects: Iterable[Reject], path: Path) -> None:
    """Write file, line, reason and detail of each reject as CSV, whole or not at all. Raises OSError."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "line", "reason", "detail"])
    writer.writerows((reject.file, reject.line, reject.reason, reject.detail) for reject in rejects)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    scratch.write_text(text.getvalue(), encoding="utf-8", newline="")
    os.replace(scratch, path)


def _check(options: HistoryOptions) -> None:
    known = {field for fields in COLUMN_GUESSES.values() for field in fields}
    unknown = sorted(set(options.mapping or {}) - known)
    if unknown:
        raise HistoryRefusedError(
            f"There is no field {unknown[0]!r} to map a column to; fields are {', '.join(sorted(known))}."
        )
    if not 1 <= options.plan_size <= 7:
        raise HistoryRefusedError(f"A plan has 1 to 7 meals, one a day, and {options.plan_size} were asked for.")
    if options.household_size < 1 or options.max_minutes < 1:
        raise HistoryRefusedError(
            "A household has at least one person, and the longest recipe takes at least a minute."
        )


def _columns(table: TableFile, kind: str, mapping: Mapping[str, str]) -> dict[str, int]:
    """Field → position of its column."""
    by_name = {name.casefold(): index for index, name in reversed(list(enumerate(table.columns)))}
    found = {}
    for field, guesses in COLUMN_GUESSES[kind].items():
        if field in mapping:
            if mapping[field] not in table.columns:
                raise HistoryRefusedError(
                    f"{table.path} has no column {mapping[field]!r} for {field}; its columns are {', '.join(table.columns)}."
                )
            found[field] = table.columns.index(mapping[field])
        else:
            guess = next((name for name in guesses if name in by_name), None)
            if guess is not None:
                found[field] = by_name[guess]
    missing = [field for field in REQUIRED[kind] if field not in found]
    if missing:
        raise HistoryRefusedError(
            f"{table.path}, line 1: no column for {' and '.join(missing)} among {', '.join(table.columns)}; "
            f"name it, as in {missing[0]}=COLUMN."
        )
    return found


def _recipes(
    table: TableFile, columns: Mapping[str, int], options: HistoryOptions, rejects: list[Reject]
) -> tuple[dict[str, dict[str, Any]], set[str]]:
    """Usable recipes by id, and the ids of those that were refused."""
    recipes: dict[str, dict[str, Any]] = {}
    refused: set[str] = set()
    name = table.path.name
    rejects += [
        Reject(name, line, "malformed", f"{count} values, {len(table.columns)} columns") for line, count in table.uneven
    ]
    for line, values in table.rows:
        given = {field: values[index] for field, index in columns.items()}
        recipe_id = id_text(given["id"])
        try:
            if recipe_id is None or any(character.isspace() for character in recipe_id):
                raise UnusableError(
                    "bad_id", f"{shown(given['id'])} is no id: one word of at most {LONGEST_ID} characters"
                )
            if recipe_id in recipes:
                raise UnusableError("duplicate_recipe", f"the id {recipe_id} stands in an earlier line")
            recipes[recipe_id] = {
                "id": recipe_id,
                "title": clean_text(given.get("title")) or recipe_id,
                "ingredients": texts(given.get("ingredients"), "ingredients"),
                "prep_minutes": minutes(given.get("minutes"), options.max_minutes),
                "dietary_tags": list(dict.fromkeys(tag.casefold() for tag in texts(given.get("tags"), "tags"))),
                "servings": int(number(given.get("servings"), "servings", 1, 1000) or DEFAULT_SERVINGS),
                "cost": number(given.get("cost"), "cost", 0, 999_999),
                "submitted": moment_of(given.get("submitted"), None)[0].date()
                if clean_text(given.get("submitted"))
                else None,
            }
        except UnusableError as unusable:
            rejects.append(Reject(name, line, unusable.reason, unusable.detail))
            if recipe_id is not None:
                refused.add(recipe_id)
    return recipes, refused - set(recipes)


def _records(
    table: TableFile,
    columns: Mapping[str, int],
    recipes: set[str],
    refused: set[str],
    options: HistoryOptions,
    rejects: list[Reject],
) -> list[_Record]:
    """Usable records in order of (person, time, recipe): the order of lines in the file does not matter."""
    name, seen, records = table.path.name, set[tuple[str, str, datetime]](), []
    not_after = options.not_after or datetime.now(UTC)
    rejects += [
        Reject(name, line, "malformed", f"{count} values, {len(table.columns)} columns") for line, count in table.uneven
    ]
    for line, values in table.rows:
        given = {field: values[index] for field, index in columns.items()}
        person, recipe = id_text(given["person"]), id_text(given["recipe"])
        try:
            if person is None:
                raise UnusableError("bad_id", f"{shown(given['person'])} is no id of a person")
            if recipe in refused:
                raise UnusableError("refused_recipe", f"the recipe {recipe} was refused itself")
            if recipe is None or recipe not in recipes:
                raise UnusableError("unknown_recipe", f"no recipe {shown(given['recipe'])} in the catalogue")
            moment, dated = moment_of(given["date"], not_after)
            rating = number(given.get("rating"), "rating", -1e9, 1e9)
            if (person, recipe, moment) in seen:
                raise UnusableError("duplicate", f"{person} cooked {recipe} at {dated} in an earlier line")
            seen.add((person, recipe, moment))
            records.append(_Record(person, recipe, moment, dated, None if rating == options.unrated else rating))
        except UnusableError as unusable:
            rejects.append(Reject(name, line, unusable.reason, unusable.detail))
    return sorted(records, key=lambda record: (record.person, record.moment, record.recipe))


def _events(records: list[_Record], options: HistoryOptions) -> tuple[list[dict[str, Any]], int, int]:
    """plan_accepted events; records of plans that never became complete; records that repeat a recipe of the open plan."""
    events: list[dict[str, Any]] = []
    repeated = 0
    open_plans: dict[str, list[tuple[_Record, datetime]]] = defaultdict(list)
    last: dict[str, datetime] = {}
    for record in records:
        # A diary of days does not say what came first within one: each meal is a microsecond after the one before, so that a plan
        # that ends on the day on which the next one starts still lies before it.
        moment = (
            max(record.moment, last[record.person] + timedelta(microseconds=1))
            if record.person in last
            else record.moment
        )
        last[record.person] = moment
        plan = open_plans[record.person]
        if any(earlier.recipe == record.recipe for earlier, _ in plan):
            repeated += 1
            continue
        plan.append((record, moment))
        if len(plan) == options.plan_size:
            events.append(_event(plan, options.household_size))
            open_plans[record.person] = []
    events.sort(key=lambda event: (event["timestamp"], event["event_id"]))
    return events, sum(map(len, open_plans.values())), repeated


def _event(plan: list[tuple[_Record, datetime]], servings: int) -> dict[str, Any]:
    person = plan[0][0].person
    plan_id = uuid.uuid5(PLAN_IDS, json.dumps([person, *([one.recipe, moment.isoformat()] for one, moment in plan)]))
    ratings = [record.rating for record, _ in plan if record.rating is not None]
    return {
        "event_id": str(uuid.uuid5(plan_id, "plan_accepted")),
        "event_type": "plan_accepted",
        "unit_type": "household",
        "unit_id": person,
        "experiments": [],
        "context": {"plan_source": "history", "workflow_type": "plan-first", "mode": "autopilot"},
        "metrics": {"rating_mean": sum(ratings) / len(ratings), "rating_count": len(ratings)} if ratings else {},
        "payload": {
            "plan_id": str(plan_id),
            "reconstructed": True,
            "started_at": plan[0][1].isoformat(),
            "meals": [{"day": day, "recipe_id": one.recipe, "servings": servings} for day, (one, _) in enumerate(plan)],
            "meal_dates": [record.dated for record, _ in plan],
        },
        "timestamp": plan[-1][1],
    }


def _require_some(table: TableFile, usable: int, rejects: list[Reject], what: str) -> None:
    if usable == 0:
        reasons = Counter(reject.reason for reject in rejects if reject.file == table.path.name)
        why = ", ".join(f"{reason} {count:,}" for reason, count in reasons.most_common())
        raise HistoryRefusedError(
            f"{table.path}: not one {what} can be used ({why}); are these the right files and columns?"
        )


def _digest(recipes_file: Path, interactions_file: Path, options: HistoryOptions) -> str:
    said = {**vars(options), "mapping": dict(options.mapping or {}), "not_after": None}
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    for path in (recipes_file, interactions_file):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
