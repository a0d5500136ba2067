"""Erasing one unit: every place in its order, what was found there, and what could not be reached.

PostgreSQL comes first, in one transaction that also notes the unit as erased: from then on nothing that still lies in a spool, a dead
letter or the archive comes back. Every later place only loses what is there, so that a killed erasure is completed by running it again.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa

from eventlog.archive.counting import NotAnArchiveError
from foundation.audit import Change, write_audit
from foundation.errors import LifecycleError
from foundation.object_store import ObjectStore
from orchestration.erasure import archive, artefacts, database, datasets, outside, spools
from orchestration.erasure.contents import Trace
from orchestration.erasure.findings import ErasureError, Found, Mode, Progress, Unit
from training import registry
from training.errors import TrainingError
from training.tracking import storage_errors

UNREACHED = (LifecycleError, NotAnArchiveError, OSError, pa.ArrowInvalid)
"""What a place raises that can't be reached or read; the other places go on."""


@dataclass(frozen=True)
class Platform:
    """Where everything lies, as the settings say."""

    store: ObjectStore
    datasets: ObjectStore
    spool: Path
    tracking_uri: str
    config: Path
    first_day: date


@dataclass
class Report:
    """What was found, in order; what could not be reached, as sentences by place; days whose aggregates are to be made anew."""

    found: list[Found] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    days: int = 0


def look(
    connection: psycopg.Connection[Any],
    platform: Platform,
    unit: Unit,
    *,
    pseudonymise: bool,
    files: bool,
    told: Progress,
) -> Report:
    """What an erasure would find; stores nothing. `connection` is in autocommit mode."""
    mode = Mode(database.PSEUDONYM.format("…") if pseudonymise else None, change=False, datasets=files)
    report = Report(_in_tables(database.counts(connection, unit), mode))
    _visit(connection, platform, unit, mode, report, told)
    return report


def erase(
    connection: psycopg.Connection[Any],
    platform: Platform,
    unit: Unit,
    *,
    pseudonymise: bool,
    files: bool,
    told: Progress,
    by: str,
) -> Report:
    """Erase the unit everywhere; with `files` in datasets and what trainings and replays left, too. Again completes what was interrupted.

    `connection` is in autocommit mode.
    """
    subject = f"unit {database.hash_of(connection, unit)}"
    how = "pseudonymised" if pseudonymise else "removed"
    with connection.transaction():
        pseudonym = database.draw_pseudonym(connection, unit) if pseudonymise else None
        erased = database.erase(connection, unit, pseudonym)
        # With the change that it tells of: a killed erasure must not hide what it did.
        write_audit(
            connection, change=Change(by, f"A unit is to be {how}."), action="unit.erasing", subject=subject, after={"rows": erased.rows}
        )  # fmt: skip
    mode = Mode(pseudonym, change=True, datasets=files)
    report = Report(_in_tables(erased.rows, mode), days=erased.days_anew)
    archive.wait_for_archive(connection, erased.days, platform.first_day)
    _visit(connection, platform, unit, mode, report, told)
    with connection.transaction():
        # What was on its way in meanwhile: an assignment asked for, a drain or a restore that had not heard of the erasure.
        again = database.erase(connection, unit, pseudonym)
        report.found += [Found(f"{one.place}, meanwhile", one.rows, one.done) for one in _in_tables(again.rows, mode)]
        if not report.left:
            database.forget_pseudonym(connection, unit)
        write_audit(
            connection, change=Change(by, f"A unit was {how}."), action="unit.erased", subject=subject, after=_summary(report)
        )  # fmt: skip
    return report


def _summary(report: Report) -> dict[str, Any]:
    """What the audit log keeps. Sentences are left out: they may quote a file that names the unit."""
    return {
        "erased": [{"place": one.place, "rows": one.rows, "done": one.done} for one in report.found if not one.kept],
        "kept": [{"place": one.place, "rows": one.rows} for one in report.found if one.kept],
        "not reached": sorted(report.left),
    }


def _in_tables(rows: dict[str, int], mode: Mode) -> list[Found]:
    done = {"exp.experiments, overrides": "removed"}
    return [Found(table, count, done.get(table, mode.done)) for table, count in rows.items() if count]


def _visit(
    connection: psycopg.Connection[Any], platform: Platform, unit: Unit, mode: Mode, report: Report, told: Progress
) -> None:
    """Every place after PostgreSQL's own tables, in order."""
    store, change = platform.store, mode.change
    places: dict[str, Callable[[], Iterator[Found]]] = {
        "spool": lambda: spools.spooled_events(platform.spool, unit, change),
        "dead letters": lambda: spools.dead_letters_of(connection, unit, change),
        "event archive": lambda: archive.archived_events(connection, store, unit, mode, platform.first_day, told),
        "cleaned events": lambda: archive.cleaned_events(store, unit, mode, told),
        "datasets, replays and MLflow": lambda: _files(connection, platform, unit, mode, told),
        "product": lambda: outside.product_tables(connection, unit),
        "configuration": lambda: outside.configuration(platform.config, unit),
        "audit log": lambda: outside.audit_log(connection, unit),
    }
    for name, place in places.items():
        try:
            # One after the other: what was done before a failure is told of.
            for found in place():
                report.found.append(found)
        except UNREACHED as error:
            report.left[name] = " ".join(str(error).split())


def _files(
    connection: psycopg.Connection[Any], platform: Platform, unit: Unit, mode: Mode, told: Progress
) -> Iterator[Found]:
    """Dataset versions, and what was made of them. Datasets last: by their rows the unit's events are known elsewhere."""
    held = list(datasets.versions_with(platform.datasets, Trace(unit)))
    trace = Trace(unit, frozenset[str]().union(*(one.event_ids for one in held)))
    listed = [Found(one.uri, one.rows, mode.done_to_files, kept=not mode.datasets) for one in held]
    try:
        registry.check_reachable(platform.tracking_uri, undone="what it holds was not looked through")
    except TrainingError:
        yield from (Found(one.place, one.rows, "kept: MLflow can't be reached", kept=True) for one in listed)
        raise
    try:
        yield from artefacts.records(platform.store, trace, mode)
        yield from artefacts.replay_results(connection, trace, mode)
        yield from artefacts.run_artefacts(platform.tracking_uri, trace, mode, told)
        if not mode.changes_files:
            yield from listed
            return
        for one in held:
            revision = datasets.revise(platform.datasets, one, trace)
            artefacts.name_revision(platform.store, platform.tracking_uri, one.uri, revision)
            datasets.remove(platform.datasets, one)
            yield Found(one.uri, one.rows, f"removed: written anew as {revision.version}")
    except storage_errors() as error:
        raise ErasureError(f"MLflow's artefacts can't be reached ({' '.join(str(error).split())[:200]}).") from error
