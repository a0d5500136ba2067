"""`lifecycle events …`: commands for events, outside the API."""

import typer

from orchestration.commands import dead_letters
from orchestration.commands.event_import import import_events
from orchestration.commands.event_restore import restore

app = typer.Typer(no_args_is_help=True, help="Events: import, restore, dead letters.")

app.command("import")(import_events)
app.command()(restore)
app.add_typer(dead_letters.app, name="dead-letters")
