"""A client of a running Dagster webserver. Like the UI, it launches and watches runs over GraphQL."""

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from foundation.errors import LifecycleError

LOCATION, REPOSITORY, ASSET_JOB = "orchestration", "__repository__", "__ASSET_JOB"
FINISHED = {"SUCCESS", "FAILURE", "CANCELED"}

_LAUNCH = """
mutation Launch($params: ExecutionParams!) {
  launchPipelineExecution(executionParams: $params) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message }
    ... on RunConfigValidationInvalid { errors { message } }
    ... on PipelineNotFoundError { message }
    ... on InvalidSubsetError { message }
    ... on UnauthorizedError { message }
  }
}"""
_RUN = """
query Run($id: ID!) {
  runOrError(runId: $id) {
    ... on Run { status stats { ... on RunStatsSnapshot { stepsSucceeded stepsFailed } } }
  }
}"""
_RUNS = """
query Runs($filter: RunsFilter!) { runsOrError(filter: $filter, limit: 50) { ... on Runs { results { runId status jobName } } } }"""
_MATERIALISED = """
query Materialised($key: AssetKeyInput!, $partitions: [String!]) {
  assetNodeOrError(assetKey: $key) {
    ... on AssetNode { assetMaterializations(partitions: $partitions, limit: 1) { timestamp runId } }
  }
}"""
_RANGES = """
query Ranges($key: AssetKeyInput!) {
  assetNodeOrError(assetKey: $key) {
    ... on AssetNode { assetPartitionStatuses { ... on TimePartitionStatuses { ranges { startKey endKey status } } } }
  }
}"""
_METADATA = """
query Metadata($key: AssetKeyInput!, $partitions: [String!]) {
  assetNodeOrError(assetKey: $key) {
    ... on AssetNode {
      assetMaterializations(partitions: $partitions, limit: 1) {
        metadataEntries {
          label
          ... on TextMetadataEntry { text }
          ... on IntMetadataEntry { intRepr }
          ... on FloatMetadataEntry { floatRepr: floatValue }
        }
      }
    }
  }
}"""
_GROUP = """
query Group($group: AssetGroupSelector!) {
  assetNodes(group: $group) {
    assetKey { path }
    assetChecksOrError { ... on AssetChecks { checks { executionForLatestMaterialization { status } } } }
  }
}"""
_REPORT = """
mutation Report($params: ReportRunlessAssetEventsParams!) {
  reportRunlessAssetEvents(eventParams: $params) { __typename ... on PythonError { message } ... on UnauthorizedError { message } }
}"""
_FAILURES = """
query Failures($id: ID!, $cursor: String) {
  logsForRun(runId: $id, limit: 1000, afterCursor: $cursor) {
    ... on EventConnection {
      cursor hasMore
      events {
        ... on LogMessageEvent { message level }
        ... on ExecutionStepFailureEvent { stepKey error { message cause { message } } }
        ... on RunFailureEvent { message }
      }
    }
  }
}"""


_CONSEQUENCES = ("Execution of run for ", "Execution of step ", "Dependencies for step ")
"""Beginnings of Dagster's own messages that only say that something failed."""
_FAILURE = re.compile(r"^dagster\.[\w.]*\.Failure: ")
"""Dagster's prefix to the message of a dg.Failure."""


class DagsterError(LifecycleError):
    """Dagster refused or lost a run; the message says which run, why, and where to look."""


@dataclass(frozen=True)
class Run:
    """A finished run."""

    run_id: str
    status: str

    @property
    def ok(self) -> bool:
        """Whether the run succeeded."""
        return self.status == "SUCCESS"


class DagsterClient:
    """A client of one webserver at `url`. `wait_seconds` bounds every wait for a run."""

    def __init__(self, url: str, wait_seconds: float = 900) -> None:
        self.url = url
        self.wait_seconds = wait_seconds
        self._http = httpx.Client(base_url=url, timeout=30, trust_env=False)

    def query(self, text: str, variables: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The data of a GraphQL answer. Raises DagsterError with the server's message."""
        try:
            answer = self._http.post("/graphql", json={"query": text, "variables": dict(variables or {})})
            body = answer.json()
        except (httpx.HTTPError, ValueError) as error:
            raise DagsterError(
                f"Dagster at {self.url} does not answer ({error}): see its log in the home folder."
            ) from error
        if body.get("errors"):
            raise DagsterError(f"Dagster at {self.url} refused a query: {_first_line(body['errors'][0]['message'])}")
        return dict(body["data"])

    def launch(
        self,
        assets: list[str],
        *,
        partition: str | None = None,
        partition_range: tuple[str, str] | None = None,
        config: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> str:
        """Start one run of these assets (`a/b` for a key of two parts) and their checks: unpartitioned, for a partition, or for a range.

        Returns the run's id. Raises DagsterError.
        """
        all_tags = dict(tags or {})
        if partition is not None:
            all_tags["dagster/partition"] = partition
        if partition_range is not None:
            all_tags["dagster/asset_partition_range_start"], all_tags["dagster/asset_partition_range_end"] = (
                partition_range
            )
        params = {
            "selector": {
                "repositoryLocationName": LOCATION,
                "repositoryName": REPOSITORY,
                "pipelineName": ASSET_JOB,
                "assetSelection": [{"path": key.split("/")} for key in assets],
            },
            "mode": "default",
            "runConfigData": dict(config or {}),
            "executionMetadata": {"tags": [{"key": key, "value": value} for key, value in all_tags.items()]},
        }
        result = self.query(_LAUNCH, {"params": params})["launchPipelineExecution"]
        if result["__typename"] != "LaunchRunSuccess":
            why = result.get("message") or "; ".join(error["message"] for error in result.get("errors", []))
            raise DagsterError(f"Dagster did not start {', '.join(assets)}: {result['__typename']} {why}")
        return str(result["run"]["runId"])

    def wait(self, run_id: str, on_tick: Callable[[], None] = lambda: None) -> Run:
        """Wait until a run ends. Raises DagsterError if it takes longer than `wait_seconds`."""
        deadline = time.monotonic() + self.wait_seconds
        while time.monotonic() < deadline:
            status = self.query(_RUN, {"id": run_id})["runOrError"].get("status", "UNKNOWN")
            if status in FINISHED:
                return Run(run_id, status)
            on_tick()
            time.sleep(0.5)
        raise DagsterError(
            f"Run {run_id} did not finish within {self.wait_seconds:.0f} s: look at {self.run_url(run_id)}"
        )

    def require(self, run_id: str, what: str, on_tick: Callable[[], None] = lambda: None) -> Run:
        """Wait until a run ends. Raises DagsterError with the failed step's message unless the run succeeded."""
        run = self.wait(run_id, on_tick)
        if not run.ok:
            raise DagsterError(f"{what}: {self.why_failed(run_id)} See {self.run_url(run_id)}")
        return run

    def materialised_at(self, asset: str, partition: str | None = None) -> float | None:
        """When an asset (or a partition of it) was last materialised, in seconds since 1970; None if it never was."""
        variables = {"key": {"path": asset.split("/")}, "partitions": None if partition is None else [partition]}
        node = self.query(_MATERIALISED, variables)["assetNodeOrError"]
        materialisations = node.get("assetMaterializations") or []
        return float(materialisations[0]["timestamp"]) / 1000 if materialisations else None

    def metadata(self, asset: str, partition: str | None = None) -> dict[str, str]:
        """Texts and numbers in the last materialisation's metadata, as text by label; empty if it was never materialised."""
        variables = {"key": {"path": asset.split("/")}, "partitions": None if partition is None else [partition]}
        materialisations = self.query(_METADATA, variables)["assetNodeOrError"].get("assetMaterializations") or []
        entries = materialisations[0]["metadataEntries"] if materialisations else []
        values = {entry["label"]: entry.get("text", entry.get("intRepr", entry.get("floatRepr"))) for entry in entries}
        return {label: str(value) for label, value in values.items() if value is not None}

    def report(self, asset: str, description: str) -> None:
        """Record a materialisation of an external asset, so that the graph shows it as materialised."""
        params = {
            "eventType": "ASSET_MATERIALIZATION",
            "assetKey": {"path": asset.split("/")},
            "description": description,
        }
        answer = self.query(_REPORT, {"params": params})["reportRunlessAssetEvents"]
        if "message" in answer:
            raise DagsterError(f"Dagster did not record {asset}: {answer['message']}")

    def group(self, name: str) -> dict[str, list[str]]:
        """Assets of a group, as `a/b`, with the states of their checks on the last materialisation (`NOT_RUN` if a check did not run)."""
        selector = {"groupName": name, "repositoryName": REPOSITORY, "repositoryLocationName": LOCATION}
        nodes = self.query(_GROUP, {"group": selector})["assetNodes"]
        return {
            "/".join(node["assetKey"]["path"]): [
                (check["executionForLatestMaterialization"] or {}).get("status", "NOT_RUN")
                for check in node["assetChecksOrError"].get("checks", [])
            ]
            for node in nodes
        }

    def has_range(self, asset: str, first: str, last: str) -> bool:
        """Whether every time partition from `first` to `last` is materialised. Keys of one asset sort by time."""
        node = self.query(_RANGES, {"key": {"path": asset.split("/")}})["assetNodeOrError"]
        ranges = (node.get("assetPartitionStatuses") or {}).get("ranges", [])
        return any(
            span["status"] == "MATERIALIZED" and span["startKey"] <= first and last <= span["endKey"] for span in ranges
        )

    def runs(self, tags: Mapping[str, str]) -> list[dict[str, Any]]:
        """Runs that have all these tags, newest first: `runId`, `status`, `jobName`."""
        query_filter = {"tags": [{"key": key, "value": value} for key, value in tags.items()]}
        return list(self.query(_RUNS, {"filter": query_filter})["runsOrError"]["results"])

    def why_failed(self, run_id: str) -> str:
        """The error messages in a run's log, in order. Messages that only say that something failed are used if there are no others."""
        messages: list[str] = []
        cursor = None
        while True:
            page = self.query(_FAILURES, {"id": run_id, "cursor": cursor})["logsForRun"]
            for event in page.get("events", []):
                if event.get("level") not in (None, "ERROR", "CRITICAL"):
                    continue
                if message := _error_message(event):
                    messages.append(message)
            if not page.get("hasMore"):
                causes = [message for message in messages if not message.startswith(_CONSEQUENCES)]
                return " ".join(dict.fromkeys(causes or messages)) or "the run failed without a message."
            cursor = page["cursor"]

    def run_url(self, run_id: str) -> str:
        """The address of the run's page."""
        return f"{self.url}/runs/{run_id}"

    def close(self) -> None:
        """Close the connection."""
        self._http.close()


def _error_message(event: Mapping[str, Any]) -> str:
    """The error in one event of a run's log: the message of a dg.Failure, else the cause of an error, else the event's message."""
    error = event.get("error") or {}
    own = str(error.get("message") or "")
    if _FAILURE.match(own):
        return _first_line(_FAILURE.sub("", own))
    return _first_line(str((error.get("cause") or {}).get("message") or own or event.get("message") or ""))


def _first_line(text: str) -> str:
    return next(iter(text.strip().splitlines()), "")
