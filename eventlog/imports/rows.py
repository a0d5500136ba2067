"""Turns a row into events, or says why it can't."""

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from eventlog.imports.mapping import OBJECTS, WHOLE_OBJECT, EventEntry, EventMapping, NamedExperiment, Value
from eventlog.imports.runs import Experiments
from eventlog.imports.values import Extract, extractor, moment_extractor, text_of
from eventlog.validation import Event, ExplainedError, FieldError, InvalidEventError, read_event
from foundation.table_files import TableFile, UnusableError, shown

EVENT_IDS = uuid.UUID("0b9d1c9e-3c1f-5f0e-9f53-6f0a4b5d2c77")
"""Namespace of the ids of imported events. Never change it: the next import would store everything again."""
NO_ID = str(uuid.UUID(int=0))


@dataclass(frozen=True)
class Unit:
    """A unit of a declared experiment, as one row shows it."""

    unit_id: str
    variant: str
    assigned_at: datetime


@dataclass(frozen=True)
class Reject:
    """A row that can't be used: its line, a reason to count by, the detail, and the row itself."""

    line: int
    reason: str
    detail: str
    row: Any


class RowReader:
    """Turns rows into events, as a mapping says."""

    def __init__(
        self, mapping: EventMapping, table: TableFile, experiments: Experiments, *, identity: str | None, now: datetime
    ) -> None:
        """Event ids are derived from `identity`, the line and the entry of the mapping, if it maps no `event_id`.

        Without `identity` events can only be judged, because they get no id. Events after `now` are refused.
        """
        self._experiments, self._identity, self._now = experiments, identity, now
        self._table, self._nulls = table, mapping.nulls | table.nulls
        self._declared = mapping.declared
        self._makers = [self._maker(index, entry) for index, entry in enumerate(mapping.events)]
        self._reference = self._reference_of(mapping)
        self._assigned_at = (
            None
            if mapping.assigned_at is None
            else moment_extractor(mapping.assigned_at, "assigned_at", table, self._nulls)
        )

    def read(self, line: int, row: Any) -> tuple[list[Event], list[Unit]]:
        """The row's events, without those that their `where` leaves out, and the units of these events. Raises UnusableError."""
        variant, reference = self._reference(row)
        events = [event for make in self._makers if (event := make(line, row, reference)) is not None]
        if self._declared is None or not events:
            return events, []
        assigned_at = None if self._assigned_at is None else self._assigned_at(row)
        units = {
            event.unit_id: self._unit(event, variant, assigned_at or event.timestamp) for event in reversed(events)
        }
        return events, list(units.values())

    def _unit(self, event: Event, variant: str, assigned_at: datetime) -> Unit:
        assert self._declared is not None
        if not self._declared.started <= assigned_at <= self._declared.ended:
            raise UnusableError(
                "outside_experiment",
                f"{shown(event.unit_id)} would have its variant from {assigned_at.isoformat()}, when {self._declared.name} did not run",
            )
        return Unit(event.unit_id, variant, assigned_at)

    def _reference_of(self, mapping: EventMapping) -> Callable[[Any], tuple[str, list[Mapping[str, str]]]]:
        """The function that returns a row's variant, and run and variant as events carry them; both are empty if the row has none."""
        if mapping.variant is None or mapping.experiment is None:
            return lambda row: ("", [])
        variant_of = extractor(mapping.variant, "variant", self._table, self._nulls)
        named = mapping.experiment
        name = named.name if isinstance(named, NamedExperiment) else Value(named.place, constant=named.name)
        name_of = extractor(name, "experiment", self._table, self._nulls)
        experiments, required = self._experiments, mapping.declared is not None

        def reference(row: Any) -> tuple[str, list[Mapping[str, str]]]:
            name, variant = name_of(row), variant_of(row)
            if name is None or variant is None:
                if required:
                    raise UnusableError("missing_variant", "the row has no variant")
                return "", []
            return variant, [experiments.arm(name, variant)]

        return reference

    def _maker(self, index: int, entry: EventEntry) -> Callable[[int, Any, Any], Event | None]:
        parts: list[tuple[str, Extract]] = [
            *((name, self._extract(getattr(entry, name), name)) for name in ("event_type", "unit_type", "unit_id")),
            ("timestamp", moment_extractor(entry.timestamp, "timestamp", self._table, self._nulls)),
            ("event_id", self._event_id(index, entry.event_id)),
            *((name, self._object(name, given)) for name in OBJECTS if (given := getattr(entry, name))),
        ]
        allowed = [(self._table.getter(column), texts) for column, texts in entry.where.items()]
        make_id = self._derived_id(index) if entry.event_id is None and self._identity is not None else None
        encode, now = msgspec.json.encode, self._now

        def make(line: int, row: Any, reference: Any) -> Event | None:
            for get, texts in allowed:
                value = get(row)
                if isinstance(value, dict | list) or ("" if value is None else text_of(value)) not in texts:
                    return None
            event = {name: extract(row) for name, extract in parts}
            event["experiments"] = reference
            try:
                read = read_event(encode(event), now)
                # A log is always late, so its events are not flagged as late.
                read.received_at = None
                if make_id is not None:
                    read.event_id = make_id(line)
                return read
            except UnicodeEncodeError:
                raise UnusableError("not_utf8", "a value has bytes that are not UTF-8") from None
            except InvalidEventError as error:
                raise _unusable(error, event) from None
            except (TypeError, ValueError, OverflowError, RecursionError) as error:
                raise UnusableError("no_json", f"a value can't be written as JSON ({error})") from None

        return make

    def _extract(self, value: Value, what: str) -> Extract:
        return extractor(value, what, self._table, self._nulls)

    def _derived_id(self, index: int) -> Callable[[int], UUID]:
        """The id of a row's event if the mapping gives none: always the same for the same line of the same file."""
        start = f"{self._identity}/{index}/"
        return lambda line: uuid.uuid5(EVENT_IDS, f"{start}{line}")

    def _event_id(self, index: int, value: Value | None) -> Extract:
        if value is None:
            # A placeholder: it keeps `read_event` from generating an id, and the derived one replaces it.
            return lambda row: NO_ID
        extract, hashed = self._extract(value, "event_id"), value.kind == "hash"

        def event_id(row: Any) -> str:
            given = extract(row)
            if given is None:
                raise UnusableError("missing_event_id", "the row has no event_id")
            return str(uuid.uuid5(EVENT_IDS, f"{given}/{index}")) if hashed else str(given)

        return event_id

    def _object(self, what: str, values: Mapping[str, Value]) -> Extract:
        """The function that builds an object of these keys, without those that have no value."""
        parts = [(key, self._extract(value, f"{what}.{key}")) for key, value in values.items() if key != WHOLE_OBJECT]
        whole = None
        if WHOLE_OBJECT in values:
            given = values[WHOLE_OBJECT]
            whole = self._extract(Value(given.place, given.columns, kind="json"), what)

        def extract(row: Any) -> dict[str, Any]:
            built: dict[str, Any] = {}
            if whole is not None:
                value = whole(row)
                if value is not None and not isinstance(value, dict):
                    raise UnusableError(
                        f"invalid_{what.replace('metrics', 'metric')}",
                        f"{what} is {shown(value)}, which is not an object",
                    )
                built = {key: member for key, member in (value or {}).items() if member is not None}
            for key, part in parts:
                value = part(row)
                if value is not None:
                    built[key] = value
            return built

        return extract


def _unusable(error: InvalidEventError, event: Mapping[str, Any]) -> UnusableError:
    """The code of the first error, with a description of all of them."""
    first = error.errors[0]
    return UnusableError(first.error, "; ".join(_described(field_error, event) for field_error in error.errors))


def _described(error: FieldError, event: Mapping[str, Any]) -> str:
    if isinstance(error, ExplainedError):
        return f"{error.field} {error.words}"
    name, _, key = error.field.partition(".")
    value = event.get(name)
    if name not in event or (isinstance(value, Mapping) and not key):
        return f"{error.field}: {error.error}"
    if isinstance(value, Mapping):
        value = value.get(key)
    return f"{error.field} is missing" if value is None else f"{error.field} is {shown(value)}"
