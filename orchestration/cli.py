"""The command line `lifecycle`: its verbs and its exit codes.

Command modules import what they need when they run, so that `lifecycle --help` answers at once.
"""

import contextlib
import os
from typing import Annotated

import typer

from orchestration.commands import (
    configuration,
    database,
    docs,
    erase_unit,
    events,
    experiments,
    keys,
    modules,
    services,
)
from orchestration.commands import demo as demo_command
from orchestration.commands.console import console
from orchestration.commands.failures import run

app = typer.Typer(
    name="lifecycle",
    help="From a raw event to a promoted model: one lineage graph, its services and its configuration.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

SERVICES = "Services"
DATA = "Data and models"
CONFIGURATION = "Configuration"

app.command(rich_help_panel=SERVICES)(services.up)
app.command(rich_help_panel=SERVICES)(services.down)
app.command(rich_help_panel=SERVICES)(services.status)
app.command(rich_help_panel=SERVICES)(services.clean)
app.command(rich_help_panel=SERVICES)(docs.docs)
app.command(rich_help_panel=DATA)(demo_command.demo)
app.command(rich_help_panel=DATA)(demo_command.import_history)
app.command(rich_help_panel=DATA, context_settings=modules.PASSED_ON, add_help_option=False)(modules.train)
app.command(rich_help_panel=DATA, context_settings=modules.PASSED_ON, add_help_option=False)(modules.replay)
app.command(rich_help_panel=DATA)(erase_unit.erase_unit)
app.command(rich_help_panel=CONFIGURATION)(configuration.sync)
app.add_typer(events.app, name="events", rich_help_panel=DATA)
app.add_typer(experiments.app, name="experiment", rich_help_panel=CONFIGURATION)
app.add_typer(database.app, name="db", rich_help_panel=CONFIGURATION)
app.add_typer(keys.app, name="keys", rich_help_panel=CONFIGURATION)


@app.callback()
def options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error, not only its message.")
    ] = False,
) -> None:
    """Options before the verb."""
    if debug:
        os.environ["LIFECYCLE_DEBUG"] = "1"
    _warn_about_unknown_settings()


def _warn_about_unknown_settings() -> None:
    """Without a warning, a misspelt variable would be ignored and its default used."""
    from foundation.settings import home_folder, unknown_names
    from orchestration.local.home import recorded_settings

    recorded: dict[str, str] = {}
    with contextlib.suppress(OSError, UnicodeDecodeError):  # reported by the commands that need the home
        recorded = recorded_settings(home_folder())
    for warning in unknown_names({**recorded, **os.environ}):
        console(stderr=True).print(warning, markup=False, soft_wrap=True)


def main() -> None:
    """Run the command line. Exit codes: 0, 1 for an error with a message, 2 for wrong usage, 130 when interrupted."""
    run(app, "lifecycle")


if __name__ == "__main__":
    main()
