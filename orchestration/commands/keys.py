"""`lifecycle keys …`: API keys of clients."""

from datetime import timedelta
from typing import Annotated

import typer
from rich.table import Table

from orchestration.commands.access import change_by_hand, connection_for
from orchestration.commands.console import console, moment, say

app = typer.Typer(no_args_is_help=True, help="API keys of clients: make, list, rotate, revoke.")

PURPOSE = "lifecycle keys"

DEFAULT_SCOPES = ["assign", "ingest"]
SCOPES_HELP = "What the key may do: assign, ingest, read or admin; repeatable."


@app.command()
def make(
    name: Annotated[
        str, typer.Argument(help="Who uses the key. A name can't be used twice, even after its key was revoked.")
    ],
    scope: Annotated[list[str] | None, typer.Option(help=SCOPES_HELP, show_default=", ".join(DEFAULT_SCOPES))] = None,
) -> None:
    """Make a key and print only the key on stdout. It is stored as a hash, so it is not shown again."""
    from foundation.api_keys import make_api_key

    with connection_for(PURPOSE) as connection:
        key, plaintext = make_api_key(
            connection, name, scope or DEFAULT_SCOPES, change=change_by_hand(PURPOSE, "Made by hand.")
        )
    console(stderr=True).print(
        f"Key {key.name} may {', '.join(sorted(key.scopes))}. Store it now: it is not shown again.",
        soft_wrap=True,
        markup=False,
    )
    typer.echo(plaintext)


@app.command("list")
def list_keys() -> None:
    """List every key by name, without the keys themselves."""
    from foundation.api_keys import list_api_keys

    with connection_for(PURPOSE, reads=True) as connection:
        keys = list_api_keys(connection)
    if not keys:
        say("There are no keys yet: `lifecycle keys make NAME` makes one.")
        return
    table = Table()
    for heading in ("name", "may", "made", "old key works until", "revoked"):
        table.add_column(heading, overflow="fold")
    for key in keys:
        times = [moment(at) for at in (key.created_at, key.previous_until, key.revoked_at)]
        table.add_row(key.name, ", ".join(sorted(key.scopes)), *times)
    console().print(table, markup=False)


@app.command()
def rotate(
    name: Annotated[str, typer.Argument(help="The key's name.")],
    grace_minutes: Annotated[
        int,
        typer.Option(help="How long the old key keeps working next to the new one, 0 to 10080 (a week)."),
    ] = 0,
) -> None:
    """Give a key a new secret and print only the secret on stdout. An older secret that still worked stops at once."""
    from foundation.api_keys import MAX_GRACE, rotate_api_key
    from foundation.errors import LifecycleError

    most = MAX_GRACE // timedelta(minutes=1)
    if not 0 <= grace_minutes <= most:
        raise LifecycleError(f"--grace-minutes is {grace_minutes}: give 0 to {most} (a week).")
    with connection_for(PURPOSE) as connection:
        key, plaintext = rotate_api_key(
            connection, name, timedelta(minutes=grace_minutes), change=change_by_hand(PURPOSE, "Rotated by hand.")
        )
    old = f"works until {moment(key.previous_until)}" if key.previous_until else "no longer works"
    console(stderr=True).print(
        f"Key {key.name} has a new secret, and the old one {old}. Store it now: it is not shown again.",
        soft_wrap=True,
        markup=False,
    )
    typer.echo(plaintext)


@app.command()
def revoke(name: Annotated[str, typer.Argument(help="The key's name.")]) -> None:
    """Revoke a key for good."""
    from foundation.api_keys import revoke_api_key
    from foundation.errors import LifecycleError

    with connection_for(PURPOSE) as connection:
        was_valid = revoke_api_key(connection, name, change=change_by_hand(PURPOSE, "Revoked by hand."))
    if not was_valid:
        raise LifecycleError(f"There is no valid key named {name}: `lifecycle keys list` shows all keys.")
    say(f"Key {name} is revoked.")
