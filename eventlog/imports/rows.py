"""One row → its events, or why not."""

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from eventlog.imports.mapping import OBJECTS, WHOLE_OBJECT, EventEntry, EventMapping, NamedExperiment, Value
from eventlog.imports.reading import Source
from eventlog.imports.runs import Experiments
from eventlog.imports.values import Extract, UnusableError, extractor, moment_extractor, shown, text_of
from eventlog.validation import Event, ExplainedError, InvalidEventError, read_event

EVENT_IDS = uuid.UUID("0b9d1c9e-3c1f-5f0e-9f53-6f0a4b5d2c77")
"""Namespace of the ids of imported events; never change it: an import would store everything again."""
NO_ID = str(uuid.UUID(int=0))


@dataclass(frozen=True)
class Unit:
    """A unit of a declared experiment, as one row shows it."""

    unit_id: str
    variant: str
    assigned_at: datetime


@dataclass(frozen=True)
class Reject:
    """A row that gives no events: its line, a reason to count by, the detail, and what stands there."""

    line: int
    reason: str
    detail: str
    row: Any


class RowReader:
    """Makes events of rows, by a mapping."""

    def __init__(
        self, mapping: EventMapping, source: Source, experiments: Experiments, *, identity: str | None, now: datetime
    ) -> None:
        """`identity` is what ids of events are made from, beside line and place; without it none are made: events are only judged.

        Events after `now` are refused.
        """
        self._experiments, self._identity, self._now = experiments, identity, now
        self._source, self._nulls = source, mapping.nulls | source.nulls
        self._declared = mapping.declared
        self._makers = [self._maker(index, entry) for index, entry in enumerate(mapping.events)]
        self._reference = self._reference_of(mapping)
        self._assigned_at = (
            None
            if mapping.assigned_at is None
            else moment_extractor(mapping.assigned_at, "assigned_at", source, self._nulls)
        )

    def read(self, line: int, row: Any) -> tuple[list[Event], list[Unit]]:
        """The row's events, none where no `where` lets it in, and the units that they show. Raises UnusableError."""
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
                f"{shown(event.unit_id)} would have its variant since {assigned_at.isoformat()}, outside of {self._declared.name}",
            )
        return Unit(event.unit_id, variant, assigned_at)

    def _reference_of(self, mapping: EventMapping) -> Callable[[Any], tuple[str, list[Mapping[str, str]]]]:
        """What finds the variant's name, and the run and variant as events carry them; nothing where a row names none."""
        if mapping.variant is None or mapping.experiment is None:
            return lambda row: ("", [])
        variant_of = extractor(mapping.variant, "variant", self._source, self._nulls)
        named = mapping.experiment
        name = named.name if isinstance(named, NamedExperiment) else Value(named.place, constant=named.name)
        name_of = extractor(name, "experiment", self._source, self._nulls)
        experiments, must = self._experiments, mapping.declared is not None

        def reference(row: Any) -> tuple[str, list[Mapping[str, str]]]:
            name, variant = name_of(row), variant_of(row)
            if name is None or variant is None:
                if must:
                    raise UnusableError("missing_variant", "the row names no variant")
                return "", []
            return variant, [experiments.arm(name, variant)]

        return reference

    def _maker(self, index: int, entry: EventEntry) -> Callable[[int, Any, Any], Event | None]:
        parts: list[tuple[str, Extract]] = [
            *((name, self._extract(getattr(entry, name), name)) for name in ("event_type", "unit_type", "unit_id")),
            ("timestamp", moment_extractor(entry.timestamp, "timestamp", self._source, self._nulls)),
            ("event_id", self._event_id(index, entry.event_id)),
            *((name, self._object(name, given)) for name in OBJECTS if (given := getattr(entry, name))),
        ]
        allowed = [(self._source.getter(column), texts) for column, texts in entry.where.items()]
        make_id = self._made_id(index) if entry.event_id is None and self._identity is not None else None
        encode, now = msgspec.json.encode, self._now

        def make(line: int, row: Any, reference: Any) -> Event | None:
            for get, texts in allowed:
                found = get(row)
                if isinstance(found, dict | list) or ("" if found is None else text_of(found)) not in texts:
                    return None
            event = {name: extract(row) for name, extract in parts}
            event["experiments"] = reference
            try:
                read = read_event(encode(event), now)
                # History is late by nature, so it is not flagged as late.
                read.received_at = None
                if make_id is not None:
                    read.event_id = make_id(line)
                return read
            except UnicodeEncodeError:
                raise UnusableError("not_utf8", "a value has bytes that are not UTF-8") from None
            except InvalidEventError as error:
                raise _unusable(error, event) from None
            except (TypeError, ValueError, OverflowError, RecursionError) as error:
                raise UnusableError("no_json", f"a value can't be kept as JSON ({error})") from None

        return make

    def _extract(self, value: Value, what: str) -> Extract:
        return extractor(value, what, self._source, self._nulls)

    def _made_id(self, index: int) -> Callable[[int], UUID]:
        """The id of a row's event where the mapping gives none: always the same for the same line of the same file."""
        start = f"{self._identity}/{index}/"
        return lambda line: uuid.uuid5(EVENT_IDS, f"{start}{line}")

    def _event_id(self, index: int, value: Value | None) -> Extract:
        if value is None:
            # Another is made where the event is accepted; this one spares the reader making one.
            return lambda row: NO_ID
        extract, hashed = self._extract(value, "event_id"), value.kind == "hash"

        def event_id(row: Any) -> str:
            given = extract(row)
            if given is None:
                raise UnusableError("missing_event_id", "the row has no event_id")
            return str(uuid.uuid5(EVENT_IDS, f"{given}/{index}")) if hashed else str(given)

        return event_id

    def _object(self, what: str, values: Mapping[str, Value]) -> Extract:
        """What puts an object of these keys together, without those that have nothing."""
        parts = [(key, self._extract(value, f"{what}.{key}")) for key, value in values.items() if key != WHOLE_OBJECT]
        whole = None
        if WHOLE_OBJECT in values:
            given = values[WHOLE_OBJECT]
            whole = self._extract(Value(given.place, given.columns, kind="json"), what)

        def extract(row: Any) -> dict[str, Any] | None:
            found: Any = {} if whole is None else whole(row)
            if whole is not None:
                if found is not None and not isinstance(found, dict):
                    raise UnusableError(
                        f"invalid_{what.replace('metrics', 'metric')}", f"{what} is {shown(found)}, which is no object"
                    )
                found = {key: value for key, value in (found or {}).items() if value is not None}
            for key, part in parts:
                value = part(row)
                if value is not None:
                    found[key] = value
            held: dict[str, Any] | None = found
            return held

        return extract


def _unusable(error: InvalidEventError, event: Mapping[str, Any]) -> UnusableError:
    """The first error by its code, and all of them for a person."""
    first = error.errors[0]
    return UnusableError(first.error, "; ".join(_told(found, event) for found in error.errors))


def _told(found: Any, event: Mapping[str, Any]) -> str:
    if isinstance(found, ExplainedError):
        return f"{found.field} {found.words}"
    name, _, key = found.field.partition(".")
    value = event.get(name)
    if name not in event or (isinstance(value, Mapping) and not key):
        return f"{found.field}: {found.error}"
    if isinstance(value, Mapping):
        value = value.get(key)
    return f"{found.field} is missing" if value is None else f"{found.field} is {shown(value)}"
