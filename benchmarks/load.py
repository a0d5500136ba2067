"""A load generator: keep-alive connections on one thread, each with one request under way, over raw sockets.

 Only the standard library, so that a measurement starts at once.

An answer other than 200 is never counted as a success: it fails the whole measurement.
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
    """The measurement is worth nothing; the message says why."""


@dataclass(frozen=True)
class Load:
    """What to send, where to, and for how long: `seconds` after `warm_up` ones that don't count, or `count` requests.

    `request` is the whole request, with `{unit}` where a unit's id is to stand: `prefix` and eight digits from `first` on, starting again
    after `cycle` of them. Or the whole requests stand one after another in the file `prepared`, as `write_requests` writes them.
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
    """What came of it. `sent` and `client_cpu_us` (of the generator, a request) include the warm-up; everything is answered."""

    answered: int
    sent: int
    seconds: float
    per_second: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    client_cpu_us: float


def unit_id(prefix: str, number: int) -> str:
    """A unit's id; all have one length, so that each request of a load has the same content-length."""
    return f"{prefix}{number:08d}"


def requests_of(load: Load) -> Iterator[bytes]:
    """The bytes of one request after another."""
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
    """Each with its length before it, in 8 bytes."""
    with path.open("wb") as file:
        for request in requests:
            file.write(len(request).to_bytes(8, "big") + request)


def read_requests(path: Path) -> list[bytes]:
    """What `write_requests` wrote, all in memory, so that reading takes no time from the measurement."""
    data = path.read_bytes()
    requests, offset = [], 0
    while offset < len(data):
        size = int.from_bytes(data[offset : offset + 8], "big")
        requests.append(data[offset + 8 : offset + 8 + size])
        offset += 8 + size
    return requests


class ResponseReader:
    """Reads the answers of one connection, one at a time, however their bytes are split."""

    __slots__ = ("_buffer", "_whole", "response", "status")

    def __init__(self) -> None:
        """Nothing is read yet."""
        self._buffer, self._whole = b"", 0
        self.status, self.response = 0, b""

    def feed(self, data: bytes) -> bool:
        """Take more bytes; whether an answer is complete, in `status` and `response`. Raises LoadError for anything else than one."""
        if self._buffer:
            data = self._buffer + data
        if not self._whole:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self._buffer = data
                return False
            self.status = _status(data)
            self._whole = end + 4 + _content_length(data[: end + 2])
        if len(data) < self._whole:
            self._buffer = data
            return False
        if len(data) > self._whole:
            raise LoadError(f"More bytes came than the answer's content-length says: {_shown(data)}")
        self.response, self._buffer, self._whole = data, b"", 0
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
            # Only what is larger than a socket's buffer: the others wait meanwhile, as they would for this one's bytes anyway.
            self.socket.settimeout(STALL_SECONDS)
            self.socket.sendall(request[sent:])
            self.socket.setblocking(False)


def run(load: Load) -> LoadResult:
    """Measure in this process. Raises LoadError for any answer but 200, a closed connection, and silence of 15 s."""
    if load.seconds is None and load.count is None and load.prepared is None:
        raise ValueError("A load ends after some seconds, a count, or with what is prepared.")
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
    """What is known of a measurement while it runs."""

    __slots__ = ("first_refused", "last", "latencies", "refused", "sent")

    def __init__(self) -> None:
        self.latencies = array("d")
        self.sent = self.refused = 0
        self.first_refused, self.last = b"", 0.0

    def why(self) -> str:
        """The first refused answer, as the end of a complaint."""
        if not self.refused:
            return ""
        return f" {self.refused} of {self.sent} answers were not 200, the first: {_shown(self.first_refused)}"


def _run(load: Load, requests: Iterator[bytes], connections: list[_Connection]) -> LoadResult:
    tally, cpu = _Tally(), time.process_time()
    counted_from = time.perf_counter() + load.warm_up
    until = math.inf if load.seconds is None else counted_from + load.seconds
    try:
        _keep_asking(tally, requests, connections, counted_from, until)
    except (LoadError, OSError) as error:
        raise LoadError(f"{error}{tally.why()}") from error
    cpu = time.process_time() - cpu
    if tally.refused:
        raise LoadError(f"The measurement is void.{tally.why()}")
    if not tally.latencies:
        raise LoadError("Nothing was answered while it counted.")
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
    """One request a connection under way, until the time or the requests are over. Few words here: this is the generator's own cost."""
    clock, latencies = time.perf_counter, tally.latencies
    with selectors.DefaultSelector() as selector:
        for connection, request in zip(connections, requests, strict=False):
            selector.register(connection.socket, selectors.EVENT_READ, connection)
            connection.send(request)
            tally.sent += 1
        under_way = tally.sent
        while under_way:
            ready = selector.select(STALL_SECONDS)
            if not ready:
                raise LoadError(f"{under_way} requests had no answer for {STALL_SECONDS:.0f} s.")
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
                # At the end what is under way is waited for, and checked, but not counted.
                following = next(requests, None) if now < until else None
                if following is None:
                    under_way -= 1
                else:
                    connection.send(following)
                    tally.sent += 1


def measure(load: Load) -> LoadResult:
    """Measure in a process of its own, so that nothing else here slows the generator. Raises LoadError."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.load"],
        input=json.dumps(asdict(load)), capture_output=True, text=True, check=False, cwd=PROJECT_ROOT,
    )  # fmt: skip
    if done.returncode != 0:
        raise LoadError(done.stderr.strip() or f"The load generator ended with {done.returncode}.")
    return LoadResult(**json.loads(done.stdout))


def percentile(ordered: list[float], share: float) -> float:
    """The smallest value that at least `share` of them don't exceed (nearest rank); `ordered` ascends and is not empty."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _status(data: bytes) -> int:
    if not data.startswith(b"HTTP/1.") or not data[9:12].isdigit():
        raise LoadError(f"This is no HTTP answer: {_shown(data)}")
    return int(data[9:12])


def _content_length(head: bytes) -> int:
    """The body's size. Servers here write the name in lower case; any other is looked for again."""
    start = head.find(b"\r\ncontent-length:")
    if start < 0:
        start = head.lower().find(b"\r\ncontent-length:")
    value = head[start + 17 : head.find(b"\r\n", start + 2)].strip() if start >= 0 else b""
    if not value.isdigit():
        raise LoadError(f"An answer without a content-length can't be read here: {_shown(head)}")
    return int(value)


def _shown(data: bytes) -> str:
    line, _, rest = data.partition(b"\r\n")
    body = rest.partition(b"\r\n\r\n")[2] or rest
    return f"{line[:_SHOWN_BYTES].decode('latin-1')} {body[:_SHOWN_BYTES].decode('latin-1')}".strip()


def main() -> int:
    """Read a load as JSON from stdin, write its result as JSON to stdout; 1 and a sentence on stderr when it is worth nothing."""
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
