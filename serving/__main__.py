"""`python -m serving`: the API on uvicorn.

Belongs here: starting it, and what keeps it from starting as one sentence. Does not belong here: the application (app.py).
"""

import gc
import logging
import os
import sys

import uvicorn
from pydantic import ValidationError
from pydantic_settings import SettingsError
from starlette.types import ASGIApp

from experimentation.settings import invalid_settings, settings, unknown_names
from serving.app import create_app
from serving.logs import AccessLog, configure_logging
from serving.tracing import traced

log = logging.getLogger("serving")


def main() -> int:
    """Serve until a signal ends it; 1 when a setting is no good or there is no database to serve from."""
    try:
        chosen = settings()
        configure_logging(chosen.api_log_format)
        app: ASGIApp = create_app(chosen)
    except (ValidationError, SettingsError) as error:
        return _refuse(invalid_settings(error))
    except FileNotFoundError as error:
        return _refuse(str(error))
    except ValueError as error:
        return _refuse(str(error))
    for sentence in unknown_names(os.environ):
        log.warning(sentence)
    # Outside of the front door, which answers before any middleware of the application.
    if chosen.api_access_log:
        app = AccessLog(app)
    # What is there now stays for good, so the garbage collector need not look through it again: its pauses were a tenth of a second.
    gc.collect()
    gc.freeze()
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


def _refuse(sentence: str) -> int:
    print(sentence, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
