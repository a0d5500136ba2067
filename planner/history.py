"""A user's recipe catalogue and dated cooking diary as recipes, households, reconstructed events, and rejected rows.

Nothing is invented: a diary has no plan_generated, no edits, no pantry, no constraints. A plan is a person's next `plan_size`
different recipes in order of time. It is accepted when its last meal was cooked, and marked `reconstructed`. Ids are derived from the
plan itself, so importing the same diary again, or a longer one later, stores nothing twice.
"""

import csv
import hashlib
import io
import json
import os
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from foundation.table_files import (
    FileRefusedError,
    Getter,
    JsonLinesFile,
    TableFile,
    UnreadableRow,
    UnusableError,
    digest_of,
    open_table,
    shown,
)
from planner.table_values import LONGEST_ID, clean_text, id_text, minutes, moment_of, number, texts
from planner.tables import DOMAIN_SCHEMAS, domain_frame

PLAN_IDS = uuid.UUID("5d0c0f0e-6f1c-5b57-9d8c-7f2f6f0f7a11")
"""Namespace of the ids of reconstructed plans and their events. Never change it: the next import would store everything again."""

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
"""File → field → column names that are tried for it, in this order, ignoring case."""

REQUIRED = {"recipes": ("id",), "interactions": ("person", "recipe", "date")}
DEFAULT_SERVINGS = 4


class HistoryRefusedError(FileRefusedError):
    """The options are impossible, or a file that can be read is not a catalogue or diary that can be used."""


@dataclass(frozen=True)
class HistoryOptions:
    """How a diary is read. `mapping`: field of COLUMN_GUESSES → column name, where the guess is wrong."""

    mapping: Mapping[str, str] | None = None
    plan_size: int = 5
    """Different recipes in a plan (1–7), on the days 0, 1, 2, …"""
    household_size: int = 1
    """People in every household, and servings of every meal, since a diary names one person."""
    max_minutes: int = 24 * 60
    """A recipe that takes longer is rejected with all its records: such numbers are typing errors, marinades and freezing."""
    unrated: float | None = 0.0
    """The rating that means "not rated"; None if every number is a rating."""
    not_after: datetime | None = None
    """Records after this moment are rejected; None means now."""


@dataclass(frozen=True)
class Reject:
    """One row that can't be used: its file, the line on which it starts, a reason to count by, and the detail."""

    file: str
    line: int
    reason: str
    detail: str


@dataclass(frozen=True)
class History:
    """The content of both files. `events` are plan_accepted, in order of (timestamp, event id); `rejects` in order of file and line."""

    recipes: pl.DataFrame
    households: pl.DataFrame
    events: list[dict[str, Any]]
    rejects: list[Reject]
    counts: dict[str, int]
    digest: str
    """SHA-256 of both files and the options, by which `exp.imports` knows them."""

    @property
    def tables(self) -> dict[str, pl.DataFrame]:
        """All four domain tables. Pantries and constraints are empty: a diary does not have them."""
        empty = {name: domain_frame(name, ()) for name in DOMAIN_SCHEMAS}
        return {**empty, "recipes": self.recipes, "households": self.households}

    def rejects_by_reason(self) -> dict[str, int]:
        """Reason → number of rows."""
        return dict(sorted(Counter(reject.reason for reject in self.rejects).items()))


@dataclass(frozen=True)
class _Record:
    person: str
    recipe: str
    moment: datetime
    dated: str
    rating: float | None


class _Input:
    """One of the two files: its columns by field, and what has been read and rejected so far."""

    def __init__(self, path: Path, kind: str, mapping: Mapping[str, str]) -> None:
        """Raises FileRefusedError if the file is broken or lacks a column."""
        self.path = path
        self.table = open_table(path, strict=True)
        self.getters = _getters(self.table, kind, mapping)
        self.rejects: list[Reject] = []
        self.rows_read = 0

    def rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """(line, field → value) of each row; rows with more or fewer values than the header are rejected."""
        for line, row in self.table.rows():
            self.rows_read += 1
            if isinstance(row, UnreadableRow):
                self.reject(line, UnusableError("malformed", row.detail))
            else:
                yield line, {field: get(row) for field, get in self.getters.items()}

    def reject(self, line: int, error: UnusableError) -> None:
        """Note why a row can't be used."""
        self.rejects.append(Reject(self.path.name, line, error.reason, error.detail))

    def require_usable(self, count: int, what: str) -> None:
        """Raises HistoryRefusedError if there are none."""
        if not self.rows_read:
            raise HistoryRefusedError(f"{self.path} has columns but no rows.")
        if not count:
            reasons = Counter(reject.reason for reject in self.rejects)
            why = ", ".join(f"{reason} {rows:,}" for reason, rows in reasons.most_common())
            raise HistoryRefusedError(
                f"{self.path}: no {what} can be used ({why}). Are these the right files and columns?"
            )


def read_history(recipes_file: Path, interactions_file: Path, options: HistoryOptions | None = None) -> History:
    """Read both files. Nothing is stored; the same files and options always give the same history.

    Raises FileRefusedError (or HistoryRefusedError) if a file is broken, lacks a column, or has no usable row.
    """
    options = options or HistoryOptions()
    _check(options)
    mapping = options.mapping or {}
    catalogue, diary = _Input(recipes_file, "recipes", mapping), _Input(interactions_file, "interactions", mapping)
    digest = _digest(recipes_file, interactions_file, options)
    recipes, rejected_recipes = _recipes(catalogue, options)
    catalogue.require_usable(len(recipes), "recipe")
    records = _records(diary, set(recipes), rejected_recipes, options)
    diary.require_usable(len(records), "record")
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
    rejects = catalogue.rejects + diary.rejects
    counts = {
        "recipes_read": catalogue.rows_read,
        "recipes": len(recipes),
        "records_read": diary.rows_read,
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
        digest,
    )


def write_rejects(rejects: Iterable[Reject], path: Path) -> None:
    """Write file, line, reason and detail of each reject as CSV, all of them or none. Raises OSError."""
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
        raise HistoryRefusedError(f"Unknown field {unknown[0]!r}: use one of {', '.join(sorted(known))}.")
    if not 1 <= options.plan_size <= 7:
        raise HistoryRefusedError(f"A plan has 1 to 7 meals, one a day, not {options.plan_size}.")
    if options.household_size < 1 or options.max_minutes < 1:
        raise HistoryRefusedError(
            "A household has at least one person, and the longest recipe takes at least a minute."
        )


def _getters(table: TableFile, kind: str, mapping: Mapping[str, str]) -> dict[str, Getter]:
    """Field → what takes its value out of a row."""
    if isinstance(table, JsonLinesFile):
        raise HistoryRefusedError(f"{table.path} has JSON lines: save it as CSV or Parquet.")
    by_name = {name.casefold(): name for name in reversed(table.columns)}
    columns: dict[str, str] = {}
    for field, guesses in COLUMN_GUESSES[kind].items():
        name = (
            mapping[field]
            if field in mapping
            else next((by_name[guess] for guess in guesses if guess in by_name), None)
        )
        if name is not None:
            columns[field] = name
    missing = [field for field in REQUIRED[kind] if field not in columns]
    if missing:
        raise HistoryRefusedError(
            f"{table.path}, line 1: no column for {' and '.join(missing)} among {', '.join(table.columns)}; "
            f"name it, as in {missing[0]}=COLUMN."
        )
    table.require(columns.values())
    return {field: table.getter(name) for field, name in columns.items()}


def _recipes(catalogue: _Input, options: HistoryOptions) -> tuple[dict[str, dict[str, Any]], set[str]]:
    """Usable recipes by id, and the ids of those that were rejected."""
    recipes: dict[str, dict[str, Any]] = {}
    rejected: set[str] = set()
    for line, given in catalogue.rows():
        recipe_id = id_text(given["id"])
        try:
            if recipe_id is None or any(character.isspace() for character in recipe_id):
                raise UnusableError(
                    "bad_id", f"an id is one word of at most {LONGEST_ID} characters, not {shown(given['id'])}"
                )
            if recipe_id in recipes:
                raise UnusableError("duplicate_recipe", f"an earlier line has the id {recipe_id}")
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
        except UnusableError as error:
            catalogue.reject(line, error)
            if recipe_id is not None:
                rejected.add(recipe_id)
    return recipes, rejected - set(recipes)


def _records(diary: _Input, recipes: set[str], rejected_recipes: set[str], options: HistoryOptions) -> list[_Record]:
    """Usable records in order of (person, time, recipe), so that the order of lines does not matter."""
    seen, records = set[tuple[str, str, datetime]](), []
    not_after = options.not_after or datetime.now(UTC)
    for line, given in diary.rows():
        person, recipe = id_text(given["person"]), id_text(given["recipe"])
        try:
            if person is None:
                raise UnusableError("bad_id", f"{shown(given['person'])} is not the id of a person")
            if recipe in rejected_recipes:
                raise UnusableError("refused_recipe", f"the recipe {recipe} was rejected")
            if recipe is None or recipe not in recipes:
                raise UnusableError("unknown_recipe", f"the catalogue has no recipe {shown(given['recipe'])}")
            moment, dated = moment_of(given["date"], not_after)
            rating = number(given.get("rating"), "rating", -1e9, 1e9)
            if (person, recipe, moment) in seen:
                raise UnusableError("duplicate", f"in an earlier line {person} cooked {recipe} at {dated}")
            seen.add((person, recipe, moment))
            records.append(_Record(person, recipe, moment, dated, None if rating == options.unrated else rating))
        except UnusableError as error:
            diary.reject(line, error)
    return sorted(records, key=lambda record: (record.person, record.moment, record.recipe))


def _events(records: list[_Record], options: HistoryOptions) -> tuple[list[dict[str, Any]], int, int]:
    """plan_accepted events, the number of records in unfinished plans, and of records that repeat a recipe of the open plan."""
    events: list[dict[str, Any]] = []
    repeated = 0
    open_plans: dict[str, list[tuple[_Record, datetime]]] = defaultdict(list)
    last: dict[str, datetime] = {}
    for record in records:
        # A diary of days does not say which meal of a day came first. Each meal is put a microsecond after the one before, so that
        # a plan ends before the next one starts even if both are on the same day.
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
    plan_id = uuid.uuid5(
        PLAN_IDS, json.dumps([person, *([record.recipe, moment.isoformat()] for record, moment in plan)])
    )
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
            "meals": [
                {"day": day, "recipe_id": record.recipe, "servings": servings} for day, (record, _) in enumerate(plan)
            ],
            "meal_dates": [record.dated for record, _ in plan],
        },
        "timestamp": plan[-1][1],
    }


def _digest(recipes_file: Path, interactions_file: Path, options: HistoryOptions) -> str:
    given = {**vars(options), "mapping": dict(options.mapping or {}), "not_after": None}
    digest = hashlib.sha256(json.dumps(given, sort_keys=True).encode())
    for path in (recipes_file, interactions_file):
        digest.update(bytes.fromhex(digest_of(path)))
    return digest.hexdigest()
