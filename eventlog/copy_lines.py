"""Events as lines of text for PostgreSQL's COPY."""

from collections.abc import Sequence

import msgspec

from eventlog.validation import Event

COLUMNS = (
    "id", "timestamp", "event_type", "unit_type", "unit_id", "experiments", "context", "metrics", "payload", "flags",
)  # fmt: skip
# COPY's marker for NULL.
_ABSENT = b"\\N"
_CONTROLS = str.maketrans({"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"})

_encode = msgspec.json.Encoder().encode


def copy_lines(events: Sequence[Event]) -> bytes:
    """The lines of `events`, sorted by (event_id, timestamp): writers that store the same events in different orders would deadlock.

    If several events have the same id and time, only the first is written.
    """
    # Reversed, so that the first event with a key overwrites the later ones.
    rest_by_key = dict(map(_line, reversed(events)))
    return b"".join([key + rest_by_key[key] for key in sorted(rest_by_key)])


def _line(event: Event) -> tuple[bytes, bytes]:
    """The primary key as text that sorts in the key's order, and the rest of the line."""
    event_type, unit_id, payload = event.event_type, event.unit_id, event.payload
    if not event_type.isprintable() or "\\" in event_type:
        event_type = event_type.translate(_CONTROLS)
    if not unit_id.isprintable() or "\\" in unit_id:
        unit_id = unit_id.translate(_CONTROLS)
    # msgspec formats ids and times several times faster than their own classes do; its quotes are cut off.
    # The time's Z belongs to the rest: with it, a whole second would sort after its fractions.
    return (
        _encode(event.event_id)[1:-1] + b"\t" + _encode(event.timestamp)[1:-2],
        # JSON text has no control characters, but it may have backslashes.
        b"\t".join(
            (
                f"Z\t{event_type}\t{event.unit_type}\t{unit_id}".encode(),
                _encode(event.experiments).replace(b"\\", b"\\\\"),
                _encode(event.context).replace(b"\\", b"\\\\"),
                _encode(event.metrics).replace(b"\\", b"\\\\"),
                _ABSENT if payload is None else _encode(payload).replace(b"\\", b"\\\\"),
                f"{{{','.join(event.flags)}}}\n".encode(),
            )
        ),
    )
