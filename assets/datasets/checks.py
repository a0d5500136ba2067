"""The checks of a dataset's rows: each a pure function that returns a sentence for people.

An ERROR blocks training; a WARN asks somebody to look.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import polars as pl

from assets.datasets.drift import Drift, drift
from assets.datasets.row_files import at, fields, has, required_paths
from product.protocol import Product, RowWindow

Severity = Literal["ERROR", "WARN"]

CHECKS: dict[str, tuple[Severity, str]] = {
    "enough_rows": ("ERROR", "The version has at least LIFECYCLE_DATASET_MIN_ROWS rows."),
    "no_nulls": (
        "ERROR",
        "No field that is published as never null is null, above all household and accepted plan.",
    ),
    "valid_timestamps": ("ERROR", "Every row has a time within the version's window."),
    "known_households": ("ERROR", "Every household is one of the product's tables."),
    "known_items": ("ERROR", "Every item of every accepted plan is one of the product's."),
    "schema_as_published": ("ERROR", "The fields are those that the version before published."),
    "complete_sessions": ("ERROR", "Every row's plan was proposed and accepted, or is marked as reconstructed."),
    "split_by_household": (
        "ERROR",
        "No household is in both train and validation, or in both training and held-out.",
    ),
    "no_drift": ("WARN", "Items and segments are distributed as in the version before (population stability index)."),
}
"""Name → severity and what it says, in the order of `run_checks`."""


@dataclass(frozen=True)
class CheckResult:
    """A check's result: a sentence, and numbers for details."""

    name: str
    passed: bool
    sentence: str
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def severity(self) -> Severity:
        """ERROR blocks training, WARN does not."""
        return CHECKS[self.name][0]


def enough_rows(rows: pl.DataFrame, least: int) -> CheckResult:
    """At least `least` rows."""
    enough = rows.height >= least
    say = f"{rows.height:,} rows, at least {least:,} needed."
    if not enough:
        say += " Widen the window (LIFECYCLE_DATASET_WINDOW_DAYS) or lower LIFECYCLE_DATASET_MIN_ROWS."
    return CheckResult("enough_rows", enough, say, {"rows": rows.height, "least": least})


def no_nulls(rows: pl.DataFrame, nullable: Collection[str] | None = None) -> CheckResult:
    """No null in the fields that are published as never null (outside lists; inside them, as elements)."""
    counts = {path: _nulls(rows, path) for path in required_paths(fields(rows.schema, nullable))}
    nulls = {path: count for path, count in counts.items() if count}
    say = "; ".join(f"{path} is null in {count:,} rows" for path, count in nulls.items())
    return CheckResult(
        "no_nulls", not nulls, f"{say or f'None of {len(counts)} required fields is null'}.", {"nulls": nulls}
    )


def valid_timestamps(rows: pl.DataFrame, window: RowWindow) -> CheckResult:
    """Every `metadata.timestamp` is set and in [start, end)."""
    times = rows.select(time=at("metadata.timestamp"))["time"]
    missing = times.null_count()
    outside = int((~times.is_between(window.start, window.end, closed="left")).sum())
    first, last = times.min(), times.max()
    say = f"All {rows.height:,} times lie in [{window.start:%Y-%m-%d}, {window.end:%Y-%m-%d})."
    if missing or outside:
        say = f"{missing:,} rows have no time and {outside:,} lie outside [{window.start:%Y-%m-%d}, {window.end:%Y-%m-%d})."
    return CheckResult(
        "valid_timestamps", not missing and not outside, say,
        {"missing": missing, "outside": outside, "first": str(first), "last": str(last)},
    )  # fmt: skip


def known_households(rows: pl.DataFrame, known: Collection[str]) -> CheckResult:
    """Every `input.household.id` is in `known`."""
    unknown = rows.select(id=at("input.household.id")).filter(~pl.col("id").is_in(list(known)))["id"]
    names = sorted(unknown.unique().to_list())
    say = (
        f"{unknown.len():,} rows are of {len(names):,} unknown households, such as {_few(names)}."
        if names
        else "Every household is known."
    )
    return CheckResult("known_households", not names, say, {"unknown": names[:20], "rows": unknown.len()})


def known_items(rows: pl.DataFrame, product: Product) -> CheckResult:
    """Every item of every accepted plan is one of the product's items."""
    known = set(product.items())
    plans = accepted_items(rows, product)
    unknown = sorted({item for plan in plans for item in plan} - known)
    broken = sum(any(item not in known for item in plan) for plan in plans)
    say = (
        f"{broken:,} plans have items that {product.name} does not know, such as {_few(unknown)}."
        if unknown
        else "Every item is known."
    )
    return CheckResult("known_items", not unknown, say, {"unknown": unknown[:20], "rows": broken})


def schema_as_published(
    rows: pl.DataFrame, published: Sequence[dict[str, Any]] | None, nullable: Collection[str] | None = None
) -> CheckResult:
    """The fields (names, types, nullability, order) equal `published`: schema.json of the version before; None for a first version."""
    now = fields(rows.schema, nullable)
    if published is None:
        return CheckResult("schema_as_published", True, "The first version: later ones must have its fields.")
    differences = _differences(list(published), now)
    say = "; ".join(differences) if differences else "The fields are those of the version before"
    return CheckResult("schema_as_published", not differences, f"{say}.", {"differences": differences})


def complete_sessions(rows: pl.DataFrame, events: pl.DataFrame, window: RowWindow) -> CheckResult:
    """Every row's acceptance is among the events, with the plan_generated before it unless it is reconstructed.

    Also counts the window's acceptances that are not in any row. `events` are cleaned events.
    """
    plan = pl.col("payload").str.json_path_match("$.plan_id")
    accepted = events.filter(
        pl.col("event_type") == "plan_accepted", pl.col("timestamp").is_between(window.start, window.end, closed="left")
    )
    generated = (
        events.filter(pl.col("event_type") == "plan_generated")
        .group_by("unit_id", plan_id=plan)
        .agg(made_at=pl.col("timestamp").min())
    )
    sessions = accepted.select("event_id", "timestamp", "unit_id", plan_id=plan).join(
        generated, on=["unit_id", "plan_id"], how="left"
    )
    mine = rows.select(
        event_id=at("metadata.event_id"), timestamp=at("metadata.timestamp"), reconstructed=at("metadata.reconstructed")
    ).join(sessions, on=["event_id", "timestamp"], how="left")
    incomplete = mine.filter(
        pl.col("unit_id").is_null()
        | (~pl.col("reconstructed") & ~(pl.col("made_at") <= pl.col("timestamp")).fill_null(False))
    )
    left_out = accepted.height - rows.height
    say = (
        f"Every row is a complete session; {left_out:,} of {accepted.height:,} acceptances in the window are in no row."
    )
    if incomplete.height:
        say = f"{incomplete.height:,} rows have no acceptance among the events, or no plan_generated before it."
    return CheckResult(
        "complete_sessions", incomplete.is_empty(), say,
        {"incomplete": incomplete.height, "acceptances": accepted.height, "left_out": left_out},
    )  # fmt: skip


def split_by_household(rows: pl.DataFrame, *, by_time: bool) -> CheckResult:
    """No household is in both train and validation and, unless replay is split `by_time`, in both replay and another split."""
    sides = rows.select(id=at("input.household.id"), split=at("metadata.split")).unique()
    odd = sides.filter(~pl.col("split").is_in(["train", "validation", "replay"]).fill_null(False)).height
    compared = sides.filter(pl.col("split") != "replay") if by_time else sides
    twice = compared.group_by("id").len().filter(pl.col("len") > 1)["id"].sort().to_list()
    counts = dict(sides.group_by("split").len().sort("split", nulls_last=True).rows())
    say = ", ".join(f"{split} {count:,}" for split, count in counts.items())
    say = f"Households by split: {say or 'none'}; none is on both sides."
    if twice or odd:
        such = f", such as {_few(twice)}" if twice else ""
        say = f"{len(twice):,} households stand on both sides of the split{such}; {odd:,} have no known split."
    return CheckResult(
        "split_by_household", not twice and not odd, say, {"households": counts, "on both sides": twice[:20]}
    )


def no_drift(rows: pl.DataFrame, before: pl.DataFrame | None, product: Product) -> CheckResult:
    """Items, workflow, mode, household size and region are distributed as in the version before; None for a first version."""
    if before is None or before.is_empty() or rows.is_empty():
        return CheckResult("no_drift", True, "There is no version before to compare with.")
    found: list[Drift] = [
        drift(name, _values(before, path), _values(rows, path))
        for name, path in _SEGMENTS.items()
        if has(rows, path) and has(before, path)
    ]
    found.append(drift("items", *_item_values(before, rows, product), samples=(before.height, rows.height)))
    drifted = [one for one in found if one.drifted]
    worst = max(found, key=lambda one: one.psi)
    say = "; ".join(f"{one.feature} shifted (PSI {one.psi:.2f}, {one.noise:.2f} would be chance)" for one in drifted)
    say = say or f"No shift against the version before; the largest is {worst.feature} with PSI {worst.psi:.2f}"
    return CheckResult("no_drift", not drifted, f"{say}.", {one.feature: round(one.psi, 4) for one in found})


_SEGMENTS = {
    "workflow_type": "input.workflow_type",
    "mode": "input.mode",
    "household_size": "input.household.size",
    "region": "metadata.region",
}


def run_checks(
    rows: pl.DataFrame,
    *,
    product: Product,
    window: RowWindow,
    least_rows: int,
    households: Collection[str],
    events: pl.DataFrame,
    published: Sequence[dict[str, Any]] | None,
    before: pl.DataFrame | None,
    by_time: bool,
    nullable: Collection[str] | None = None,
) -> list[CheckResult]:
    """Every check of CHECKS, in its order. `published` and `before`: fields and rows of the version before, None for the first."""
    return [
        enough_rows(rows, least_rows),
        no_nulls(rows, nullable),
        valid_timestamps(rows, window),
        known_households(rows, households),
        known_items(rows, product),
        schema_as_published(rows, published, nullable),
        complete_sessions(rows, events, window),
        split_by_household(rows, by_time=by_time),
        no_drift(rows, before, product),
    ]


def accepted_items(rows: pl.DataFrame, product: Product) -> list[list[str]]:
    """The items of each row's accepted plan; none where there is no plan."""
    plans = rows.select(plan=at("target.accepted_plan"))["plan"].to_list()
    return [product.chosen(plan) if _whole(plan) else [] for plan in plans]


def _whole(plan: Any) -> bool:
    return isinstance(plan, dict) and all(value is not None for value in plan.values())


def _values(rows: pl.DataFrame, path: str) -> pl.Series:
    return rows.select(value=at(path).cast(pl.String).fill_null("(none)"))["value"]


def _item_values(before: pl.DataFrame, rows: pl.DataFrame, product: Product) -> tuple[pl.Series, pl.Series]:
    flat = [[item for plan in accepted_items(frame, product) for item in plan] for frame in (before, rows)]
    return pl.Series("value", flat[0], pl.String), pl.Series("value", flat[1], pl.String)


def _nulls(rows: pl.DataFrame, path: str) -> int:
    """Rows with a null at a path; a null further out is that field's own, and not counted again."""
    values = rows.select(pl.all())
    series: pl.Series | None = None
    for name in path.split("."):
        series = values[name] if series is None else _inside(series, name)
    assert series is not None
    return series.null_count()


def _inside(series: pl.Series, name: str) -> pl.Series:
    if isinstance(series.dtype, pl.List):
        series = series.drop_nulls().explode(empty_as_null=False)
    return series.drop_nulls().struct.field(name)


def _differences(published: list[dict[str, Any]], now: list[dict[str, Any]], prefix: str = "") -> list[str]:
    old, new = {one["name"]: one for one in published}, {one["name"]: one for one in now}
    found = [f"{prefix}{name} is gone" for name in old if name not in new]
    found += [f"{prefix}{name} is new" for name in new if name not in old]
    for name in (name for name in old if name in new):
        for key in ("type", "nullable"):
            if old[name][key] != new[name][key]:
                found.append(f"{prefix}{name} has {key} {new[name][key]} and was published with {old[name][key]}")
        found += _differences(old[name].get("fields", []), new[name].get("fields", []), f"{prefix}{name}.")
    if not found and list(old) != list(new):
        found.append(f"{prefix or 'the columns'} have another order")
    return found


def _few(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:3])) + (", …" if len(names) > 3 else "")
