"""`lifecycle experiment …`: the lives of runs by hand, and what is known of them."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer
from rich.table import Table

from foundation.settings import settings
from orchestration.commands.access import change_by_hand, connection_for
from orchestration.commands.console import console, moment, say

if TYPE_CHECKING:
    from experimentation.runs.run import Run, Variant

app = typer.Typer(
    no_args_is_help=True, help="Experiments: show, list, and start, pause, resume, ramp or complete one by hand."
)

PURPOSE = "lifecycle experiment"
AUDIT_ROWS = 10
Name = Annotated[str, typer.Argument(help="The experiment's name; its newest run is meant.")]
Reason = Annotated[str, typer.Option(help="Why, for the audit log.")]


@app.command()
def start(name: Name, reason: Reason) -> None:
    """Start a draft: units are assigned from now on."""
    from experimentation.runs.lifecycle import start_run

    with connection_for(PURPOSE) as connection:
        run = start_run(connection, _newest(connection, name).id, change=change_by_hand(PURPOSE, _said(reason)))
        _tell(connection, run, "active: units are assigned from now on")


@app.command()
def pause(name: Name, reason: Reason) -> None:
    """Pause an active run: units that have a variant keep it, new ones get none."""
    from experimentation.runs.lifecycle import pause_run

    with connection_for(PURPOSE) as connection:
        run = pause_run(connection, _newest(connection, name).id, change=change_by_hand(PURPOSE, _said(reason)))
        _tell(connection, run, "paused: units that have a variant keep it, new ones get none")


@app.command()
def resume(name: Name, reason: Reason) -> None:
    """Resume a paused run."""
    from experimentation.runs.lifecycle import resume_run

    with connection_for(PURPOSE) as connection:
        run = resume_run(connection, _newest(connection, name).id, change=change_by_hand(PURPOSE, _said(reason)))
        _tell(connection, run, "active again: new units are assigned, too")


@app.command()
def complete(
    name: Name,
    reason: Reason,
    ship: Annotated[
        str | None, typer.Option(help="The variant that every unit gets from now on; without it, none is.")
    ] = None,
) -> None:
    """Complete a run for good."""
    from experimentation.runs.lifecycle import complete_run

    with connection_for(PURPOSE) as connection:
        newest = _newest(connection, name)
        run = complete_run(connection, newest.id, shipped=ship, change=change_by_hand(PURPOSE, _said(reason)))
        _tell(
            connection,
            run,
            f"completed: {'no unit is answered' if ship is None else f'every unit gets {ship}'} from now on",
        )


@app.command()
def ramp(
    name: Name,
    to: Annotated[
        str, typer.Option(help="The share of units of each arm, such as 0.25; the remainder keeps the rest.")
    ],
    reason: Reason,
) -> None:
    """Increase the arms' share of a running split that has a remainder. Units keep their arm."""
    from experimentation.config.variant_changes import shares_of
    from experimentation.runs.allocations import parse_share
    from experimentation.runs.lifecycle import ramp_run
    from foundation.errors import LifecycleError

    try:
        share = parse_share(to)
    except ValueError as error:
        raise LifecycleError(f"{name} can't be ramped: {error}.") from None
    with connection_for(PURPOSE) as connection:
        run = ramp_run(connection, _newest(connection, name).id, share, change=change_by_hand(PURPOSE, _said(reason)))
        _tell(connection, run, f"ramped: {shares_of(run.variants)}; write these allocations into experiments.yml")


@app.command("list")
def list_experiments() -> None:
    """List every experiment with its newest run, a line each."""
    from experimentation.config.variant_changes import narrowing_of, shares_of
    from experimentation.runs.lifecycle import runs_of
    from experimentation.runs.store import names_of_runs

    with connection_for(PURPOSE, reads=True) as connection:
        newest = [runs_of(connection, name)[-1] for name in names_of_runs(connection)]
    for run in newest:
        shipped = f", shipped {run.shipped.name}" if run.shipped else ""
        told = "; ".join([shares_of(run.variants), *narrowing_of(run), *_window(run)])
        say(f"{run.label}: {run.status}{shipped} ({run.unit_type}): {told}")
    if not newest:
        place = settings().config_dir / "experiments.yml"
        say(f"There are no experiments yet: write one into {place} and run `lifecycle sync`.")


@app.command()
def show(name: Name) -> None:
    """Show every run of an experiment, and what was done to them last."""
    from experimentation.runs.lifecycle import runs_of
    from experimentation.runs.store import enrolled_units, epochs_of
    from foundation.audit import latest_audit

    with connection_for(PURPOSE, reads=True) as connection:
        _newest(connection, name)
        runs = runs_of(connection, name)
        known = [
            (
                run,
                [_serves(connection, variant) for variant in run.variants],
                enrolled_units(connection, run.id),
                epochs_of(connection, run.id),
            )
            for run in runs
        ]
        audit = latest_audit(connection, [run.label for run in runs], AUDIT_ROWS)
    for run, served, enrolled, epochs in known:
        say(_headline(run))
        _print(
            ("variant", "role", "allocation", "serves", "withdrawn", "units enrolled"),
            [
                (v.name, v.role, str(v.allocation), serves, moment(v.withdrawn_at), f"{enrolled.get(v.id, 0):,}")
                for v, serves in zip(run.variants, served, strict=True)
            ],
        )
        names = {str(variant.id): variant.name for variant in run.variants}
        if epochs:
            _print(
                ("epoch", "since", "allocations", "targeting"),
                [
                    (str(e.epoch), moment(e.started_at), _shares(names, e.allocations), e.targeting or "")
                    for e in epochs
                ],
            )
    say(f"The last of what was done to {name}:")
    _print(
        ("when", "who", "what", "to", "why"),
        [(moment(row.at), row.actor, row.action, row.subject, row.reason) for row in audit],
    )


def _newest(connection: Any, name: str) -> "Run":
    """The newest run of a name. Raises LifecycleError."""
    from experimentation.runs.lifecycle import runs_of
    from foundation.errors import LifecycleError

    runs = runs_of(connection, name)
    if not runs:
        raise LifecycleError(f"No experiment is called {name}: `lifecycle experiment list` shows them.")
    return runs[-1]


def _said(reason: str) -> str:
    if not reason.strip():
        raise typer.BadParameter("--reason is empty: give the reason for the audit log.")
    return reason.strip()


def _tell(connection: Any, run: "Run", became: str) -> None:
    """Commit, and say what was done, and what the files make of it."""
    from experimentation.config.files import read_config
    from experimentation.config.outlook import sync_outlook
    from foundation.yaml_files import ConfigError

    connection.commit()
    try:
        outlook = sync_outlook(connection, read_config(settings().config_dir), run.name)
    except ConfigError as error:
        outlook = (
            f"The configuration files can't be read, so the next `lifecycle sync` changes nothing: {error.problems[0]}"
        )
    say(f"{run.label} is {became}." + (f" {outlook}" if outlook else ""))


def _headline(run: "Run") -> str:
    from experimentation.config.variant_changes import narrowing_of

    parts = [
        f"{run.status}{f', shipped {run.shipped.name}' if run.shipped else ''}",
        run.unit_type,
        f"made by {'the file' if run.made_by == 'file' else 'promotion'}",
        *(_window(run) or ["no window"]),
        *(narrowing_of(run) or ["for all units"]),
    ]
    return f"{run.label}: {'; '.join(parts)}"


def _window(run: "Run") -> list[str]:
    """When units are assigned, where that is not always."""
    if not (run.start_at or run.end_at):
        return []
    return [f"from {moment(run.start_at) or 'its start'} to {moment(run.end_at) or 'its end'}"]


def _serves(connection: Any, variant: "Variant") -> str:
    """The policy version that a variant serves, with its own config beside it."""
    from experimentation.policies import find_version

    config = dict(variant.config)
    version_id = config.pop("policy_version_id", None)
    version = None if version_id is None else find_version(connection, UUID(version_id))
    named = [] if version_id is None else [str(version_id) if version is None else version.label]
    return " ".join([*named, json.dumps(config, ensure_ascii=False)] if config or not named else named)


def _shares(names: Mapping[str, str], allocations: Mapping[str, str]) -> str:
    """In walking order; a variant that was added later is not in it."""
    return ", ".join(f"{name} {allocations[key]}" for key, name in names.items() if key in allocations)


def _print(headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    table = Table()
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console().print(table, markup=False)
