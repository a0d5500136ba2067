"""`lifecycle events dead-letters …`: events that PostgreSQL refused."""

from collections import Counter
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.table import Table

from orchestration.commands.access import change_by_hand, connection_for
from orchestration.commands.console import console, moment, say

app = typer.Typer(no_args_is_help=True, help="Acknowledged events that PostgreSQL refused: list, show, replay, drop.")

PURPOSE = "lifecycle events dead-letters"
PAGE = 1_000

Ids = Annotated[list[int] | None, typer.Argument(help="Numbers that `list` shows.")]
All = Annotated[bool, typer.Option("--all", help="All dead letters.")]


@app.command("list")
def list_letters(
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="How many to show at most, oldest first.")] = 50,
) -> None:
    """List dead letters, oldest first."""
    from eventlog.dead_letters import count_dead_letters, list_dead_letters

    with connection_for(PURPOSE, reads=True) as connection:
        count, letters = count_dead_letters(connection), list_dead_letters(connection, limit=limit)
    if not letters:
        say("There are no dead letters.")
        return
    table = Table()
    for heading in ("number", "event", "type", "unit", "received", "tries", "error"):
        table.add_column(heading, overflow="fold")
    for letter in letters:
        event = letter.read()
        unit = f"{event['unit_type']}:{event['unit_id']}"
        table.add_row(
            str(letter.id),
            str(letter.event_id),
            event["event_type"],
            unit,
            moment(letter.received_at),
            str(letter.tries),
            letter.error,
        )
    console().print(table, markup=False)
    if count > len(letters):
        say(f"{count - len(letters):,} more are not shown: --limit shows more.")


@app.command()
def show(ids: Annotated[list[int], typer.Argument(help="Numbers that `list` shows.")]) -> None:
    """Print complete events with their errors, one JSON object per line."""
    import msgspec

    from eventlog.dead_letters import list_dead_letters

    with connection_for(PURPOSE, reads=True) as connection:
        letters = list_dead_letters(connection, ids)
    _require(ids, [letter.id for letter in letters])
    for letter in letters:
        shown = {"number": letter.id, "error": letter.error, "tries": letter.tries, "failed_at": letter.failed_at}
        typer.echo(msgspec.json.encode({**shown, "event": letter.read()}).decode())


@app.command()
def replay(ids: Ids = None, every: All = False) -> None:
    """Try to store the events again. Those that are stored leave the dead letters; those refused again stay."""
    from eventlog.dead_letters import replay_dead_letter

    outcomes: Counter[str] = Counter()
    with connection_for(PURPOSE) as connection:
        for letter in _chosen(connection, ids, every):
            done = replay_dead_letter(connection, letter)
            # One transaction each: creating a day's partition blocks other sessions from creating theirs until the commit.
            connection.commit()
            outcomes[done.outcome or "refused"] += 1
            if done.outcome is None:
                say(f"{letter.id}: refused again: {done.error}")
    labels = {
        "stored": "stored",
        "known": "stored before",
        "erased": "dropped, since their unit was erased",
        "refused": "refused again",
    }
    counts = [f"{outcomes[name]:,} {label}" for name, label in labels.items() if outcomes[name]]
    say(f"{'; '.join(counts)}." if counts else "There are no dead letters.")
    if outcomes["refused"]:
        raise typer.Exit(1)


@app.command()
def drop(
    ids: Ids = None, every: All = False, yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False
) -> None:
    """Remove dead letters for good: their events are lost."""
    from eventlog.dead_letters import delete_dead_letters
    from foundation.audit import write_audit

    with connection_for(PURPOSE) as connection:
        chosen = [letter.id for letter in _chosen(connection, ids, every)]
        if not chosen:
            say("There are no dead letters.")
            return
        if not yes:
            typer.confirm(f"Remove {len(chosen):,} dead letters for good?", abort=True)
        dropped = delete_dead_letters(connection, chosen)
        write_audit(
            connection, change=change_by_hand(PURPOSE, "Dropped by hand."), action="dead_letters.dropped", subject="events",
            after={"numbers": dropped[:PAGE], "count": len(dropped)},
        )  # fmt: skip
        say(f"{len(dropped):,} dead letters are removed.")


def _chosen(connection: Any, ids: list[int] | None, every: bool) -> Iterator[Any]:
    """The dead letters with these `ids`, or all of them, read a page at a time. Raises LifecycleError for an unknown id."""
    from eventlog.dead_letters import list_dead_letters
    from foundation.errors import LifecycleError

    if bool(ids) is every:
        raise LifecycleError(
            "Give either the numbers of dead letters or --all: `lifecycle events dead-letters list` shows them."
        )
    if ids:
        letters = list_dead_letters(connection, ids)
        _require(ids, [letter.id for letter in letters])
        yield from letters
        return
    last = 0
    while page := list_dead_letters(connection, after=last, limit=PAGE):
        yield from page
        last = page[-1].id


def _require(ids: list[int], existing: list[int]) -> None:
    from foundation.errors import LifecycleError

    missing = sorted(set(ids) - set(existing))
    if missing:
        raise LifecycleError(
            f"There is no dead letter {', '.join(map(str, missing))}: `lifecycle events dead-letters list` shows the existing ones."
        )
