"""The services of a local installation: their commands, addresses and readiness probes.

Dagster runs as three processes with one code server, so that definitions are loaded once. `dagster dev` would load them for the UI and
for the daemon, and can't be stopped when it runs in the background (signals.py).
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
    """Every service of a home by its short name; the ones that people open come first."""
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
            after=(WEBSERVER,),  # building the site uses a core for 10 s, which the UI needs more
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
            # After MLflow, which creates its tables at its first start: a sensor that queries MLflow meanwhile would create them too, and
            # one of the two would fail.
            DAEMON, "Dagster daemon", (_script("dagster-daemon"), "run", "--workspace", workspace),
            logged(settings.home / "logs" / f"{DAEMON}.log", "Instance is configured with the following daemons"),
            after=(CODE, MLFLOW),
        ),
    ]  # fmt: skip
    return {service.name: service for service in services}


def _mlflow(settings: Settings) -> list[Service]:
    """The MLflow server on the database that jobs write to; none if tracking goes to the user's own server."""
    if (settings.mlflow_tracking_uri or "").startswith(("http://", "https://")):
        return []
    url = f"http://{HOST}:{settings.mlflow_port}"
    command = (
        # Its database URI is in MLFLOW_BACKEND_STORE_URI because it has a password, and every user of the machine can read command lines.
        _script("mlflow"), "server",
        "--default-artifact-root", f"{absolute(settings.store_root)}/mlflow", "--no-serve-artifacts",
        "--host", HOST, "--port", str(settings.mlflow_port), "--workers", "1",
    )  # fmt: skip
    return [
        Service(MLFLOW, "MLflow", command, answers(f"{url}/health"), url, settings.mlflow_port, "LIFECYCLE_MLFLOW_PORT")
    ]


def _script(name: str) -> str:
    """A command of this Python environment, whether or not it is activated."""
    return str(Path(sys.executable).parent / name)
