"""Layers: experiments that exclude each other by taking separate buckets, and units held out of all of them.

A completed run gives its range back. Locks are taken in one order, or two transactions would wait for each other: an experiment's
name, its layer, its run.
"""

from collections.abc import Collection
from decimal import Decimal
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import class_row, scalar_row

from experimentation.assignments.bucketing import BUCKETS
from experimentation.runs.run import ExperimentationError, Layer, LayerRange
from foundation import locks
from foundation.audit import Change, write_audit

FIND = "SELECT id, name, holdout, description FROM exp.layers WHERE name = %s"
NAMES = "SELECT name FROM exp.layers ORDER BY name"
ADD = "INSERT INTO exp.layers (name, description, holdout) VALUES (%s, %s, %s)"
DESCRIBE = "UPDATE exp.layers SET description = %s WHERE id = %s"
SET_HOLDOUT = "UPDATE exp.layers SET holdout = %s WHERE id = %s"
HOLDERS = """
SELECT name || ' run ' || run || ' (' || status || ') has ' || layer_from || ' to ' || layer_to
FROM exp.experiments
WHERE layer_id = %s AND status <> 'completed' AND layer_from < %s AND layer_to > %s AND id <> ALL (%s::uuid[])
ORDER BY layer_from
"""


class LayerError(ExperimentationError):
    """A layer or a range of it that can't be had."""


def lock_layer(connection: psycopg.Connection[Any], name: str) -> None:
    """Keep others from taking ranges of the layer until the transaction ends: two must not both find a range free."""
    locks.hold_named(connection, locks.LAYERS, name)


def find_layer(connection: psycopg.Connection[Any], name: str) -> Layer | None:
    """The layer of that name."""
    with connection.cursor(row_factory=class_row(Layer)) as cursor:
        return cursor.execute(FIND, (name,)).fetchone()


def names_of_layers(connection: psycopg.Connection[Any]) -> list[str]:
    """Names of all layers, in order."""
    with connection.cursor(row_factory=scalar_row) as cursor:
        return cursor.execute(NAMES).fetchall()


def ensure_layer(
    connection: psycopg.Connection[Any],
    name: str,
    *,
    holdout: Decimal = Decimal(0),
    description: str | None = None,
    change: Change,
) -> Layer:
    """The layer of that name, made so where there was none; one that is there stays as it is."""
    with connection.transaction():
        lock_layer(connection, name)
        found = find_layer(connection, name)
        if found is None:
            connection.execute(ADD, (name, description, holdout))
            found = _known(connection, name)
            _audit(connection, "layer.created", None, found, change)
    return found


def describe_layer(
    connection: psycopg.Connection[Any], layer: Layer, description: str | None, *, change: Change
) -> Layer:
    """Change a layer's description."""
    with connection.transaction():
        connection.execute(DESCRIBE, (description, layer.id))
        after = _known(connection, layer.name)
        _audit(connection, "layer.described", layer, after, change)
    return after


def set_holdout(
    connection: psycopg.Connection[Any],
    layer: Layer,
    holdout: Decimal,
    *,
    leaving: Collection[UUID] = (),
    change: Change,
) -> Layer:
    """Change the share of units that get none of the layer's experiments.

    Raises LayerError when a run that is not completed reaches into it; runs `leaving` their range in this transaction don't count.
    """
    with connection.transaction():
        lock_layer(connection, layer.name)
        end = int(holdout * BUCKETS)
        if holders := _holders(connection, layer, 0, end, leaving):
            raise LayerError(
                f"The holdout of {layer.name} can't be {holdout}, its first {end} buckets, while {' and '.join(holders)}: "
                "complete what is in the way first."
            )
        connection.execute(SET_HOLDOUT, (holdout, layer.id))
        after = _known(connection, layer.name)
        _audit(connection, "layer.holdout_changed", layer, after, change)
    return after


def check_range(
    connection: psycopg.Connection[Any], taken: LayerRange, experiment: str, *, leaving: Collection[UUID] = ()
) -> None:
    """Make sure that `experiment` can take a range, and that it stays free for it until the transaction ends.

    `leaving`: the run itself, and runs that give up their range in this transaction. Raises LayerError when the layer is unknown, or
    the range is none, reaches into the holdout, or into the range of another run that is not completed.
    """
    wish = f"{experiment} can't take the buckets {taken.first} to {taken.end} of {taken.layer}"
    if not 0 <= taken.first < taken.end <= BUCKETS:
        raise LayerError(f"{wish}: a range begins at 0 or later, ends behind that, and at most at {BUCKETS}.")
    lock_layer(connection, taken.layer)
    layer = _known(connection, taken.layer)
    holdout = int(layer.holdout * BUCKETS)
    if taken.first < holdout:
        raise LayerError(f"{wish}: its first {holdout} are the holdout, so take a range behind them.")
    if holders := _holders(connection, layer, taken.first, taken.end, leaving):
        raise LayerError(f"{wish} while {' and '.join(holders)}: take a free range, or complete what has it first.")


def _known(connection: psycopg.Connection[Any], name: str) -> Layer:
    found = find_layer(connection, name)
    if found is None:
        raise LayerError(
            f"No layer is called {name}: add it to `layers` in config/experiments.yml and run `lifecycle sync`."
        )
    return found


def _holders(
    connection: psycopg.Connection[Any], layer: Layer, first: int, end: int, leaving: Collection[UUID]
) -> list[str]:
    """Runs that have a bucket of this stretch, as half sentences."""
    with connection.cursor(row_factory=scalar_row) as cursor:
        return cursor.execute(HOLDERS, (layer.id, end, first, list(leaving))).fetchall()


def _audit(
    connection: psycopg.Connection[Any], action: str, before: Layer | None, after: Layer, change: Change
) -> None:
    write_audit(
        connection,
        change=change,
        action=action,
        subject=f"layer {after.name}",
        before=None if before is None else _picture(before),
        after=_picture(after),
    )


def _picture(layer: Layer) -> dict[str, Any]:
    return {"holdout": str(layer.holdout), "description": layer.description}
