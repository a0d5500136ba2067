"""Readiness probes of services.

A probe returns whether the service is ready now. It raises LifecycleError if waiting longer is pointless.
"""

import json
import socket
from collections.abc import Callable
from pathlib import Path

import httpx

from foundation.errors import LifecycleError

Probe = Callable[[], bool]

_SECONDS = 5.0
# Shorter, because a person is waiting for `lifecycle status`.
_STATUS_SECONDS = 1.0
_LOCATIONS = """{ workspaceOrError { ... on Workspace { locationEntries { name loadStatus
  locationOrLoadError { __typename ... on PythonError { message } } } } ... on PythonError { message } } }"""


def answers(url: str) -> Probe:
    """Ready when `url` answers with a status below 400."""

    def probe() -> bool:
        try:
            return httpx.get(url, timeout=_SECONDS, trust_env=False).status_code < 400
        except httpx.HTTPError:
            return False

    return probe


def api_alive(port: int) -> bool:
    """Whether our API answers on this port, no matter who started it."""
    try:
        answer = httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=_STATUS_SECONDS, trust_env=False)
        return bool(answer.json() == {"status": "ok"})
    except (httpx.HTTPError, ValueError):
        return False


def accepts(path: Path) -> Probe:
    """Ready when something listens on the UNIX socket."""

    def probe() -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(_SECONDS)
            try:
                client.connect(str(path))
            except OSError:
                return False
        return True

    return probe


def logged(file: Path, text: str) -> Probe:
    """Ready when the log contains `text`; for a service that listens nowhere."""
    return lambda: file.exists() and text in file.read_text(errors="replace")


def definitions_loaded(webserver: str) -> Probe:
    """Ready when the Dagster UI at `webserver` has loaded every code location. Raises LifecycleError if definitions can't be loaded."""

    def probe() -> bool:
        try:
            answer = httpx.post(f"{webserver}/graphql", json={"query": _LOCATIONS}, timeout=_SECONDS, trust_env=False)
            workspace = answer.json()["data"]["workspaceOrError"]
        except (httpx.HTTPError, json.JSONDecodeError, KeyError, TypeError):
            return False
        entries = workspace.get("locationEntries", [])
        for entry in entries:
            location = entry["locationOrLoadError"] or {}
            message = location.get("message", "")
            # The UI may start before its code server. It tries again by itself, every second.
            if location.get("__typename") == "PythonError" and "DagsterUserCodeUnreachableError" in message:
                return False
            if location.get("__typename") == "PythonError":
                raise LifecycleError(f"The definitions in {entry['name']} can't be loaded: {_cause(message)}")
        return bool(entries) and all(entry["loadStatus"] == "LOADED" for entry in entries)

    return probe


def _cause(message: str) -> str:
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[0] if lines else "no reason was given. See the log of the code location."
