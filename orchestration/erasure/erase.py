"""Erasing one unit from every place, in order, with a report of what was found and what could not be reached.

PostgreSQL comes first, in one transaction that also records the unit as erased: from then on, nothing that is still in a spool, a dead
letter or the archive is stored again. The later steps only remove what is there, so a killed erasure is completed by running it again.
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
"""Errors of a place that can't be reached or read. The other places are still erased."""


@dataclass(frozen=True)
class Platform:
    """Where everything is stored, from the settings."""

    store: ObjectStore
    datasets: ObjectStore
    spool: Path
    tracking_uri: str
    config: Path
    first_day: date


@dataclass
class Report:
    """What was found, in order; places that could not be reached, with their errors; how many days of aggregates dbt has to rebuild."""

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
    on_progress: Progress,
) -> Report:
    """What an erasure would find; changes nothing. `connection` is in autocommit mode."""
    mode = Mode(database.PSEUDONYM.format("…") if pseudonymise else None, change=False, datasets=files)
    report = Report(_in_tables(database.counts(connection, unit), mode))
    _visit(connection, platform, unit, mode, report, on_progress)
    return report


def erase(
    connection: psycopg.Connection[Any],
    platform: Platform,
    unit: Unit,
    *,
    pseudonymise: bool,
    files: bool,
    on_progress: Progress,
    by: str,
) -> Report:
    """Erase the unit everywhere; with `files` also from datasets and from the output of trainings and replays.

    Running it again completes an interrupted erasure. `connection` is in autocommit mode.
    """
    subject = f"unit {database.hash_of(connection, unit)}"
    how = "pseudonymised" if pseudonymise else "removed"
    with connection.transaction():
        pseudonym = database.draw_pseudonym(connection, unit) if pseudonymise else None
        erased = database.erase(connection, unit, pseudonym)
        # In the same transaction as the change: the audit log must show what a killed erasure did.
        write_audit(
            connection, change=Change(by, f"A unit is to be {how}."), action="unit.erasing", subject=subject, after={"rows": erased.rows}
        )  # fmt: skip
    mode = Mode(pseudonym, change=True, datasets=files)
    report = Report(_in_tables(erased.rows, mode), days=erased.days_to_rebuild)
    archive.wait_for_archive(connection, erased.days, platform.first_day)
    _visit(connection, platform, unit, mode, report, on_progress)
    with connection.transaction():
        # Rows that were stored meanwhile: by a request for an assignment, or by a drain or restore that began before the erasure.
        late = database.erase(connection, unit, pseudonym)
        report.found += [
            Found(f"{item.place}, meanwhile", item.rows, item.done) for item in _in_tables(late.rows, mode)
        ]
        if not report.left:
            database.forget_pseudonym(connection, unit)
        write_audit(
            connection, change=Change(by, f"A unit was {how}."), action="unit.erased", subject=subject, after=_summary(report)
        )  # fmt: skip
    return report


def _summary(report: Report) -> dict[str, Any]:
    """What the audit log stores. Error messages are left out: they may quote a file that names the unit."""
    return {
        "erased": [
            {"place": item.place, "rows": item.rows, "done": item.done} for item in report.found if not item.kept
        ],
        "kept": [{"place": item.place, "rows": item.rows} for item in report.found if item.kept],
        "not reached": sorted(report.left),
    }


def _in_tables(rows: dict[str, int], mode: Mode) -> list[Found]:
    done = {"exp.experiments, overrides": "removed"}
    return [Found(table, count, done.get(table, mode.done)) for table, count in rows.items() if count]


def _visit(
    connection: psycopg.Connection[Any],
    platform: Platform,
    unit: Unit,
    mode: Mode,
    report: Report,
    on_progress: Progress,
) -> None:
    """Every place after PostgreSQL's own tables, in order."""
    store, change = platform.store, mode.change
    places: dict[str, Callable[[], Iterator[Found]]] = {
        "spool": lambda: spools.spooled_events(platform.spool, unit, change),
        "dead letters": lambda: spools.dead_letters_of(connection, unit, change),
        "event archive": lambda: archive.archived_events(
            connection, store, unit, mode, platform.first_day, on_progress
        ),
        "cleaned events": lambda: archive.cleaned_events(store, unit, mode, on_progress),
        "datasets, replays and MLflow": lambda: _files(connection, platform, unit, mode, on_progress),
        "product": lambda: outside.product_tables(connection, unit),
        "configuration": lambda: outside.configuration(platform.config, unit),
        "audit log": lambda: outside.audit_log(connection, unit),
    }
    for name, place in places.items():
        try:
            # Appended one by one, so that the report has what was erased before a failure.
            for found in place():
                report.found.append(found)
        except UNREACHED as error:
            report.left[name] = " ".join(str(error).split())


def _files(
    connection: psycopg.Connection[Any], platform: Platform, unit: Unit, mode: Mode, on_progress: Progress
) -> Iterator[Found]:
    """Dataset versions and what was derived from them. Datasets last: their rows say which events elsewhere are the unit's."""
    held = list(datasets.versions_with(platform.datasets, Trace(unit)))
    trace = Trace(unit, frozenset[str]().union(*(version.event_ids for version in held)))
    listed = [Found(version.uri, version.rows, mode.done_to_files, kept=not mode.datasets) for version in held]
    try:
        registry.check_reachable(platform.tracking_uri, undone="its contents were not searched")
    except TrainingError:
        yield from (Found(item.place, item.rows, "kept: MLflow can't be reached", kept=True) for item in listed)
        raise
    try:
        yield from artefacts.records(platform.store, trace, mode)
        yield from artefacts.replay_results(connection, trace, mode)
        yield from artefacts.run_artefacts(platform.tracking_uri, trace, mode, on_progress)
        if not mode.changes_files:
            yield from listed
            return
        for version in held:
            revision = datasets.revise(platform.datasets, version, trace)
            artefacts.name_revision(platform.store, platform.tracking_uri, version.uri, revision)
            datasets.remove(platform.datasets, version)
            yield Found(version.uri, version.rows, f"removed: replaced by {revision.version}")
    except storage_errors() as error:
        raise ErasureError(f"MLflow's artefacts can't be reached ({' '.join(str(error).split())[:200]}).") from error
