"""Events as lines of text for PostgreSQL's COPY."""

from collections.abc import Sequence

import msgspec

from eventlog.validation import Event

COLUMNS = (
    "id", "timestamp", "event_type", "unit_type", "unit_id", "experiments", "context", "metrics", "payload", "flags",
)  # fmt: skip
# COPY's own sign for what is absent.
_ABSENT = b"\\N"
_CONTROLS = str.maketrans({"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"})

_encode = msgspec.json.Encoder().encode


def copy_lines(events: Sequence[Event]) -> bytes:
    """The lines of `events`, sorted by (event_id, timestamp), since two that store the same events in different orders would deadlock.

    Of several with the same id and time the first counts, as it does where they come one after the other.
    """
    once = dict(map(_line, reversed(events)))
    return b"".join([key + once[key] for key in sorted(once)])


def _line(event: Event) -> tuple[bytes, bytes]:
    """What the primary key is made of, in words that sort as it does, and the rest of the line."""
    event_type, unit_id, payload = event.event_type, event.unit_id, event.payload
    if not event_type.isprintable() or "\\" in event_type:
        event_type = event_type.translate(_CONTROLS)
    if not unit_id.isprintable() or "\\" in unit_id:
        unit_id = unit_id.translate(_CONTROLS)
    # Ids and times as msgspec writes them, without the quotes: it is several times faster at both than their own classes.
    # The time's Z goes with the rest, since a whole second would sort behind its fractions with it.
    return (
        _encode(event.event_id)[1:-1] + b"\t" + _encode(event.timestamp)[1:-2],
        # JSON has no control characters, but it may have backslashes.
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
