"""Layers in experiments.yml: which there are, and which of their buckets each experiment takes."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from decimal import Decimal

import yaml

from experimentation.assignments.bucketing import BUCKETS
from experimentation.config.yaml_nodes import Place, Reader
from experimentation.runs.run import LayerRange, RunStatus

NO_HOLDOUT = Decimal("0.0000")


@dataclass(frozen=True)
class LayerEntry:
    """One layer of the file."""

    name: str
    holdout: Decimal
    description: str | None
    place: Place


@dataclass(frozen=True)
class RangeEntry:
    """The buckets that an experiment of the file takes, and where it says so."""

    experiment: str
    status: RunStatus
    taken: LayerRange
    node: yaml.Node


def read_layer(reader: Reader, node: yaml.Node, seen: set[str]) -> LayerEntry:
    """One member of `layers`; its name is added to `seen`. Raises UnusableValueError."""
    values = reader.mapping(node, "A layer", ("name",), ("description", "holdout"))
    name = reader.name(values["name"], "The name of a layer")
    if name in seen:
        raise reader.refuse(values["name"], f"Layer {name} stands here twice.")
    seen.add(name)
    description, holdout = values.get("description"), values.get("holdout")
    return LayerEntry(
        name=name,
        holdout=NO_HOLDOUT if holdout is None else reader.share(holdout, f"The holdout of layer {name}"),
        description=None if description is None else reader.text(description, f"The description of layer {name}"),
        place=reader.place(node),
    )


def read_range(reader: Reader, node: yaml.Node, experiment: str) -> LayerRange:
    """`{name: plan_page, from: 500, to: 5250}`. Raises UnusableValueError."""
    values = reader.mapping(node, f"The layer of {experiment}", ("name", "from", "to"), ())
    name = reader.name(values["name"], f"The name of {experiment}'s layer")
    first, end = (
        reader.number(values[key], f"`{key}` in the layer of {experiment}", 0, BUCKETS) for key in ("from", "to")
    )
    if first >= end:
        raise reader.refuse(values["to"], f"`to` in the layer of {experiment} must be above its `from`, {first}.")
    return LayerRange(name, first, end)


def check_ranges(
    reader: Reader, listed: Collection[str], layers: Sequence[LayerEntry], ranges: Sequence[RangeEntry]
) -> None:
    """Note ranges of layers that are not listed, and those of experiments not completed that reach into a holdout or each other.

    `listed` has the names of all layers of the file, of unusable ones too.
    """
    holdouts = {layer.name: int(layer.holdout * BUCKETS) for layer in layers}
    open_ranges: list[RangeEntry] = []
    for entry in ranges:
        taken = entry.taken
        wish = f"{entry.experiment} takes the buckets {taken.first} to {taken.end} of {taken.layer}"
        if taken.layer not in listed:
            reader.refuse(
                entry.node,
                f"{entry.experiment} is in the layer {taken.layer}, which `layers` of this file does not list.",
            )
        if entry.status == "completed":
            continue
        holdout = holdouts.get(taken.layer, 0)
        if taken.first < holdout:
            reader.refuse(entry.node, f"{wish}, whose first {holdout} are its holdout: take a range behind them.")
        for other in open_ranges:
            if other.taken.layer == taken.layer and other.taken.first < taken.end and taken.first < other.taken.end:
                reader.refuse(
                    entry.node,
                    f"{wish}, and {other.experiment} takes {other.taken.first} to {other.taken.end}: ranges of experiments that are "
                    "not completed must not overlap.",
                )
        open_ranges.append(entry)
