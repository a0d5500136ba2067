"""The local platform of one home as a whole: what must be there, in which order it starts, and how all of it ends.

with Stack(settings(), "lifecycle up", DAGSTER) as stack:   # home, lock, what an earlier start left, PostgreSQL, schemas
    stack.start()                                           # returns at once
    stack.wait()                                            # until every service is ready
"""

import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from types import TracebackType

import psycopg

from foundation.errors import LifecycleError
from foundation.settings import Settings
from orchestration.local import dagster_tables
from orchestration.local.databases import embedded_server, ensure_reachable, where
from orchestration.local.environment import child_environment, code_socket, write_dagster_home
from orchestration.local.home import locked, prepare
from orchestration.local.ports import require_free
from orchestration.local.postgres import CONNECT_SECONDS
from orchestration.local.processes import Supervisor, end_processes, forget, records
from orchestration.local.services import CODE, DAGSTER, all_services
from orchestration.local.signals import held_signals, uninterrupted

_DAGSTER_SECONDS = 60


class Stack:
    """A context: entering prepares everything that services need, leaving ends all of it, data kept."""

    def __init__(
        self, settings: Settings, purpose: str, services: Iterable[str] = (), say: Callable[[str], None] = print
    ) -> None:
        """`services` are short names (services.py) that `start` may be asked for: their ports are looked at before anything starts.

        `purpose` is what a second command is told holds the home; `say` gets sentences for the user.
        """
        self.settings = settings
        known = all_services(settings)
        # A name without a service is MLflow when tracking goes to a server of the user's.
        self._planned = {name: known[name] for name in services if name in known}
        self.purpose = purpose
        self.say = say
        self.supervisor = Supervisor(settings.home, {}, say)
        self._exit = ExitStack()
        self._used_dagster = False

    def __enter__(self) -> "Stack":
        """Raises LifecycleError with one sentence; nothing is left running then."""
        try:
            self._enter()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _enter(self) -> None:
        self.settings = prepare(self.settings)
        self._exit.enter_context(locked(self.settings.home, self.purpose))
        stale = records(self.settings.home)
        if left := end_processes(stale):
            self.say(f"Ended {left} process{'es' if left > 1 else ''} that an earlier start had left behind.")
        # After those: they hold the ports. Before PostgreSQL: a refusal should not take a second.
        for service in self._planned.values():
            if service.port is not None:
                require_free(service.port, service.title, service.port_setting)
        if self.settings.embedded:
            server = embedded_server(self.settings)
            self._exit.callback(server.stop)
            with uninterrupted():
                server.start()
        else:
            ensure_reachable(self.settings)
        write_dagster_home(self.settings)
        self.supervisor = Supervisor(self.settings.home, child_environment(self.settings), self.say)
        if stale:
            self._settle_runs("close")
            forget(stale, self.settings.home)
        # Imported here: alembic takes half a second, and a home that can't be used should be refused at once.
        from foundation.migrate import migrate

        migrate(self.settings.platform_url)

    def start(self, names: Iterable[str] = ()) -> None:
        """Start planned services (all, when none is named) and return at once. Raises LifecycleError when a port is in use."""
        chosen = set(names) or set(self._planned)
        services = [service for name, service in self._planned.items() if name in chosen]
        if CODE in chosen:
            # A server that was killed leaves its socket, and gRPC would refuse the path.
            code_socket(self.settings.home).unlink(missing_ok=True)
            self._used_dagster = True
        if set(DAGSTER) & chosen:
            self._make_dagster_tables()
        self.supervisor.launch(services)

    def wait(self, names: Sequence[str] = (), on_tick: Callable[[], None] = lambda: None) -> None:
        """Wait until the named services (all that were started, when none is named) are ready. Raises LifecycleError."""
        self.supervisor.wait_ready(names, on_tick)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End services, close runs in flight, stop PostgreSQL, free the home. A signal meanwhile does not cut it short."""
        with (
            held_signals(on_signal=lambda: self.say("Still stopping: processes get 20 s to end by themselves.")),
            self._exit,
        ):
            if self._used_dagster:
                self._settle_runs("cancel")
            self.supervisor.stop()
            if self._used_dagster:
                self._settle_runs("close")
            self.supervisor.forget()

    def _make_dagster_tables(self) -> None:
        """At a home's first start, before the processes that would each make them."""
        if not dagster_tables.missing(self.settings.sibling_url("dagster")):
            return
        try:
            done = self._run_module("orchestration.local.dagster_tables")
        except subprocess.TimeoutExpired as error:
            raise LifecycleError(
                f"Dagster's tables were not made within {_DAGSTER_SECONDS} s: see whether PostgreSQL or the machine is overloaded, and "
                "start again."
            ) from error
        if done.returncode != 0:
            raise LifecycleError(
                f"Dagster's tables could not be made on {where(self.settings.sibling_url('dagster'))} ({_last_line(done.stderr)}): "
                "correct what it says, or remove that database if nothing in it is needed."
            )

    def _run_module(self, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A command of ours that needs Dagster, in a process of its own. Raises TimeoutExpired."""
        return subprocess.run(
            [sys.executable, "-m", module, *arguments],
            env=dict(self.supervisor.environment), cwd=self.settings.home, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, check=False, timeout=_DAGSTER_SECONDS, start_new_session=True,
        )  # fmt: skip

    def _settle_runs(self, verb: str) -> None:
        """Cancel or close the runs in flight. A failure is said, and does not keep the rest from ending."""
        if not _runs_in_progress(self.settings.sibling_url("dagster")):
            return
        whose = [] if self.settings.embedded else ["--home", str(self.settings.home)]
        try:
            done = self._run_module("orchestration.local.runs", verb, *whose)
        except subprocess.TimeoutExpired:
            self.say(
                "Dagster's database did not answer, so runs in flight may be shown as running until the next start."
            )
            return
        if done.returncode != 0:
            self.say(
                f"Runs in flight could not be marked as ended ({_last_line(done.stderr)}): they may be shown as running."
            )
        elif verb == "close" and int(done.stdout or 0):
            self.say(f"Marked {done.stdout.strip()} run(s) in Dagster as ended: their processes are gone.")


def _last_line(text: str) -> str:
    """What a traceback ends with."""
    return (text.strip().splitlines() or ["no reason given"])[-1]


def _runs_in_progress(dagster_url: str) -> int:
    """How many runs Dagster's table calls in progress.

    Asked by SQL: importing Dagster only to hear "none" would double the time of a stop.
    """
    try:
        with psycopg.connect(dagster_url, connect_timeout=CONNECT_SECONDS) as connection:
            row = connection.execute(
                "SELECT count(*) FROM runs WHERE status = ANY(%s)", [["STARTING", "STARTED", "CANCELING"]]
            ).fetchone()
    except (psycopg.OperationalError, psycopg.errors.UndefinedTable):
        # No database, or one that Dagster never used: nothing that could be marked.
        return 0
    return int(row[0]) if row else 0
