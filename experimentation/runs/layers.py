"""Layers: experiments that exclude each other because they use separate buckets, and units held out of all of them.

A completed run frees its range. To avoid deadlocks, locks are always taken in this order: an experiment's name, its layer, its run.
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
    """A layer does not exist, or its range or holdout can't be used."""


def lock_layer(connection: psycopg.Connection[Any], name: str) -> None:
    """Lock the layer until the transaction ends, so that two transactions can't both find the same range free."""
    locks.hold_named(connection, locks.LAYERS, name)


def find_layer(connection: psycopg.Connection[Any], name: str) -> Layer | None:
    """The layer of that name, or None."""
    with connection.cursor(row_factory=class_row(Layer)) as cursor:
        return cursor.execute(FIND, (name,)).fetchone()


def names_of_layers(connection: psycopg.Connection[Any]) -> list[str]:
    """The names of all layers, in order."""
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
    """The layer of that name, created like this if there is none; an existing layer is not changed."""
    with connection.transaction():
        lock_layer(connection, name)
        layer = find_layer(connection, name)
        if layer is None:
            connection.execute(ADD, (name, description, holdout))
            layer = _require_layer(connection, name)
            _audit(connection, "layer.created", None, layer, change)
    return layer


def describe_layer(
    connection: psycopg.Connection[Any], layer: Layer, description: str | None, *, change: Change
) -> Layer:
    """Change a layer's description."""
    with connection.transaction():
        connection.execute(DESCRIBE, (description, layer.id))
        after = _require_layer(connection, layer.name)
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

    Raises LayerError if it overlaps the range of a run that is not completed; runs `leaving` their range in this transaction are ignored.
    """
    with connection.transaction():
        lock_layer(connection, layer.name)
        end = int(holdout * BUCKETS)
        if holders := _holders(connection, layer, 0, end, leaving):
            raise LayerError(
                f"The holdout of {layer.name} can't be {holdout}, its first {end} buckets, while {' and '.join(holders)}: "
                "complete those runs first."
            )
        connection.execute(SET_HOLDOUT, (holdout, layer.id))
        after = _require_layer(connection, layer.name)
        _audit(connection, "layer.holdout_changed", layer, after, change)
    return after


def check_range(
    connection: psycopg.Connection[Any], taken: LayerRange, experiment: str, *, leaving: Collection[UUID] = ()
) -> None:
    """Check that `experiment` can take a range, and keep the range free for it until the transaction ends.

    `leaving`: the run itself, and runs that free their range in this transaction. Raises LayerError if the layer is unknown, or the range
    is invalid or overlaps the holdout or the range of another run that is not completed.
    """
    problem = f"{experiment} can't take the buckets {taken.first} to {taken.end} of {taken.layer}"
    if not 0 <= taken.first < taken.end <= BUCKETS:
        raise LayerError(f"{problem}: a range needs 0 ≤ first < end ≤ {BUCKETS}.")
    lock_layer(connection, taken.layer)
    layer = _require_layer(connection, taken.layer)
    holdout = int(layer.holdout * BUCKETS)
    if taken.first < holdout:
        raise LayerError(f"{problem}: the layer's first {holdout} buckets are the holdout, so take a range after them.")
    if holders := _holders(connection, layer, taken.first, taken.end, leaving):
        raise LayerError(f"{problem} while {' and '.join(holders)}: take a free range, or complete those runs first.")


def _require_layer(connection: psycopg.Connection[Any], name: str) -> Layer:
    layer = find_layer(connection, name)
    if layer is None:
        raise LayerError(
            f"No layer is called {name}: add it to `layers` in config/experiments.yml and run `lifecycle sync`."
        )
    return layer


def _holders(
    connection: psycopg.Connection[Any], layer: Layer, first: int, end: int, leaving: Collection[UUID]
) -> list[str]:
    """The runs that have a bucket of this range, as clauses for a message."""
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
        before=None if before is None else _audited_fields(before),
        after=_audited_fields(after),
    )


def _audited_fields(layer: Layer) -> dict[str, Any]:
    return {"holdout": str(layer.holdout), "description": layer.description}
