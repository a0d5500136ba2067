"""A load generator: keep-alive connections on one thread, each with one pending request, over raw sockets.

It uses only the standard library, so that a measurement starts at once. Any answer other than 200 fails the whole measurement.
"""

import gc
import itertools
import json
import math
import selectors
import socket
import subprocess
import sys
import time
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from foundation.errors import LifecycleError
from foundation.settings import PROJECT_ROOT

PLACE = b"{unit}"
STALL_SECONDS = 15.0
_READ_BYTES = 65_536
_SHOWN_BYTES = 300


class LoadError(LifecycleError):
    """The measurement is invalid; the message says why."""


@dataclass(frozen=True)
class Load:
    """What to send, where, and for how long: `seconds` after `warm_up` seconds that do not count, or `count` requests.

    `request` is the complete request, with `{unit}` in the place of a unit's id: `prefix` and eight digits from `first` on, starting again
    after `cycle` units. Alternatively, the complete requests are in the file `prepared`, as `write_requests` writes them.
    """

    port: int
    request: str = ""
    connections: int = 32
    prefix: str = "h"
    first: int = 0
    cycle: int | None = None
    seconds: float | None = None
    count: int | None = None
    warm_up: float = 0.0
    prepared: str | None = None


@dataclass(frozen=True)
class LoadResult:
    """The result of a load. `sent` and `client_cpu_us` (the generator's, per request) include the warm-up; all requests were answered."""

    answered: int
    sent: int
    seconds: float
    per_second: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    client_cpu_us: float


def unit_id(prefix: str, number: int) -> str:
    """A unit's id. All ids have the same length, so that all requests of a load have the same content-length."""
    return f"{prefix}{number:08d}"


def requests_of(load: Load) -> Iterator[bytes]:
    """The load's requests as bytes, one after another."""
    if load.prepared is not None:
        yield from read_requests(Path(load.prepared))
        return
    head, place, tail = load.request.encode().partition(PLACE)
    if not place:
        yield from itertools.repeat(head)
    head += load.prefix.encode()
    if load.cycle is not None:
        yield from itertools.cycle([b"%b%08d%b" % (head, load.first + n, tail) for n in range(load.cycle)])
    yield from (b"%b%08d%b" % (head, number, tail) for number in itertools.count(load.first))


def write_requests(path: Path, requests: Iterable[bytes]) -> None:
    """Write requests to a file, each after its length in 8 bytes."""
    with path.open("wb") as file:
        for request in requests:
            file.write(len(request).to_bytes(8, "big") + request)


def read_requests(path: Path) -> list[bytes]:
    """Read the file of `write_requests` into memory, so that reading takes no time from the measurement."""
    data = path.read_bytes()
    requests, offset = [], 0
    while offset < len(data):
        size = int.from_bytes(data[offset : offset + 8], "big")
        requests.append(data[offset + 8 : offset + 8 + size])
        offset += 8 + size
    return requests


class ResponseReader:
    """Reads the answers on a connection, one at a time, however their bytes are split."""

    __slots__ = ("_buffer", "_size", "response", "status")

    def __init__(self) -> None:
        """Starts with an empty buffer."""
        self._buffer, self._size = b"", 0
        self.status, self.response = 0, b""

    def feed(self, data: bytes) -> bool:
        """Add bytes; returns whether an answer is complete, in `status` and `response`. Raises LoadError for anything but one answer."""
        if self._buffer:
            data = self._buffer + data
        if not self._size:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self._buffer = data
                return False
            self.status = _status(data)
            self._size = end + 4 + _content_length(data[: end + 2])
        if len(data) < self._size:
            self._buffer = data
            return False
        if len(data) > self._size:
            raise LoadError(f"More bytes came than the answer's content-length says: {_excerpt(data)}")
        self.response, self._buffer, self._size = data, b"", 0
        return True


class _Connection:
    __slots__ = ("feed", "push", "reader", "recv", "socket", "started")

    def __init__(self, port: int) -> None:
        try:
            self.socket = socket.create_connection(("127.0.0.1", port), timeout=STALL_SECONDS)
        except OSError as error:
            raise LoadError(f"No connection to port {port}: {error}") from error
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.reader = ResponseReader()
        self.recv, self.push, self.feed = self.socket.recv, self.socket.send, self.reader.feed
        self.started = 0.0

    def send(self, request: bytes) -> None:
        self.started = time.perf_counter()
        sent = self.push(request)
        if sent != len(request):
            # Only requests larger than the socket's buffer block here; the other connections would wait for their bytes anyway.
            self.socket.settimeout(STALL_SECONDS)
            self.socket.sendall(request[sent:])
            self.socket.setblocking(False)


def run(load: Load) -> LoadResult:
    """Measure in this process. Raises LoadError for any answer other than 200, a closed connection, or no answer for 15 s."""
    if load.seconds is None and load.count is None and load.prepared is None:
        raise ValueError("A load needs `seconds`, a `count`, or `prepared` requests.")
    requests = requests_of(load)
    if load.count is not None:
        requests = itertools.islice(requests, load.count)
    connections = [_Connection(load.port) for _ in range(load.connections)]
    collecting = gc.isenabled()
    gc.disable()
    try:
        return _run(load, requests, connections)
    finally:
        if collecting:
            gc.enable()
        for connection in connections:
            connection.socket.close()


class _Tally:
    """The state of a running measurement."""

    __slots__ = ("first_refused", "last", "latencies", "refused", "sent")

    def __init__(self) -> None:
        self.latencies = array("d")
        self.sent = self.refused = 0
        self.first_refused, self.last = b"", 0.0

    def first_refusal(self) -> str:
        """The number of refused answers and the first of them, as the end of an error message; empty if there is none."""
        if not self.refused:
            return ""
        return f" {self.refused} of {self.sent} answers were not 200, the first: {_excerpt(self.first_refused)}"


def _run(load: Load, requests: Iterator[bytes], connections: list[_Connection]) -> LoadResult:
    tally, cpu = _Tally(), time.process_time()
    counted_from = time.perf_counter() + load.warm_up
    until = math.inf if load.seconds is None else counted_from + load.seconds
    try:
        _keep_asking(tally, requests, connections, counted_from, until)
    except (LoadError, OSError) as error:
        raise LoadError(f"{error}{tally.first_refusal()}") from error
    cpu = time.process_time() - cpu
    if tally.refused:
        raise LoadError(f"The measurement is invalid.{tally.first_refusal()}")
    if not tally.latencies:
        raise LoadError("No request was answered after the warm-up.")
    seconds = (tally.last if load.seconds is None else until) - counted_from
    ordered = sorted(tally.latencies)
    return LoadResult(
        answered=len(ordered),
        sent=tally.sent,
        seconds=seconds,
        per_second=len(ordered) / seconds,
        p50_ms=percentile(ordered, 0.50) * 1000,
        p95_ms=percentile(ordered, 0.95) * 1000,
        p99_ms=percentile(ordered, 0.99) * 1000,
        client_cpu_us=cpu / tally.sent * 1e6,
    )


def _keep_asking(
    tally: _Tally, requests: Iterator[bytes], connections: list[_Connection], counted_from: float, until: float
) -> None:
    """Keep one request pending on each connection until the time or the requests are over. Kept short: this is the generator's own cost."""
    clock, latencies = time.perf_counter, tally.latencies
    with selectors.DefaultSelector() as selector:
        for connection, request in zip(connections, requests, strict=False):
            selector.register(connection.socket, selectors.EVENT_READ, connection)
            connection.send(request)
            tally.sent += 1
        pending = tally.sent
        while pending:
            ready = selector.select(STALL_SECONDS)
            if not ready:
                raise LoadError(f"{pending} requests had no answer for {STALL_SECONDS:.0f} s.")
            for key, _ in ready:
                connection = key.data
                data = connection.recv(_READ_BYTES)
                if not data:
                    raise LoadError("The server closed a connection.")
                if not connection.feed(data):
                    continue
                now = tally.last = clock()
                if connection.reader.status != 200:
                    tally.refused += 1
                    tally.first_refused = tally.first_refused or connection.reader.response
                elif counted_from <= now < until:
                    latencies.append(now - connection.started)
                # At the end, pending requests are awaited and checked, but not counted.
                request_to_send = next(requests, None) if now < until else None
                if request_to_send is None:
                    pending -= 1
                else:
                    connection.send(request_to_send)
                    tally.sent += 1


def measure(load: Load) -> LoadResult:
    """Measure in a separate process, so that nothing here slows the generator down. Raises LoadError."""
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.load"],
        input=json.dumps(asdict(load)), capture_output=True, text=True, check=False, cwd=PROJECT_ROOT,
    )  # fmt: skip
    if process.returncode != 0:
        raise LoadError(process.stderr.strip() or f"The load generator ended with {process.returncode}.")
    return LoadResult(**json.loads(process.stdout))


def percentile(ordered: list[float], share: float) -> float:
    """The smallest value that at least `share` of the values do not exceed (nearest rank); `ordered` is ascending and not empty."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _status(data: bytes) -> int:
    if not data.startswith(b"HTTP/1.") or not data[9:12].isdigit():
        raise LoadError(f"This is not an HTTP answer: {_excerpt(data)}")
    return int(data[9:12])


def _content_length(head: bytes) -> int:
    """The size of the body. The measured servers write the header's name in lower case; other spellings take a second search."""
    start = head.find(b"\r\ncontent-length:")
    if start < 0:
        start = head.lower().find(b"\r\ncontent-length:")
    value = head[start + 17 : head.find(b"\r\n", start + 2)].strip() if start >= 0 else b""
    if not value.isdigit():
        raise LoadError(f"Can't read an answer without a content-length: {_excerpt(head)}")
    return int(value)


def _excerpt(data: bytes) -> str:
    line, _, rest = data.partition(b"\r\n")
    body = rest.partition(b"\r\n\r\n")[2] or rest
    return f"{line[:_SHOWN_BYTES].decode('latin-1')} {body[:_SHOWN_BYTES].decode('latin-1')}".strip()


def main() -> int:
    """Read a load as JSON from stdin and write its result as JSON to stdout; return 1, with a message on stderr, if it is invalid."""
    load = Load(**json.load(sys.stdin))
    try:
        result = run(load)
    except LoadError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(asdict(result)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
