"""Finds the run and variant that a name means."""

import difflib
import uuid
from collections.abc import Collection, Mapping
from typing import Any
from uuid import UUID

import psycopg

from eventlog.imports.mapping import DeclaredExperiment, EventMapping, NamedExperiment, Value
from experimentation.runs.imported import imported_run
from experimentation.runs.run import Run
from experimentation.runs.store import names_of_runs, runs_of
from foundation.table_files import UnusableError, shown
from foundation.yaml_files import ConfigError, Problem

Arm = Mapping[str, str]


class Experiments:
    """Runs and variants that a mapping can mean, by experiment name and variant name."""

    def __init__(self, arms: Mapping[str, Mapping[str, Arm]], run_id: UUID | None = None) -> None:
        """`run_id`: the run of a declared experiment, once it is stored."""
        self._arms, self.run_id = arms, run_id

    def arm(self, name: str, variant: str) -> Arm:
        """Run and variant as an event carries them. Raises UnusableError."""
        try:
            return self._arms[name][variant]
        except KeyError:
            pass
        if name not in self._arms:
            raise UnusableError("unknown_experiment", f"unknown experiment {shown(name)}{among(name, self._arms)}")
        raise UnusableError(
            "unknown_variant", f"{name} has no variant {shown(variant)}{among(variant, self._arms[name])}"
        )


def find_experiments(connection: psycopg.Connection[Any], mapping: EventMapping) -> Experiments:
    """What the mapping's names mean in this database. Raises ConfigError for an unknown name, and ImportedRunError."""
    declared, named = mapping.declared, mapping.experiment
    if declared is not None:
        run = imported_run(connection, **_declaration(declared))
        return Experiments({declared.name: _placeholders(declared)}) if run is None else of_run(declared, run)
    if not isinstance(named, NamedExperiment):
        return Experiments({})
    if named.name.columns:
        return Experiments({name: _arms(runs_of(connection, name)[-1]) for name in names_of_runs(connection)})
    run = _named_run(connection, mapping, named)
    arms = _arms(run)
    _check_constants(mapping, mapping.variant, run.label, arms)
    return Experiments({run.name: arms})


def of_run(declared: DeclaredExperiment, run: Run) -> Experiments:
    """The declared experiment, with the ids of its stored run."""
    return Experiments({declared.name: _arms(run)}, run.id)


def among(name: str, known: Collection[str]) -> str:
    """The end of a message about an unknown name: the nearest known name, and all of them."""
    if not known:
        return ": there are none"
    nearest = difflib.get_close_matches(name, known, 1)
    hint = f": did you mean {nearest[0]}? Choose from" if nearest else ": choose from"
    return f"{hint} {', '.join(sorted(known))}"


def _named_run(connection: psycopg.Connection[Any], mapping: EventMapping, named: NamedExperiment) -> Run:
    name, place = named.name.constant, named.name.place
    runs = runs_of(connection, name)
    if not runs:
        rule = f"The database has no experiment {name}{among(name, names_of_runs(connection))}."
        raise ConfigError([Problem(place, rule)])
    for run in runs:
        if run.run == (named.run or runs[-1].run):
            return run
    raise ConfigError([Problem(place, f"{name} has no run {named.run}: its runs are 1 to {runs[-1].run}.")])


def _check_constants(mapping: EventMapping, variant: Value | None, label: str, arms: Mapping[str, Arm]) -> None:
    if variant is None:
        return
    for name in (*(variant.choices or {}).values(), variant.constant, variant.default):
        if name is not None and name not in arms:
            raise ConfigError([Problem(variant.place, f"{label} has no variant {name}{among(name, arms)}.")])


def _declaration(declared: DeclaredExperiment) -> dict[str, Any]:
    return {
        "name": declared.name,
        "unit_type": declared.unit_type,
        "variants": declared.variants,
        "started": declared.started,
        "ended": declared.ended,
    }


def _arms(run: Run) -> dict[str, Arm]:
    return {
        variant.name: {"experiment_id": str(run.id), "variant_id": str(variant.id)}
        for variant in run.variants
        if variant.role != "remainder"
    }


def _placeholders(declared: DeclaredExperiment) -> dict[str, Arm]:
    """Random ids for judging rows: the run is created when they are stored."""
    run = str(uuid.uuid4())
    return {
        variant.name: {"experiment_id": run, "variant_id": str(uuid.uuid4())}
        for variant in declared.variants
        if variant.role != "remainder"
    }
