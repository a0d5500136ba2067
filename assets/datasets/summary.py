"""dataset_summary.md: what to know about a dataset version before training on it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import polars as pl

from assets.datasets.checks import CheckResult
from assets.datasets.row_files import at, has
from product.protocol import RowWindow

HOUSEHOLD = "input.household.id"
MOST_LINES = 20
"""Most lines of one table; a last line counts the rest."""


def summary_markdown(
    name: str,
    version: str,
    rows: pl.DataFrame,
    *,
    described: Sequence[Mapping[str, Any]],
    size: int,
    window: RowWindow,
    checks: Sequence[CheckResult],
    excluded: Mapping[str, int],
    notes: Sequence[str],
) -> str:
    """The page. `described` are schema.json's fields, `size` the bytes of training.parquet, `excluded` plans left out by reason."""
    times = rows.select(time=at("metadata.timestamp").dt.strftime("%Y-%m-%d %H:%M"))["time"].drop_nulls().sort()
    spans = f"{times[0]} to {times[-1]} UTC" if times.len() else "no rows"
    passed = sum(check.passed for check in checks)
    parts = [
        f"# {_plain(name)} {_plain(version)}",
        _table(
            ("what", "value"),
            [
                ("rows", f"{rows.height:,}"),
                ("fields", f"{_leaves(described)} in {', '.join(field['name'] for field in described)}"),
                ("size", f"{size:,} bytes"),
                *([("households", f"{_distinct(rows, HOUSEHOLD):,}")] if has(rows, HOUSEHOLD) else []),
                ("accepted from … to", spans),
                (
                    "window",
                    f"[{window.start:%Y-%m-%d}, {window.end:%Y-%m-%d}), history {window.lookback_days} days back",
                ),
                ("checks", f"{passed} of {len(checks)} passed"),
            ],
        ),
    ]
    for title, path in _COUNTED.items():
        if has(rows, path):
            parts += [f"## {title}", _shares(rows, path)]
    parts += ["## Checks", _table(("check", "result", "says"), map(_check_line, checks))]
    if excluded:
        parts += [
            "## Left out",
            _table(("reason", "count"), [(reason, f"{count:,}") for reason, count in sorted(excluded.items())]),
        ]
    parts += ["## Notes", "\n".join(f"- {_plain(note)}" for note in [*notes, *_own_notes(rows)]) or "None."]
    return "\n\n".join(parts) + "\n"


_COUNTED = {
    "Workflow types": "input.workflow_type",
    "Modes": "input.mode",
    "Splits": "metadata.split",
    "Policy versions that proposed": "metadata.policy_version_id",
    "Regions": "metadata.region",
}


def _distinct(rows: pl.DataFrame, path: str) -> int:
    return rows.select(value=at(path))["value"].n_unique()


def _own_notes(rows: pl.DataFrame) -> list[str]:
    notes = []
    if has(rows, "metadata.reconstructed"):
        count = int(rows.select(at("metadata.reconstructed").sum()).item() or 0)
        if count:
            notes.append(
                f"{count:,} rows were reconstructed from a diary: targets for training, "
                "and never counted in acceptance or any online metric."
            )
    if has(rows, "metadata.slot_propensities"):
        count = int(rows.select(at("metadata.slot_propensities").is_not_null().sum()).item() or 0)
        notes.append(f"{count:,} rows carry logged slot propensities.")
    return notes


def _shares(rows: pl.DataFrame, path: str) -> str:
    counts = (
        rows.select(value=at(path).cast(pl.String).fill_null("(none)"))["value"]
        .value_counts(name="count")
        .sort("count", "value", descending=[True, False])
    )
    lines = [(value, f"{count:,}", f"{count / rows.height:.1%}") for value, count in counts.head(MOST_LINES).rows()]
    rest = counts.slice(MOST_LINES)
    if rest.height:
        lines.append((f"{rest.height} more", f"{rest['count'].sum():,}", f"{rest['count'].sum() / rows.height:.1%}"))
    return _table(("value", "rows", "share"), lines)


def _check_line(check: CheckResult) -> tuple[str, str, str]:
    return check.name, "passed" if check.passed else f"failed ({check.severity})", check.sentence


def _table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(_plain(cell) for cell in row) + " |" for row in rows)


def _plain(text: str) -> str:
    """Text that can't break a table or turn into markup: values come from outside."""
    flat = " ".join(str(text).split())
    return "".join(f"\\{character}" if character in "|`<>*[]\\" else character for character in flat)


def _leaves(described: Sequence[Mapping[str, Any]]) -> int:
    return sum(_leaves(field["fields"]) if "fields" in field else 1 for field in described)
