"""The hot routes in OpenAPI: FastAPI does not see them, so they are written in from their msgspec types."""

from collections.abc import Collection, Mapping
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from eventlog.validation import IncomingEvent, UnitId
from experimentation.runs.run import UnitType
from serving.assignments.ofrep import BulkEvaluation, Evaluation, EvaluationFailure
from serving.assignments.routes import AssignmentRequest, AssignmentResponse
from serving.events.routes import MAX_BATCH, BatchAccepted, EventAccepted
from serving.http.errors import ErrorBody

Schema = dict[str, Any]
_REFUSALS = {
    "400": "The request is not valid; `details` says where.",
    "401": "No valid API key.",
    "403": "The key lacks the scope.",
    "404": "There is no such thing.",
    "408": "The body did not come in time.",
    "413": "The body is too large.",
    "429": "Too many requests a minute; come back after `retry_after` seconds.",
    "503": "The database is away; come back after `retry_after` seconds.",
}
_REQUEST_ID = {
    "name": "X-Request-ID",
    "in": "header",
    "required": False,
    "description": "Echoed where it is printable ASCII of at most 128 characters; else made.",
    "schema": {"type": "string"},
}
_FLAG_KEY = {
    "name": "key",
    "in": "path",
    "required": True,
    "description": "The experiment's name.",
    "schema": {"type": "string"},
}
_ENROLL = {
    "name": "X-Enroll",
    "in": "header",
    "required": False,
    "description": "Whether the unit is enrolled. Unset: one flag enrols, all flags at once do not.",
    "schema": {"type": "string", "enum": ["true", "false"]},
}
_IF_NONE_MATCH = {
    "name": "If-None-Match",
    "in": "header",
    "required": False,
    "description": "The ETag of an earlier answer: 304 when nothing changed.",
    "schema": {"type": "string"},
}
# What the page /docs fills in, so that trying an operation out works as it stands: names of this repository's own configuration.
_UNIT = {"unit_type": "user", "unit_id": "u1"}
_EVENT = {
    **_UNIT,
    "event_id": "3f2b8f7e-8f0d-4d3a-9c55-2a7f7f0c1f10",
    "event_type": "plan_accepted",
    "experiments": [],
    "context": {"platform": "ios"},
    "metrics": {"latency_ms": 41.5},
    "payload": {"plan_id": "p-1"},
    "timestamp": "2026-01-05T18:00:00+00:00",
}
_EXAMPLES: Mapping[str, Schema] = {
    "AssignmentRequest": {
        **_UNIT,
        "requested_experiments": ["recipe_cards"],
        "context": {"platform": "ios"},
        "enroll": False,
    },
    "IncomingEvent": _EVENT,
    "EventBatch": {"events": [_EVENT, {**_EVENT, "event_id": "3f2b8f7e-8f0d-4d3a-9c55-2a7f7f0c1f11"}]},
    "OfrepRequest": {"context": {"targetingKey": "u1", "unitType": "user", "platform": "ios"}},
}
_EXPERIMENT, _POLICY = "recipe_cards", "planner_policy"
_RETRY_AFTER = {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}}}


class OfrepContext(msgspec.Struct, rename="camel"):
    """Who is asked for, and anything that targeting rules read. `unitType` is only needed to enrol in every experiment at once."""

    targeting_key: UnitId
    unit_type: UnitType | msgspec.UnsetType = msgspec.UNSET


class OfrepRequest(msgspec.Struct):
    """What OFREP sends."""

    context: OfrepContext


class EventBatch(msgspec.Struct):
    """Events that are stored together; each is judged on its own."""

    events: list[IncomingEvent]


def describe(app: FastAPI, hot: Collection[str]) -> Schema:
    """The whole OpenAPI document; made once, at the first call. `hot`: paths that are served beside FastAPI's own."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes, tags=app.openapi_tags
        )
        types = (
            AssignmentRequest,
            AssignmentResponse,
            IncomingEvent,
            EventBatch,
            EventAccepted,
            BatchAccepted,
            OfrepRequest,
            Evaluation,
            EvaluationFailure,
            BulkEvaluation,
            ErrorBody,
        )
        _, components = msgspec.json.schema_components(types, ref_template=_REF)
        components["EventBatch"]["properties"]["events"] |= {"minItems": 1, "maxItems": MAX_BATCH}
        flags = components["BulkEvaluation"]["properties"]["flags"]
        flags["items"] = {"anyOf": [_schema(Evaluation), _schema(EvaluationFailure)]}
        # OFREP itself reads more of a context than is named here.
        components["OfrepContext"]["additionalProperties"] = True
        for name, example in _EXAMPLES.items():
            components[name]["examples"] = [example]
        document.setdefault("components", {}).setdefault("schemas", {}).update(components)
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["paths"] |= {path: described for path, described in _hot_paths().items() if path in hot}
        for path, operations in document["paths"].items():
            for operation in operations.values():
                # The page shows a summary as it stands.
                operation["summary"] = operation["summary"].replace("`", "")
                _fill_in(path, operation.setdefault("parameters", []))
                operation["parameters"].append(_REQUEST_ID)
                if path.startswith(("/api/", "/ofrep/")):
                    operation["security"] = [{"key": []}]
                    # FastAPI's own shape of a refusal is never sent.
                    operation["responses"].pop("422", None)
        for unused in ("HTTPValidationError", "ValidationError"):
            document["components"]["schemas"].pop(unused, None)
        app.openapi_schema = document
    return app.openapi_schema


def refusals(*statuses: str) -> dict[int | str, dict[str, Any]]:
    """What an operation may be refused with, for its `responses`."""
    return {
        status: {
            "description": _REFUSALS[status],
            "content": {"application/json": {"schema": _schema(ErrorBody)}},
            **({"headers": _RETRY_AFTER} if status in ("429", "503") else {}),
        }
        for status in statuses
    }


_REF = "#/components/schemas/{name}"
_ALL = ("400", "401", "403", "408", "413", "429", "503")


def _fill_in(path: str, parameters: list[Schema]) -> None:
    values = {"name": _POLICY if "/policies/" in path else _EXPERIMENT, "key": _EXPERIMENT, "unit_id": _UNIT["unit_id"]}
    for parameter in parameters:
        if parameter["in"] == "path":
            parameter["example"] = values[parameter["name"]]


def _schema(shape: type) -> Schema:
    return {"$ref": _REF.format(name=shape.__name__)}


def _content(shape: type) -> Schema:
    return {"application/json": {"schema": _schema(shape)}}


def _hot_paths() -> Schema:
    etag = {"ETag": {"description": "For If-None-Match.", "schema": {"type": "string"}}}
    failed = {"description": "What of the context can't be used.", "content": _content(EvaluationFailure)}
    unknown = {"description": "There is no such experiment.", "content": _content(EvaluationFailure)}
    return {
        "/api/v1/assignments": _post(
            "assignments",
            "assign",
            "Variants and configs of a unit (scope assign)",
            AssignmentRequest,
            {"200": {"description": "One entry a requested name.", "content": _content(AssignmentResponse)}},
        ),
        "/api/v1/events": _post(
            "events",
            "store_event",
            "Store one event (scope ingest)",
            IncomingEvent,
            {"200": {"description": "Stored.", "content": _content(EventAccepted)}},
        ),
        "/api/v1/events/batch": _post(
            "events",
            "store_events",
            "Store up to 1,000 events (scope ingest)",
            EventBatch,
            {
                "200": {"description": "All stored.", "content": _content(BatchAccepted)},
                "207": {
                    "description": "Some refused, listed in `errors`; the others stored.",
                    "content": _content(BatchAccepted),
                },
            },
        ),
        "/ofrep/v1/evaluate/flags/{key}": _post(
            "OFREP",
            "evaluate_flag",
            "One experiment as a flag; enrols the unit unless X-Enroll: false (scope assign)",
            OfrepRequest,
            {
                "200": {"description": "Evaluated.", "content": _content(Evaluation)},
                "400": failed,
                "404": unknown,
            },
            [_FLAG_KEY, _ENROLL],
        ),
        "/ofrep/v1/evaluate/flags": _post(
            "OFREP",
            "evaluate_flags",
            "Every experiment as flags; enrols nobody unless X-Enroll: true (scope assign)",
            OfrepRequest,
            {
                "200": {"description": "Evaluated.", "content": _content(BulkEvaluation), "headers": etag},
                "304": {"description": "Nothing changed since the answer with that ETag."},
                "400": failed,
            },
            [_ENROLL, _IF_NONE_MATCH],
        ),
    }


def _post(
    tag: str, operation: str, summary: str, body: type, answers: Schema, parameters: list[Schema] | None = None
) -> Schema:
    return {
        "post": {
            "tags": [tag],
            "summary": summary,
            "operationId": operation,
            "parameters": list(parameters or ()),
            "requestBody": {"required": True, "content": _content(body)},
            "responses": {**refusals(*_ALL), **answers},
        }
    }
