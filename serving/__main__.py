"""`python -m serving`: the API on uvicorn. Belongs here: starting it. Does not belong here: the application (app.py)."""

import logging
import sys

import uvicorn

from experimentation.settings import settings
from serving.app import create_app


def main() -> int:
    """Serve until a signal ends it; 1 when there is no database to serve from."""
    chosen = settings()
    try:
        app = create_app(chosen)
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 1
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    # Metrics count requests; a log line each would cost as much as answering.
    uvicorn.run(app, host=chosen.api_host, port=chosen.api_port, access_log=False, server_header=False, log_config=None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
