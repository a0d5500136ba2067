"""`python -m serving`: the API on uvicorn."""

import errno
import gc
import logging
import os
import socket
import sys
from urllib.parse import urlsplit

import psycopg
import uvicorn
from psycopg.conninfo import conninfo_to_dict
from pydantic import ValidationError
from pydantic_settings import SettingsError
from starlette.types import ASGIApp

from foundation.settings import Settings, invalid_settings, settings, unknown_names
from serving.app import create_app
from serving.http.logs import AccessLog, configure_logging
from serving.http.tracing import traced

log = logging.getLogger("serving")

GC_THRESHOLD = 50_000
# The message does not repeat the URL, which may contain a password.
INVALID_DATABASE_URL = (
    "DATABASE_URL is not a valid PostgreSQL URL. Write it as postgresql://user:password@host:port/database."
)


def main() -> int:
    """Serve until a signal ends the process. Returns 1 if a setting is invalid, the port is in use, or there is no database."""
    try:
        current = settings()
        configure_logging(current.api_log_format)
        if problem := _database_problem(current):
            return _fail(problem)
        app: ASGIApp = create_app(current)
        # Last, so that errors in the settings are reported whether or not the port is free.
        if problem := _port_problem(current.api_host, current.api_port):
            return _fail(problem)
    except (ValidationError, SettingsError) as error:
        return _fail(invalid_settings(error))
    except (FileNotFoundError, ValueError) as error:
        return _fail(str(error))
    for sentence in unknown_names(os.environ):
        log.warning(sentence)
    # Around FrontDoor, which answers before any middleware of the application.
    if current.api_access_log:
        app = AccessLog(app)
    # These objects live as long as the process. Without freezing them, garbage collections took a tenth of a second.
    gc.collect()
    gc.freeze()
    # The objects of a batch are freed when it is stored. Collections in the meantime took a tenth of the processor time.
    gc.set_threshold(GC_THRESHOLD, 10, 10)
    # uvicorn's own access log has neither request ids nor durations.
    uvicorn.run(
        traced(app),
        host=current.api_host,
        port=current.api_port,
        loop="uvloop",
        http="httptools",
        access_log=False,
        server_header=False,
        log_config=None,
    )
    return 0


def _database_problem(current: Settings) -> str | None:
    """Why DATABASE_URL is not a valid URL, or None. Does not connect."""
    if current.database_url is None:
        return None
    try:
        # The URL may have several hosts, each with its own port.
        ports = str(conninfo_to_dict(current.database_url).get("port") or "").split(",")
        is_postgresql = urlsplit(current.database_url).scheme in ("postgresql", "postgres")
        is_valid = is_postgresql and all(0 < int(port) < 65536 for port in ports if port)
    except (psycopg.Error, ValueError):
        is_valid = False
    return None if is_valid else INVALID_DATABASE_URL


def _port_problem(host: str, port: int) -> str | None:
    """Why the process can't listen there, or None. Binds the port and closes it again at once."""
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        return f"LIFECYCLE_API_HOST={host} is not a valid address. Set it to an address of this machine, or to 0.0.0.0 for all of them."
    for family, kind, protocol, _, address in addresses:
        try:
            with socket.socket(family, kind, protocol) as probe:
                # Like a server: a port whose last connections are still closing counts as free.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return f"Port {port} of {host} is already in use. Stop the process that uses it, or set LIFECYCLE_API_PORT."
            if error.errno == errno.EACCES:
                return (
                    f"This user may not listen on port {port} of {host}. Set LIFECYCLE_API_PORT to a port above 1023."
                )
            # A host name may have addresses of a family that this machine does not support.
            if len(addresses) == 1:
                return f"LIFECYCLE_API_HOST={host} is not an address of this machine. Correct it, or set it to 0.0.0.0 for all addresses."
    return None


def _fail(message: str) -> int:
    print(message, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
