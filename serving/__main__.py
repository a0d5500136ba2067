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

YOUNG_OBJECTS = 50_000
# Not shown: what can't be read can't be shown without its password either.
NO_DATABASE_URL = "DATABASE_URL is no PostgreSQL address: write it as postgresql://user:password@host:port/database."


def main() -> int:
    """Serve until a signal ends it; 1 when a setting is no good, the port is taken or there is no database to serve from."""
    try:
        chosen = settings()
        configure_logging(chosen.api_log_format)
        if trouble := _database_trouble(chosen):
            return _refuse(trouble)
        app: ASGIApp = create_app(chosen)
        # Last, so that what is told of the settings does not depend on what else runs here.
        if trouble := _port_trouble(chosen.api_host, chosen.api_port):
            return _refuse(trouble)
    except (ValidationError, SettingsError) as error:
        return _refuse(invalid_settings(error))
    except (FileNotFoundError, ValueError) as error:
        return _refuse(str(error))
    for sentence in unknown_names(os.environ):
        log.warning(sentence)
    # Outside of the front door, which answers before any middleware of the application.
    if chosen.api_access_log:
        app = AccessLog(app)
    # What is there now stays for good, so the garbage collector need not look through it again: its pauses were a tenth of a second.
    gc.collect()
    gc.freeze()
    # What a batch of a thousand events is made of goes when it is stored; looking through it meanwhile took a tenth of the processor time.
    gc.set_threshold(YOUNG_OBJECTS, 10, 10)
    # uvicorn's access log is off: it has neither request ids nor durations.
    uvicorn.run(
        traced(app),
        host=chosen.api_host,
        port=chosen.api_port,
        loop="uvloop",
        http="httptools",
        access_log=False,
        server_header=False,
        log_config=None,
    )
    return 0


def _database_trouble(chosen: Settings) -> str | None:
    """Why DATABASE_URL can be no address, whoever listens there."""
    if chosen.database_url is None:
        return None
    try:
        # Several hosts may stand there, each with its port.
        ports = str(conninfo_to_dict(chosen.database_url).get("port") or "").split(",")
        known = urlsplit(chosen.database_url).scheme in ("postgresql", "postgres")
        holds = known and all(0 < int(port) < 65536 for port in ports if port)
    except (psycopg.Error, ValueError):
        holds = False
    return None if holds else NO_DATABASE_URL


def _port_trouble(host: str, port: int) -> str | None:
    """Why nothing can listen there. What is bound for the question is given back, and does not keep another from starting."""
    try:
        places = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        return f"LIFECYCLE_API_HOST={host} is no address: set it to one of this machine, or to 0.0.0.0 for every one."
    for family, kind, protocol, _, address in places:
        try:
            with socket.socket(family, kind, protocol) as probe:
                # As servers do: a port whose last connections are merely winding down is free.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return f"Port {port} of {host} is taken: end what listens there, or set LIFECYCLE_API_PORT."
            if error.errno == errno.EACCES:
                return f"Port {port} of {host} is closed to this user: set LIFECYCLE_API_PORT to one above 1023."
            # A name may stand for addresses of a family that this machine has none of.
            if len(places) == 1:
                return f"LIFECYCLE_API_HOST={host} is no address of this machine: correct it, or set it to 0.0.0.0 for every one."
    return None


def _refuse(sentence: str) -> int:
    print(sentence, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
