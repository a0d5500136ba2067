"""The load generator reads split answers and never counts refused ones; its figures and verdicts are right."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from benchmarks.bench import Only
from benchmarks.figures import Figure, Memory
from benchmarks.load import Load, LoadError, ResponseReader, measure, percentile, requests_of, run

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
REFUSED = b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 8\r\n\r\nslowdown"
REQUEST = "GET /{unit} HTTP/1.1\r\nHost: x\r\n\r\n"
END_OF_REQUEST = b"\r\n\r\n"

Answer = Callable[[int], bytes | None]
"""The answer to request number n, from 0; None closes the connection."""


@contextmanager
def answering(answer: Answer) -> Iterator[tuple[int, list[bytes]]]:
    """The port of a threaded server, and the request lines that it received."""
    seen: list[bytes] = []
    lock = threading.Lock()

    def serve(connection: socket.socket) -> None:
        with connection:
            waiting = b""
            while data := connection.recv(65_536):
                waiting += data
                while END_OF_REQUEST in waiting:
                    request, _, waiting = waiting.partition(END_OF_REQUEST)
                    with lock:
                        reply = answer(len(seen))
                        seen.append(request.partition(b"\r\n")[0])
                    if reply is None:
                        return
                    half = len(reply) // 2
                    connection.sendall(reply[:half])
                    connection.sendall(reply[half:])

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1], seen
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


@pytest.mark.parametrize(
    ("share", "expected"), [(0.0, 1), (0.01, 1), (0.5, 50), (0.501, 51), (0.95, 95), (0.99, 99), (1.0, 100)]
)
def test_percentile_is_the_nearest_rank(share: float, expected: float) -> None:
    assert percentile([float(n) for n in range(1, 101)], share) == expected
    assert percentile([7.0], share) == 7.0


@pytest.mark.parametrize("size", range(1, len(OK)))
def test_reader_reads_an_answer_however_it_is_split(size: int) -> None:
    reader = ResponseReader()
    for _ in range(2):
        parts = [OK[at : at + size] for at in range(0, len(OK), size)]
        assert [reader.feed(part) for part in parts] == [False] * (len(parts) - 1) + [True]
        assert (reader.status, reader.response) == (200, OK)


def test_answer_without_a_body_is_complete_after_its_head() -> None:
    reader = ResponseReader()
    assert reader.feed(b"HTTP/1.1 204 No Content\r\ndate: today\r\ncontent-length: 0\r\n\r\n") and reader.status == 204


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", "without a content-length"),
        (b"HTTP/1.1 200 OK\r\nx: \r\ncontent-length: some\r\n\r\n", "without a content-length"),
        (b"HTTP/1.1 200 OK\r\n\r\ncontent-length: 1", "without a content-length"),
        (b"220 smtp.example ready\r\n\r\n", "not an HTTP answer"),
        (OK + OK, "More bytes"),
    ],
)
def test_reader_fails_when_data_is_not_a_single_answer(data: bytes, message: str) -> None:
    with pytest.raises(LoadError, match=message):
        ResponseReader().feed(data)


def test_requests_name_different_units_until_the_cycle_restarts() -> None:
    def lines(load: Load, count: int) -> list[bytes]:
        requests = requests_of(load)
        return [next(requests).partition(b" HTTP")[0] for _ in range(count)]

    assert lines(Load(1, REQUEST, prefix="n", first=41), 2) == [b"GET /n00000041", b"GET /n00000042"]
    assert lines(Load(1, REQUEST, cycle=2), 3) == [b"GET /h00000000", b"GET /h00000001", b"GET /h00000000"]


def test_each_request_of_a_count_is_sent_once_over_all_connections() -> None:
    with answering(lambda n: OK) as (port, seen):
        result = run(Load(port, REQUEST, connections=4, count=50))
    assert sorted(seen) == [b"GET /h%08d HTTP/1.1" % n for n in range(50)]
    assert (result.answered, result.sent) == (50, 50)
    assert 0 < result.p50_ms <= result.p95_ms <= result.p99_ms
    assert result.per_second == pytest.approx(50 / result.seconds)


def test_load_runs_for_its_seconds_without_counting_the_warm_up() -> None:
    with answering(lambda n: OK) as (port, seen):
        result = run(Load(port, REQUEST, connections=2, seconds=0.2, warm_up=0.2))
    assert result.seconds == pytest.approx(0.2)
    assert 0 < result.answered < result.sent == len(seen)


@pytest.mark.parametrize("refused_at", [0, 7, 19])
def test_measurement_fails_when_one_answer_is_not_200(refused_at: int) -> None:
    message = r"1 of 20 answers were not 200, the first: HTTP/1.1 429 .* slowdown"
    with answering(lambda n: REFUSED if n == refused_at else OK) as (port, _), pytest.raises(LoadError, match=message):
        run(Load(port, REQUEST, connections=3, count=20))


def test_measurement_fails_when_a_request_is_refused_during_the_warm_up() -> None:
    with answering(lambda n: REFUSED if n == 0 else OK) as (port, _), pytest.raises(LoadError, match="were not 200"):
        run(Load(port, REQUEST, connections=1, seconds=0.1, warm_up=0.1))


def test_error_names_refused_answers_when_the_server_closes_a_connection() -> None:
    message = r"closed a connection.* 1 of 3 answers were not 200"
    with answering(lambda n: (OK, REFUSED, None)[n]) as (port, _), pytest.raises(LoadError, match=message):
        run(Load(port, REQUEST, connections=1, count=5))


def test_measurement_fails_when_no_server_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with pytest.raises(LoadError, match="No connection"):
        run(Load(port, REQUEST, count=1))


def test_measuring_in_a_separate_process_gives_the_same_results_and_errors() -> None:
    with answering(lambda n: OK if n < 10 else REFUSED) as (port, _):
        assert measure(Load(port, REQUEST, connections=2, count=10)).answered == 10
        with pytest.raises(LoadError, match="1 of 1 answers were not 200"):
            measure(Load(port, REQUEST, connections=2, count=1))


def test_figure_is_disturbed_when_a_computing_floor_had_less_than_a_core() -> None:
    undisturbed = figure(floor_per_second=30_000.0, floor_cpu_us=32.0, floor_only_computes=True)
    assert not undisturbed.disturbed
    disturbed = figure(floor_per_second=20_000.0, floor_cpu_us=32.0, floor_only_computes=True, goal=0.0)
    assert disturbed.disturbed and disturbed.verdict == "met (disturbed)"
    assert not figure(floor_per_second=20_000.0, floor_cpu_us=32.0).disturbed, "a floor that waits never fills a core"


def figure(**changes: float | None) -> Figure:
    fields: dict[str, float | None] = {"per_second": 60.0, "floor_per_second": 100.0, **changes}
    return Figure(path="p", what="requests", floor="f", **fields)  # type: ignore[arg-type]  # figures only


def test_verdict_names_the_missed_goals() -> None:
    assert figure().verdict == "" and figure().as_json()["met"] is None
    assert figure(goal=0.6).verdict == "met"
    assert figure(goal=0.61).verdict == "missed: ratio"
    assert figure(goal=0.61, p99_ms=20.0, p99_goal_ms=20.0).missed == ["ratio", "p99"]
    assert figure(goal=0.5, p99_ms=19.9, p99_goal_ms=20.0).as_json()["met"] is True
    assert figure(cpu_us=50.0, floor_cpu_us=25.0).cpu_ratio == 0.5
    assert figure(cpu_us=0.0, floor_cpu_us=25.0).cpu_ratio is None


def test_memory_verdict_depends_on_the_second_half_of_units() -> None:
    def memory(**changes: Any) -> Memory:
        sizes = {
            "units": 300_000,
            "held": 100_000,
            "before_mb": 100.0,
            "halfway_mb": 160.0,
            "after_mb": 161.0,
            "per_second": 1.0,
        }
        return Memory(**{**sizes, **changes})

    assert memory().verdict == "flat"
    assert memory(after_mb=180.0).verdict == "missed: it grows"
    assert memory(units=200_000).verdict == "ask for more than 200,000 to see whether it stays flat"
    assert memory().as_json()["bytes_a_held_unit"] == pytest.approx(60 * 2**20 / 100_000)
    assert memory().as_json()["bytes_another_unit"] == pytest.approx(2**20 / 150_000)


def test_command_line_offers_every_path() -> None:
    from benchmarks.assignments import NAMES
    from benchmarks.ingestion import WAYS

    assert tuple(path.value for path in Only) == (*NAMES, *(way.name for way in WAYS), "archive")
