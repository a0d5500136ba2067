"""`lifecycle up`, `down`, `status` and `clean`: starting, stopping and showing the local services."""

import json
import os
import shutil
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.live import Live
from rich.table import Table

from foundation.errors import LifecycleError
from foundation.settings import PROJECT_ROOT, Settings, settings
from orchestration.commands.console import console, human_size, say
from orchestration.local.databases import embedded_server, where
from orchestration.local.home import SETTINGS_FILE, Holder, holder, locked
from orchestration.local.probes import api_alive
from orchestration.local.processes import Supervisor, records
from orchestration.local.services import API, EVERYTHING, all_services
from orchestration.local.stack import Stack

_TEND_SECONDS = 0.5
_DOWN_SECONDS = 90


def up() -> None:
    """Start Dagster, MLflow, the API and the dbt docs, and keep running. Ctrl-C or SIGTERM stops everything; data is kept."""
    current = settings()
    complete = False
    try:
        with Stack(current, "lifecycle up", EVERYTHING, say) as stack:
            stack.start()
            _show_start(stack)
            complete = True
            say(f"Everything is running. Ctrl-C here, or `lifecycle down`, stops it; data is kept in {current.home}.")
            _tend(stack.supervisor)
    except KeyboardInterrupt:
        say(f"Stopped. Data is kept in {current.home}.")
        if not complete:
            raise


def down() -> None:
    """Stop everything that runs in this home, no matter who started it; data is kept."""
    current = settings()
    if not current.home.exists():
        say(f"Nothing is running: there is no home in {current.home} yet.")
        return
    _end(current)
    say(f"Everything is stopped. Data is kept in {current.home}.")


def status(as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False) -> None:
    """Show what is running, where, and since when."""
    current = settings()
    rows = _rows(current)
    user = holder(current.home)
    if as_json:
        body = {"home": str(current.home), "held_by": _as_json(user), "services": rows}
        typer.echo(json.dumps(body, indent=1))
        return
    table = Table(title=f"Home {current.home}", title_justify="left")
    for heading in ("service", "state", "address", "process", "since"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        since = datetime.fromisoformat(row["since"]).astimezone() if row["since"] else None
        colour = "green" if row["state"] == "running" else "dim"
        state = row["state"]
        if row["name"] == API and state == "external":
            state = f"answers on {current.api_port}, not started by lifecycle"
        table.add_row(
            row["title"], f"[{colour}]{state}[/{colour}]", row["url"] or "", str(row["pid"] or ""),
            f"{since:%Y-%m-%d %H:%M:%S}" if since else "",
        )  # fmt: skip
    console().print(table)
    say(f"In use by {user}." if user else "No command is using this home.")


def clean(yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False) -> None:
    """Stop what runs in the home folder, then remove it with all its data and the datasets built from it."""
    current = settings()
    home = current.home
    if not home.exists():
        say(f"Nothing to remove: {home} does not exist.")
        return
    if not (home / SETTINGS_FILE).exists() or PROJECT_ROOT.is_relative_to(home):
        raise LifecycleError(
            f"{home} does not look like a home that lifecycle made, so nothing was removed: check LIFECYCLE_HOME."
        )
    datasets = _built_datasets(current)
    if not yes:
        if not sys.stdin.isatty():
            raise LifecycleError(f"This removes {home} for good, and there is no terminal to ask on: add --yes.")
        size = sum(file.lstat().st_size for file in home.rglob("*") if file.is_file())
        built = f", and {len(datasets)} built datasets in {current.datasets_root}" if datasets else ""
        typer.confirm(f"Remove {home} ({human_size(size)}) with its database, archives and models{built}?", abort=True)
    for folder in (home, *home.glob("histories/*")):
        if (folder / SETTINGS_FILE).exists():
            _end(current.model_copy(update={"home": folder}))
    # Versions never change: any left behind would block the next home's datasets of the same days.
    for folder in datasets:
        shutil.rmtree(folder)
    shutil.rmtree(home)
    say(f"Removed {home}{f' and {len(datasets)} built datasets' if datasets else ''}.")


def _built_datasets(current: Settings) -> list[Path]:
    """Dataset versions of the default home, which are outside it in `datasets/`; those of other homes are inside the home."""
    root = Path(current.datasets_root)
    if current.home.is_relative_to(root) or root.is_relative_to(current.home) or current.datasets or current.store:
        return []
    return sorted(file.parent for file in root.glob("*/*/training.parquet"))


def _tend(supervisor: Supervisor) -> None:
    """Watch the services until a signal arrives."""
    try:
        while True:
            supervisor.tend()
            time.sleep(_TEND_SECONDS)
    except KeyboardInterrupt:
        say("Stopping …")
        raise


def _end(current: Settings) -> None:
    """Stop the command that uses the home, then what a killed command left running, then the embedded PostgreSQL."""
    user = holder(current.home)
    if user is not None:
        _ask_to_end(user, current.home)
    if records(current.home):
        # Entering the stack stops them and closes their runs; leaving it stops PostgreSQL.
        with Stack(current, "lifecycle down", say=say):
            return
    if current.embedded:
        with locked(current.home, "lifecycle down"):
            embedded_server(current).stop()


def _ask_to_end(user: Holder, home: Path) -> None:
    say(f"Stopping {user} …")
    try:
        os.kill(user.pid, signal.SIGTERM)
    except ProcessLookupError:
        return
    deadline = time.monotonic() + _DOWN_SECONDS
    while holder(home) is not None:
        if time.monotonic() > deadline:
            raise LifecycleError(
                f"{user} did not stop within {_DOWN_SECONDS} s: run `kill -9 {user.pid}`, then `lifecycle down` again."
            )
        time.sleep(0.1)


def _show_start(stack: Stack) -> None:
    """Wait until all services are ready. On a terminal the table is live; elsewhere each service gets a line, and the table follows."""
    screen = console()
    started = time.monotonic()
    if screen.is_terminal:
        with Live(
            console=screen,
            refresh_per_second=4,
            get_renderable=lambda: _table(stack.settings, stack.supervisor, started),
        ):
            stack.wait()
        return
    announced: set[str] = set()

    def announce() -> None:
        for service in all_services(stack.settings).values():
            seconds = stack.supervisor.seconds(service.name)
            if seconds is not None and service.name not in announced:
                announced.add(service.name)
                say(f"{service.title} is ready after {time.monotonic() - started:.1f} s")

    stack.wait(on_tick=announce)
    screen.print(_table(stack.settings, stack.supervisor, started))


def _table(current: Settings, supervisor: Supervisor, started: float) -> Table:
    table = Table(
        title=f"Home {current.home}",
        title_justify="left",
        caption=f"{time.monotonic() - started:.0f} s",
        caption_justify="left",
    )
    for heading in ("service", "state", "address"):
        table.add_column(heading, overflow="fold")
    table.add_row("PostgreSQL", "[green]ready[/green]", where(current.platform_url))
    for service in all_services(current).values():
        state = (
            "[green]ready[/green]" if supervisor.seconds(service.name) is not None else "[yellow]starting …[/yellow]"
        )
        table.add_row(service.title, state, service.url or "")
    return table


def _rows(current: Settings) -> list[dict[str, Any]]:
    running = {record.name: record for record in records(current.home) if record.alive}
    rows = [_postgres_row(current)]
    for service in all_services(current).values():
        record = running.get(service.name)
        state, url = ("running", record.url) if record else ("stopped", None)
        if record is None and service.name == API and api_alive(current.api_port):
            state, url = "external", service.url
        rows.append(
            {
                "name": service.name,
                "title": service.title,
                "state": state,
                "url": url,
                "pid": record.pid if record else None,
                "since": record.since if record else None,
            }
        )
    return rows


def _postgres_row(current: Settings) -> dict[str, Any]:
    row: dict[str, Any] = {"name": "postgres", "title": "PostgreSQL", "pid": None, "since": None}
    if not current.embedded:
        return {**row, "state": "external", "url": where(current.platform_url)}
    process = embedded_server(current).process()
    if process is None:
        return {**row, "state": "stopped", "url": None}
    since = datetime.fromtimestamp(process.create_time(), UTC).isoformat(timespec="seconds")
    return {**row, "state": "running", "url": where(current.platform_url), "pid": process.pid, "since": since}


def _as_json(user: Holder | None) -> dict[str, Any] | None:
    return None if user is None else {"command": user.purpose, "pid": user.pid, "since": user.since.isoformat()}
