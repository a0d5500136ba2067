"""`python -m benchmarks.floor bare|insert --port PORT`: the least work that the same server could do, as ASGI apps of a few lines.

Both run like `python -m serving`: uvicorn with one worker, uvloop, httptools, no access log, no server header, the same session settings
and frozen start-up objects. They import nothing of `serving`, whose cost is measured. `insert` is as fast as possible: no key, no limits,
prepared answers, connections open from the start, no reset between uses.
"""

import argparse
import gc
import json
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from uuid import UUID

import asyncpg
import msgspec
import uvicorn

from experimentation.assignments.bucketing import VariantWalk, bucket_of
from foundation.settings import settings

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

ANSWER_BYTES = 320
# The same as the API's sessions.
SESSION = {"plan_cache_mode": "force_generic_plan", "jit": "off"}
READ_RUN = """
SELECT e.name, e.run, v.id, v.name, v.allocation, v.config::text
FROM exp.experiments e JOIN exp.variants v ON v.experiment_id = e.id
WHERE e.id = $1 ORDER BY v.position, v.id
"""
INSERT = """
INSERT INTO exp.assignments (experiment_id, unit_type, unit_id, variant_id, epoch, propensity) VALUES ($1, $2, $3, $4, 1, $5)
ON CONFLICT DO NOTHING
"""


class Request(msgspec.Struct):
    """The fields of a request for assignments that the floor reads."""

    unit_type: str
    unit_id: str
    requested_experiments: list[str]


@dataclass(frozen=True)
class _Arm:
    variant_id: UUID
    propensity: Decimal
    answer: bytes


class Bare:
    """Reads the body and returns a fixed answer."""

    def __init__(self) -> None:
        """Prepares the answer."""
        self._body = json.dumps({"padding": "x" * (ANSWER_BYTES - len('{"padding": ""}'))}).encode()

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send, _nothing, _nothing)
            return
        await _read(receive)
        await _answer(send, self._body)


class Insert:
    """Enrols the unit in a run with one INSERT, committed before the answer."""

    def __init__(self, url: str, pool_size: int, run_id: UUID) -> None:
        """Connects when the lifespan starts, not before."""
        self._url, self._pool_size, self._run_id = url, pool_size, run_id
        self._decoder = msgspec.json.Decoder(Request)
        self._pool: asyncpg.Pool | None = None
        self._arms: list[_Arm] = []

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send, self._open, self._close)
            return
        request = self._decoder.decode(await _read(receive))
        arm = self._arms[self._walk.choose(bucket_of(self._run_id, request.unit_id))]
        assert self._pool is not None
        async with self._pool.acquire() as connection:
            await connection.execute(
                INSERT, self._run_id, request.unit_type, request.unit_id, arm.variant_id, arm.propensity
            )
        await _answer(send, arm.answer)

    async def _open(self) -> None:
        self._pool = await asyncpg.create_pool(
            self._url, min_size=self._pool_size, max_size=self._pool_size, reset=_keep_session, server_settings=SESSION
        )
        rows = await self._pool.fetch(READ_RUN, self._run_id)
        self._walk = VariantWalk([row[4] for row in rows])
        self._arms = [_Arm(row[2], row[4], _answer_of(self._run_id, *row)) for row in rows]

    async def _close(self) -> None:
        if self._pool is not None:
            self._pool.terminate()


def _answer_of(
    run_id: UUID, name: str, run: int, variant_id: UUID, variant: str, allocation: Decimal, config: str
) -> bytes:
    """The API's answer for the same unit."""
    assignment = {
        "experiment_id": run_id, "experiment_name": name, "run": run, "variant_id": variant_id, "variant_name": variant,
        "enrolled": True, "reason": "assigned", "config": msgspec.json.decode(config),
    }  # fmt: skip
    return msgspec.json.encode({"assignments": [assignment], "skipped_experiments": []})


async def _read(receive: Receive) -> bytes:
    message = await receive()
    body: bytes = message.get("body", b"")
    while message.get("more_body", False):
        message = await receive()
        body += message.get("body", b"")
    return body


async def _answer(send: Send, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _lifespan(
    receive: Receive, send: Send, start: Callable[[], Awaitable[None]], stop: Callable[[], Awaitable[None]]
) -> None:
    await receive()
    await start()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await stop()
    await send({"type": "lifespan.shutdown.complete"})


async def _nothing() -> None:
    return None


async def _keep_session(connection: asyncpg.Connection) -> None:
    """Do nothing, in place of the pool's RESET ALL after each use, which costs a round trip."""


def main() -> int:
    """Serve until a signal."""
    parser = argparse.ArgumentParser(description="A floor to measure the API against.")
    parser.add_argument("floor", choices=["bare", "insert"])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--run-id", type=UUID, help="The run that `insert` enrols units in.")
    arguments = parser.parse_args()
    if arguments.floor == "insert" and arguments.run_id is None:
        parser.error("insert needs --run-id")
    current = settings()
    app = Bare() if arguments.floor == "bare" else Insert(current.platform_url, current.api_pool_size, arguments.run_id)
    gc.collect()
    gc.freeze()
    uvicorn.run(
        app, host="127.0.0.1", port=arguments.port, access_log=False, server_header=False, log_config=None,
        loop="uvloop", http="httptools",
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
