"""The dbt docs site: built if it is missing or older than the dbt project, then served from the home.

`lifecycle up` runs this module as a service.
"""

import os
import subprocess
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from foundation.errors import LifecycleError
from foundation.settings import PROJECT_ROOT, Settings, settings
from orchestration.local.environment import child_environment
from orchestration.local.ports import HOST

DBT_PROJECT = PROJECT_ROOT / "dbt_project"
_SOURCES = (".sql", ".yml", ".md")
_GENERATED = ("target", "logs", "dbt_packages")
_GENERATE_SECONDS = 300


def is_current(site: Path, project: Path = DBT_PROJECT) -> bool:
    """Whether the site exists and no source of the dbt project changed since it was built."""
    index = site / "index.html"
    if not (index.exists() and (site / "manifest.json").exists() and (site / "catalog.json").exists()):
        return False
    built = index.stat().st_mtime
    sources = (path for path in project.rglob("*") if path.suffix in _SOURCES)
    return all(
        path.stat().st_mtime <= built for path in sources if path.relative_to(project).parts[0] not in _GENERATED
    )


def generate(current: Settings) -> Path:
    """Build the site from the dbt project and the database's tables; returns its folder.

    Raises LifecycleError with the end of dbt's output.
    """
    site = current.home / "docs"
    site.mkdir(parents=True, exist_ok=True)
    # A separate target folder, because dbt runs in Dagster write to the project's at the same time.
    command = [
        str(Path(sys.executable).parent / "dbt"), "--no-use-colors", "docs", "generate", "--log-path", str(current.home / "logs"),
        "--project-dir", str(DBT_PROJECT), "--profiles-dir", str(DBT_PROJECT), "--target-path", str(site),
    ]  # fmt: skip
    try:
        done = subprocess.run(
            command, env=child_environment(current), stdin=subprocess.DEVNULL, capture_output=True, text=True,
            check=False, timeout=_GENERATE_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise LifecycleError(
            f"dbt did not build its docs within {_GENERATE_SECONDS} s: see {current.home / 'logs' / 'dbt.log'}."
        ) from error
    if done.returncode != 0:
        output = "\n".join(f"  | {line}" for line in (done.stdout + done.stderr).strip().splitlines()[-6:])
        raise LifecycleError(f"dbt could not build its docs from {DBT_PROJECT}:\n{output}")
    os.utime(site / "index.html")
    return site


def serve(site: Path, port: int) -> None:
    """Serve the folder on 127.0.0.1 until the process is ended."""
    with ThreadingHTTPServer((HOST, port), partial(SimpleHTTPRequestHandler, directory=str(site))) as server:
        server.serve_forever()


def main() -> None:
    """Build the site if it is not current, and serve it."""
    current = settings()
    site = current.home / "docs"
    if not is_current(site):
        generate(current)
    serve(site, current.docs_port)


if __name__ == "__main__":
    try:
        main()
    except LifecycleError as failure:
        sys.exit(str(failure))
