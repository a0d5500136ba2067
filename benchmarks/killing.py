"""A soak test: the API is killed and PostgreSQL stopped while clients keep sending; at the end, events are counted."""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import httpx
import psycopg

from benchmarks.senders import Ledger, Senders, wait_for
from benchmarks.servers import NEVER_REACHED, environment
from eventlog.dead_letters import count_dead_letters
from foundation.api_keys import make_api_key
from foundation.errors import LifecycleError
from foundation.migrate import migrate
from foundation.settings import PROJECT_ROOT
from orchestration.local.ports import free_port
from orchestration.local.postgres import EmbeddedPostgres
from orchestration.local.processes import log_tail

START_SECONDS, DRAIN_SECONDS = 60.0, 120.0
POLL_SECONDS = 0.05
STORED = "SELECT id, count(*) FROM exp.events GROUP BY id"
OUTAGE_SHARE = 0.2


@dataclass(frozen=True)
class Outcome:
    """The counts of a soak test. Nothing is wrong if `lost`, `doubled`, `dead` and `unexpected` are zero or empty."""

    acknowledged: int
    stored: int
    lost: int
    doubled: int
    dead: int
    kills: int
    outages: int
    refused: int
    seconds: float
    unexpected: list[str]

    @property
    def sound(self) -> bool:
        """Whether every acknowledged event is stored once, and clients got only expected answers."""
        return not (self.lost or self.doubled or self.dead or self.unexpected)


class Soak:
    """A soak test in its own folder."""

    def __init__(self, folder: Path, seed: int, senders: int, say: Callable[[str], None]) -> None:
        """Starts nothing yet. `say` is called with each step."""
        self._folder, self._seed, self._senders, self._say = folder, seed, senders, say
        self._postgres = EmbeddedPostgres(folder / "postgres", free_port())
        self._port = free_port()
        self._url = f"http://127.0.0.1:{self._port}"
        self._chance = random.Random(seed)
        self._log = folder / "api.log"
        self._api: subprocess.Popen[bytes] | None = None

    def run(self, *, kills: int | None = None, seconds: float | None = None) -> Outcome:
        """Run until this many kills, or for this many seconds. Raises LifecycleError if the API or the spool does not recover."""
        began = time.monotonic()
        self._postgres.start()
        ledger, killed, outages = Ledger(), 0, 0
        try:
            migrate(self._postgres.url)
            with psycopg.connect(self._postgres.url) as connection:
                _, key = make_api_key(connection, "soak", ["ingest"])
            self._start_api()
            senders = Senders(self._url, key, self._senders, self._seed, ledger)
            senders.start()
            try:
                self._wait_for_acknowledgement(ledger)
                while (kills is None or killed < kills) and (seconds is None or time.monotonic() - began < seconds):
                    # At any moment: during a statement, a write to a file, or the start itself.
                    time.sleep(self._chance.uniform(0, 0.5))
                    outage = self._chance.random() < OUTAGE_SHARE
                    if outage:
                        outages += 1
                        self._postgres.stop()
                        self._wait_for_acknowledgement(ledger)
                    self._kill_api()
                    killed += 1
                    if outage:
                        self._postgres.start()
                    self._start_api()
                    self._wait_for_acknowledgement(ledger)
                    self._say(f"{killed} kills, {outages} outages, {len(ledger.acknowledged):,} events acknowledged")
            finally:
                senders.stop()
            self._wait_for_drained_spool()
            return self._count(ledger, killed, outages, time.monotonic() - began)
        finally:
            self._kill_api()
            self._postgres.stop()

    def _start_api(self) -> None:
        env = environment(
            self._folder / "home",
            self._postgres.url,
            api_port=str(self._port),
            api_services="events",
            first_day=datetime.now(UTC).date().isoformat(),
            rate_limit_key_per_minute=NEVER_REACHED,
            rate_limit_unit_events_per_minute="0",
            api_retry_delays_ms="[50]",
        )
        with self._log.open("ab") as log:
            self._api = subprocess.Popen(
                [sys.executable, "-m", "serving"],
                env=env,
                cwd=PROJECT_ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _kill_api(self) -> None:
        if self._api is not None:
            self._api.send_signal(signal.SIGKILL)
            self._api.wait()
            self._api = None

    def _wait_for_acknowledgement(self, ledger: Ledger) -> None:
        if not wait_for(ledger, 1, START_SECONDS):
            raise LifecycleError(f"No event was acknowledged for {START_SECONDS:.0f} s.{self._end_of_log()}")

    def _end_of_log(self) -> str:
        return "".join(f"\n  | {line}" for line in log_tail(self._log, 20))

    def _wait_for_drained_spool(self) -> None:
        """Wait until all spools are empty, including those of killed processes."""
        deadline = time.monotonic() + DRAIN_SECONDS
        spool = self._folder / "home" / "spool"
        while list(spool.glob("*/*.events")) or not self._ready():
            if time.monotonic() > deadline:
                raise LifecycleError(
                    f"The spool {spool} was not drained within {DRAIN_SECONDS:.0f} s: look at {self._log}."
                )
            time.sleep(POLL_SECONDS)

    def _ready(self) -> bool:
        try:
            return httpx.get(f"{self._url}/readyz", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def _count(self, ledger: Ledger, killed: int, outages: int, seconds: float) -> Outcome:
        with psycopg.connect(self._postgres.url) as connection:
            stored: dict[UUID, int] = dict(connection.execute(STORED).fetchall())
            dead = count_dead_letters(connection)
        return Outcome(
            acknowledged=len(ledger.acknowledged),
            stored=sum(stored.values()),
            lost=len(ledger.acknowledged - stored.keys()),
            doubled=sum(count - 1 for count in stored.values()),
            dead=dead,
            kills=killed,
            outages=outages,
            refused=ledger.refused,
            seconds=seconds,
            unexpected=ledger.unexpected,
        )
