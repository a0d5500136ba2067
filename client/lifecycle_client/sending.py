"""Sends one POST with httpx, from a thread."""

from collections.abc import Callable

import httpx

from lifecycle_client.wire import Reply, Unreachable

# The service closes idle connections after 5 s. Dropping them earlier means that no request runs into a closed one.
LIMITS = httpx.Limits(max_connections=100, max_keepalive_connections=20, keepalive_expiry=3.0)
# A broken connection says little about the service, and sending twice does no harm: try once more.
BROKEN = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)


def post(http: httpx.Client, url: str, body: bytes, timeout: float, clock: Callable[[], float]) -> Reply | Unreachable:
    """The reply received within about `timeout` seconds. Raises RuntimeError if another thread closed `http`."""
    deadline = clock() + timeout
    for last in (False, True):
        try:
            return _post(http, url, body, deadline, clock)
        except httpx.HTTPError as error:
            if last or not isinstance(error, BROKEN):
                return Unreachable(type(error).__name__)
    raise AssertionError("the last try returns")


def _post(http: httpx.Client, url: str, body: bytes, deadline: float, clock: Callable[[], float]) -> Reply:
    read = bytearray()
    with http.stream("POST", url, content=body) as response:
        # httpx limits each read; this limits a service that sends byte by byte.
        for chunk in response.iter_bytes():
            read += chunk
            if clock() > deadline:
                raise httpx.ReadTimeout("the answer came too slowly")
        return Reply(response.status_code, response.headers, bytes(read))
