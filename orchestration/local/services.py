"""The services of a local installation: their commands, addresses, and how each shows that it is ready.

Dagster runs as three processes on one code server, so that definitions are loaded once: `dagster dev` would load them for the UI and
for the daemon, and can't be ended from the background (signals.py).
"""

import sys
from pathlib import Path

from foundation.settings import PROJECT_ROOT, Settings
from orchestration.local.environment import CODE_LOCATION, DEFINITIONS_MODULE, absolute, code_socket
from orchestration.local.ports import HOST
from orchestration.local.probes import accepts, answers, definitions_loaded, logged
from orchestration.local.processes import Service

CODE, WEBSERVER, DAEMON, MLFLOW, API, DOCS = "code", "webserver", "daemon", "mlflow", "api", "docs"
DAGSTER = (CODE, WEBSERVER, DAEMON)
EVERYTHING = (WEBSERVER, MLFLOW, API, DOCS, CODE, DAEMON)


def all_services(settings: Settings) -> dict[str, Service]:
    """Every service of a home by its short name, in the order of a person's interest."""
    workspace = str(settings.home / "dagster" / "workspace.yaml")
    socket = code_socket(settings.home)
    dagster_url, api_url = f"http://{HOST}:{settings.dagster_port}", f"http://{HOST}:{settings.api_port}"
    docs_url = f"http://{HOST}:{settings.docs_port}"
    services = [
        Service(
            WEBSERVER, "Dagster UI",
            (_script("dagster-webserver"), "--workspace", workspace, "--host", HOST, "--port", str(settings.dagster_port)),
            definitions_loaded(dagster_url), dagster_url, settings.dagster_port, "LIFECYCLE_DAGSTER_PORT",
        ),
        *_mlflow(settings),
        Service(
            API, "API", (sys.executable, "-m", "serving"),
            answers(f"{api_url}/readyz"), f"{api_url}/docs", settings.api_port, "LIFECYCLE_API_PORT",
        ),
        Service(
            DOCS, "dbt docs", (sys.executable, "-m", "orchestration.local.docs_site"),
            answers(docs_url), docs_url, settings.docs_port, "LIFECYCLE_DOCS_PORT",
            after=(WEBSERVER,),  # making the site takes a core for 10 s, which the UI needs more
        ),
        Service(
            CODE, "Dagster code location",
            (
                _script("dagster"), "code-server", "start", "--socket", str(socket), "--module-name", DEFINITIONS_MODULE,
                "--working-directory", str(PROJECT_ROOT), "--location-name", CODE_LOCATION, "--use-python-environment-entry-point",
            ),
            accepts(socket),
        ),
        Service(
            # After MLflow, whose first start makes its tables: a sensor that asks it meanwhile would make them too, and one would fail.
            DAEMON, "Dagster daemon", (_script("dagster-daemon"), "run", "--workspace", workspace),
            logged(settings.home / "logs" / f"{DAEMON}.log", "Instance is configured with the following daemons"),
            after=(CODE, MLFLOW),
        ),
    ]  # fmt: skip
    return {service.name: service for service in services}


def _mlflow(settings: Settings) -> list[Service]:
    """The MLflow server over the same database that jobs write to; none when tracking goes to a server of the user's."""
    if (settings.mlflow_tracking_uri or "").startswith(("http://", "https://")):
        return []
    url = f"http://{HOST}:{settings.mlflow_port}"
    command = (
        # Its database is in MLFLOW_BACKEND_STORE_URI: a command line is read by every user of the machine, and the URI has the password.
        _script("mlflow"), "server",
        "--default-artifact-root", f"{absolute(settings.store_root)}/mlflow", "--no-serve-artifacts",
        "--host", HOST, "--port", str(settings.mlflow_port), "--workers", "1",
    )  # fmt: skip
    return [
        Service(MLFLOW, "MLflow", command, answers(f"{url}/health"), url, settings.mlflow_port, "LIFECYCLE_MLFLOW_PORT")
    ]


def _script(name: str) -> str:
    """A command of this Python's environment, whether or not it is activated."""
    return str(Path(sys.executable).parent / name)
