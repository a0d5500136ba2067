"""The client's settings, checked once. Belongs here: defaults, environment variables. Does not belong here: using them."""

import os
from dataclasses import dataclass

import httpx

from serving.client.errors import ClientSetupError

DEFAULT_URL = "http://127.0.0.1:8000"
# Longer than the service tries before its 503, whose Retry-After is worth having.
DEFAULT_TIMEOUT = 1.0
DEFAULT_TTL = 300.0
DEFAULT_MAX_ENTRIES = 10_000
DEFAULT_STALE_FOR = 86_400.0
PATH = "/api/v1/assignments"


@dataclass(frozen=True)
class Options:
    """Where to ask, with which key (not shown), and how long answers live; times in seconds."""

    url: str
    headers: dict[str, str]
    timeout: float
    ttl: float
    max_entries: int
    stale_for: float

    def __repr__(self) -> str:
        """Without the key."""
        return f"Options({self.url})"


def read_options(
    api_key: str | None, base_url: str | None, timeout: float, ttl: float, max_entries: int, stale_for: float
) -> Options:
    """The settings, with LIFECYCLE_API_KEY and ASSIGNMENT_SERVICE_URL for what is None. Raises ClientSetupError."""
    key = (api_key if api_key is not None else os.environ.get("LIFECYCLE_API_KEY", "")).strip()
    if not key:
        raise ClientSetupError("No API key: pass `api_key`, or set LIFECYCLE_API_KEY.")
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise ClientSetupError("The API key holds characters that no key has.")
    if not timeout > 0:
        raise ClientSetupError("`timeout` is a number of seconds above 0.")
    for name, value in (("ttl", ttl), ("max_entries", max_entries), ("stale_for", stale_for)):
        if not value >= 0:
            raise ClientSetupError(f"`{name}` is not below 0.")
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    return Options(_address(base_url) + PATH, headers, timeout, ttl, max_entries, stale_for)


def _address(base_url: str | None) -> str:
    address = (base_url or os.environ.get("ASSIGNMENT_SERVICE_URL") or DEFAULT_URL).strip().rstrip("/")
    try:
        parts = httpx.URL(address)
        holds = parts.scheme in {"http", "https"} and bool(parts.host)
    except (httpx.InvalidURL, ValueError):
        holds = False
    if not holds:
        raise ClientSetupError(
            f"{address!r} is no address of the service: it begins with http:// or https:// and a host."
        )
    return address
