"""Reads and checks the clients' settings."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from lifecycle_client.exceptions import ClientSetupError

DEFAULT_URL = "http://127.0.0.1:8000"
# Longer than the 0.7 s after which the service answers 503, so that its Retry-After is seen.
DEFAULT_TIMEOUT = 1.0
DEFAULT_TTL = 300.0
DEFAULT_MAX_ENTRIES = 10_000
DEFAULT_STALE_FOR = 86_400.0
PATH = "/api/v1/assignments"
EVENTS_PATH = "/api/v1/events/batch"


@dataclass(frozen=True)
class Options:
    """Where to ask, with which key (not shown), and how long answers are kept. Times are in seconds."""

    url: str
    headers: dict[str, str]
    timeout: float
    ttl: float
    max_entries: int
    stale_for: float

    def __repr__(self) -> str:
        """The address, without the key."""
        return f"Options({self.url})"


def read_options(
    api_key: str | None, base_url: str | None, timeout: float, ttl: float, max_entries: int, stale_for: float
) -> Options:
    """The settings; LIFECYCLE_API_KEY and ASSIGNMENT_SERVICE_URL replace a key or address of None. Raises ClientSetupError."""
    headers = _headers(api_key)
    _check_timeout(timeout)
    for name, value in (("ttl", ttl), ("max_entries", max_entries), ("stale_for", stale_for)):
        _check_not_below(name, value, 0)
    return Options(_address(base_url, "ASSIGNMENT_SERVICE_URL") + PATH, headers, timeout, ttl, max_entries, stale_for)


@dataclass(frozen=True)
class EventOptions:
    """Where to send events, with which key (not shown), and how long and how many events wait. Times in seconds, sizes in bytes."""

    url: str
    headers: dict[str, str]
    timeout: float
    flush_at: int
    flush_every: float
    max_buffered: int
    max_buffered_bytes: int
    spool_dir: Path | None
    max_spool_bytes: int
    exit_timeout: float
    exposure_every: float
    max_exposures: int

    def __repr__(self) -> str:
        """The address, without the key."""
        return f"EventOptions({self.url})"


def read_event_options(
    api_key: str | None, base_url: str | None, timeout: float, spool_dir: str | os.PathLike[str] | None, **rest: Any
) -> EventOptions:
    """The settings; LIFECYCLE_API_KEY and EVENT_SERVICE_URL replace a key or address of None. Raises ClientSetupError."""
    headers = _headers(api_key)
    _check_timeout(timeout)
    for name, value in rest.items():
        _check_not_below(name, value, 1 if name in {"flush_at", "max_buffered", "max_buffered_bytes"} else 0)
    folder = None if spool_dir is None else Path(spool_dir).absolute()
    return EventOptions(
        _address(base_url, "EVENT_SERVICE_URL") + EVENTS_PATH, headers, timeout, spool_dir=folder, **rest
    )


def _headers(api_key: str | None) -> dict[str, str]:
    key = (api_key if api_key is not None else os.environ.get("LIFECYCLE_API_KEY", "")).strip()
    if not key:
        raise ClientSetupError("No API key: pass `api_key`, or set LIFECYCLE_API_KEY.")
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise ClientSetupError(
            "The API key contains a space or a character that is not printable ASCII: check `api_key`."
        )
    return {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}


def _check_timeout(timeout: float) -> None:
    if not timeout > 0:
        raise ClientSetupError(f"`timeout` must be above 0 seconds, not {timeout}.")


def _check_not_below(name: str, value: float, least: int) -> None:
    if not value >= least:
        raise ClientSetupError(f"`{name}` must be at least {least}, not {value}.")


def _address(base_url: str | None, variable: str) -> str:
    address = (base_url or os.environ.get(variable) or DEFAULT_URL).strip().rstrip("/")
    try:
        parts = httpx.URL(address)
        is_valid = parts.scheme in {"http", "https"} and bool(parts.host)
    except (httpx.InvalidURL, ValueError):
        is_valid = False
    if not is_valid:
        raise ClientSetupError(
            f"{address!r} is not a valid address of the service: it must begin with http:// or https:// and a host."
        )
    return address
