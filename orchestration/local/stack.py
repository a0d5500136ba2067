"""The local platform of one home: what it needs, the order in which it starts, and how it stops.

with Stack(settings(), "lifecycle up", DAGSTER) as stack:   # home, lock, leftovers of earlier starts, PostgreSQL, schemas
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
    """A context manager: entering prepares everything that services need, leaving stops everything; data is kept."""

    def __init__(
        self, settings: Settings, purpose: str, services: Iterable[str] = (), say: Callable[[str], None] = print
    ) -> None:
        """`services` are the short names (services.py) that may be passed to `start`: their ports are checked before anything starts.

        A second command on the same home is refused with `purpose` as the command in use; `say` gets messages for the user.
        """
        self.settings = settings
        known = all_services(settings)
        # Only MLflow can be a name without a service: if tracking goes to the user's own server.
        self._planned = {name: known[name] for name in services if name in known}
        self.purpose = purpose
        self.say = say
        self.supervisor = Supervisor(settings.home, {}, say)
        self._exit = ExitStack()
        self._used_dagster = False

    def __enter__(self) -> "Stack":
        """Raises LifecycleError, after which nothing is left running."""
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
            self.say(f"Stopped {left} process{'es' if left > 1 else ''} that an earlier start had left running.")
        # After those processes, which use the ports, and before PostgreSQL, so that a refusal takes less than a second.
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
        # Imported here: alembic takes half a second to import, and a home that can't be used should be refused at once.
        from foundation.migrate import migrate

        migrate(self.settings.platform_url)

    def start(self, names: Iterable[str] = ()) -> None:
        """Start planned services (by default all) and return at once. Raises LifecycleError if a port is in use."""
        chosen = set(names) or set(self._planned)
        services = [service for name, service in self._planned.items() if name in chosen]
        if CODE in chosen:
            # A killed server leaves its socket, and gRPC would refuse the path.
            code_socket(self.settings.home).unlink(missing_ok=True)
            self._used_dagster = True
        if set(DAGSTER) & chosen:
            self._create_dagster_tables()
        self.supervisor.launch(services)

    def wait(self, names: Sequence[str] = (), on_tick: Callable[[], None] = lambda: None) -> None:
        """Wait until the named services (by default all that were started) are ready. Raises LifecycleError."""
        self.supervisor.wait_ready(names, on_tick)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop services, close runs in flight, stop PostgreSQL and unlock the home. Signals do not interrupt this."""
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

    def _create_dagster_tables(self) -> None:
        """Create Dagster's tables at a home's first start, before the processes that would each try to."""
        if not dagster_tables.missing(self.settings.sibling_url("dagster")):
            return
        try:
            done = self._run_module("orchestration.local.dagster_tables")
        except subprocess.TimeoutExpired as error:
            raise LifecycleError(
                f"Dagster's tables were not created within {_DAGSTER_SECONDS} s: check whether PostgreSQL or the machine is overloaded, "
                "and start again."
            ) from error
        if done.returncode != 0:
            raise LifecycleError(
                f"Dagster's tables could not be created on {where(self.settings.sibling_url('dagster'))} ({_last_line(done.stderr)}): "
                "fix that error, or remove the database if nothing in it is needed."
            )

    def _run_module(self, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run one of our modules that need Dagster in a separate process. Raises TimeoutExpired."""
        return subprocess.run(
            [sys.executable, "-m", module, *arguments],
            env=dict(self.supervisor.environment), cwd=self.settings.home, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, check=False, timeout=_DAGSTER_SECONDS, start_new_session=True,
        )  # fmt: skip

    def _settle_runs(self, verb: str) -> None:
        """Cancel or close the runs in flight. An error is reported, and the rest still stops."""
        if not _runs_in_progress(self.settings.sibling_url("dagster")):
            return
        options = [] if self.settings.embedded else ["--home", str(self.settings.home)]
        try:
            done = self._run_module("orchestration.local.runs", verb, *options)
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
    """The last line of a traceback, which has the error."""
    return (text.strip().splitlines() or ["no reason given"])[-1]


def _runs_in_progress(dagster_url: str) -> int:
    """How many runs are in progress in Dagster's table.

    Uses SQL: importing Dagster only to count no runs would double the time of a stop.
    """
    try:
        with psycopg.connect(dagster_url, connect_timeout=CONNECT_SECONDS) as connection:
            row = connection.execute(
                "SELECT count(*) FROM runs WHERE status = ANY(%s)", [["STARTING", "STARTED", "CANCELING"]]
            ).fetchone()
    except (psycopg.OperationalError, psycopg.errors.UndefinedTable):
        # No database, or one that Dagster never used: there are no runs to mark.
        return 0
    return int(row[0]) if row else 0
