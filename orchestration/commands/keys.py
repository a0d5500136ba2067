"""`lifecycle keys …`: API keys of clients. Belongs here: options, printing. Does not belong here: making and checking (experimentation)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.table import Table

from experimentation.settings import settings
from orchestration.commands.console import console, say
from orchestration.local.databases import database

app = typer.Typer(no_args_is_help=True, help="API keys of clients: make, list, revoke.")

DEFAULT_SCOPES = ["assign", "ingest"]
SCOPES_HELP = "What the key may do, once for each: assign, ingest, read or admin."


@app.command()
def make(
    name: Annotated[str, typer.Argument(help="Who uses the key; a name is used once, even after it was revoked.")],
    scope: Annotated[list[str] | None, typer.Option(help=SCOPES_HELP, show_default=", ".join(DEFAULT_SCOPES))] = None,
) -> None:
    """Make a key and print it, alone on stdout. It is stored as a hash, so this is the only time that it is seen."""
    from experimentation.api_keys import make_api_key

    with _connection() as connection:
        key, plaintext = make_api_key(connection, name, scope or DEFAULT_SCOPES)
    console(stderr=True).print(
        f"Key {key.name} may {', '.join(sorted(key.scopes))}. Keep it now: it is not shown again.", soft_wrap=True
    )
    typer.echo(plaintext)


@app.command("list")
def list_keys() -> None:
    """List every key by name, without the keys themselves."""
    from experimentation.api_keys import list_api_keys

    with _connection() as connection:
        keys = list_api_keys(connection)
    if not keys:
        say("There are no keys yet: `lifecycle keys make NAME` makes one.")
        return
    table = Table()
    for heading in ("name", "may", "made", "revoked"):
        table.add_column(heading, overflow="fold")
    for key in keys:
        revoked = f"{key.revoked_at:%Y-%m-%d %H:%M}" if key.revoked_at else ""
        table.add_row(key.name, ", ".join(sorted(key.scopes)), f"{key.created_at:%Y-%m-%d %H:%M}", revoked)
    console().print(table)


@app.command()
def revoke(name: Annotated[str, typer.Argument(help="The key's name.")]) -> None:
    """Revoke a key for good."""
    from experimentation.api_keys import revoke_api_key

    with _connection() as connection:
        was_valid = revoke_api_key(connection, name)
    if not was_valid:
        raise typer.BadParameter(f"There is no valid key named {name}: `lifecycle keys list` shows them.")
    say(f"Key {name} is revoked.")


@contextmanager
def _connection() -> Iterator[Any]:
    """A connection to a migrated database, in one transaction."""
    import psycopg

    from experimentation.migrate import migrate

    current = settings()
    with database(current, "lifecycle keys"):
        migrate(current.platform_url)
        with psycopg.connect(current.platform_url, connect_timeout=10) as connection:
            yield connection
