"""How an experiment in the file differs from its run, in words for the person who applies it."""

import json
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from experimentation.config.files import ExperimentEntry, VariantEntry
from experimentation.runs.allocations import MOST_FOR_A_NEW_TREATMENT, shrink_shares
from experimentation.runs.run import ExperimentationError, Json, LayerRange, NewVariant, Run
from foundation.yaml_files import Place


class Refused(ExperimentationError):
    """A broken rule, and the line of the file that breaks it."""

    def __init__(self, place: Place, rule: str) -> None:
        """`place`: where the file breaks the rule."""
        super().__init__(rule)
        self.place = place


def added_variant(entry: ExperimentEntry, run: Run, variants: Sequence[NewVariant]) -> NewVariant | None:
    """The variant that the file adds to a running experiment, if any. Raises Refused for any other change of its variants."""
    places = {variant.name: variant.place for variant in entry.variants}
    new = variants[len(run.variants) :]
    if [old.name for old in run.variants] != [kept.name for kept in variants[: len(run.variants)]]:
        raise Refused(
            entry.place_of("variants"),
            f"{run.label} is {run.status} with the variants {', '.join(old.name for old in run.variants)}: "
            "they stay, in this order, and a new one comes last.",
        )
    for old, kept in zip(run.variants, variants, strict=False):
        if old.role != kept.role or not same(old.config, kept.config):
            raise Refused(
                places[old.name],
                f"{old.name} of {run.label} can't change any more, since {run.label} was started: give a new experiment another name.",
            )
    if not new:
        shares = [old.allocation for old in run.variants]
    elif len(new) > 1:
        raise Refused(places[new[1].name], f"{run.label} is {run.status}: add one variant at a time.")
    elif new[0].allocation > MOST_FOR_A_NEW_TREATMENT:
        raise Refused(
            places[new[0].name],
            f"{new[0].name} starts with {new[0].allocation} while {run.label} is {run.status}: a new treatment gets at most "
            f"{MOST_FOR_A_NEW_TREATMENT}.",
        )
    else:
        shares = list(shrink_shares([old.allocation for old in run.variants], new[0].allocation))
    for old, kept, share in zip(run.variants, variants, shares, strict=False):
        if kept.allocation != share and new:
            raise Refused(
                places[old.name],
                f"{new[0].name} makes {old.name} shrink in proportion, to {share}, not {kept.allocation}.",
            )
        if kept.allocation != share:
            raise Refused(
                places[old.name],
                f"{old.name} of {run.label} has {share} while it is {run.status}, not {kept.allocation}: a running experiment's "
                f"arms grow by `lifecycle experiment ramp {run.name} --to SHARE --reason TEXT`, and the file says so afterwards.",
            )
    return new[0] if new else None


def narrowing_of(run: Run | ExperimentEntry) -> list[str]:
    """Which units a run is for, if not for all: `layer plan_page 500–5250`, `targeting …`, `overrides …`."""
    parts = []
    if run.layer is not None:
        parts.append(f"layer {_range(run.layer)}")
    if run.targeting is not None:
        parts.append(f"targeting {_one_line(run.targeting)}")
    if run.overrides:
        parts.append("overrides " + ", ".join(f"{unit_id}: {name}" for unit_id, name in sorted(run.overrides.items())))
    return parts


def narrowing_lines(run: Run, entry: ExperimentEntry) -> list[str]:
    """What the file changes in a run's layer and targeting, one line each."""
    lines = []
    if run.layer != entry.layer:
        lines.append(f"~ experiment {run.label}: layer {_range(run.layer)} → {_range(entry.layer)}")
    if run.targeting != entry.targeting:
        lines.append(f"~ experiment {run.label}: targeting {_one_line(run.targeting)} → {_one_line(entry.targeting)}")
    return lines


def override_changes(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    """`h0001: none → with_cards`, one for each unit whose override changes; empty if none does."""
    units = sorted(unit_id for unit_id in {*old, *new} if old.get(unit_id) != new.get(unit_id))
    return ", ".join(f"{unit_id}: {old.get(unit_id, 'none')} → {new.get(unit_id, 'none')}" for unit_id in units)


def _range(taken: LayerRange | None) -> str:
    return "none" if taken is None else f"{taken.layer} {taken.first}–{taken.end}"


def _one_line(rule: str | None) -> str:
    return "none" if rule is None else " ".join(rule.split())


def shares_of(variants: Sequence[NewVariant | VariantEntry]) -> str:
    """`control 0.5000, with_cards 0.5000`."""
    return ", ".join(f"{variant.name} {variant.allocation}" for variant in variants)


def substance(variant: NewVariant) -> tuple[str, str, Decimal, str]:
    """What must be equal for two variants to be the same; descriptions don't matter."""
    return variant.name, variant.role, variant.allocation, _canonical(variant.config)


def _canonical(config: Json) -> str:
    """Equal text for equal JSON. In Python True equals 1, and PostgreSQL returns some floats as integers."""
    return json.dumps(_plain_numbers(config), sort_keys=True)


def _plain_numbers(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain_numbers(member) for key, member in value.items()}
    if isinstance(value, list):
        return [_plain_numbers(member) for member in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def same(left: Json, right: Json) -> bool:
    """Whether the two look the same to a client."""
    return _canonical(left) == _canonical(right)
