"""The page /docs loads nothing from the internet and shows the API's own OpenAPI document."""

import asyncio
import re
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from serving.pages.api_docs import ASSETS, add_docs, as_3_0


def app() -> FastAPI:
    """An application with one operation."""
    application = FastAPI(title="tea", docs_url=None, redoc_url=None)

    @application.get("/tea")
    async def tea(cups: int | None = None) -> dict[str, str | None]:
        return {}

    add_docs(application)
    return application


def get(path: str) -> httpx.Response:
    """The response to one GET request."""

    async def once() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app()), base_url="http://api") as client:
            return await client.get(path)

    return asyncio.run(once())


def test_page_refers_to_no_other_host() -> None:
    page = get("/docs")
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    assert "://" not in page.text and not re.search(r"""["'(=]//""", page.text)
    assert '"validatorUrl": null' in page.text
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "http" not in policy


def test_page_refers_only_to_existing_files() -> None:
    references = re.findall(r"""(?:src|href)="([^"]+)"|url: '([^']+)'""", get("/docs").text)
    paths = {f"/{source or url}" for source, url in references}
    assert paths == {"/docs/openapi.json", *(f"/docs/assets/{name}" for name in ASSETS)}
    for path in paths:
        answer = get(path)
        assert answer.status_code == 200 and len(answer.content) > 100, path
    kinds = {get(f"/docs/assets/{name}").headers["content-type"].partition(";")[0] for name in ASSETS}
    assert kinds == {"text/javascript", "text/css", "image/png"}


def test_styles_refer_to_no_other_host() -> None:
    references = re.findall(r"url\(([^)]*)\)|@import ([^;]*)", get("/docs/assets/swagger-ui.css").text)
    assert references and all(url.strip("\"'").startswith("data:") for url, _imported in references)


@pytest.mark.parametrize("path", ["/redoc", "/docs/assets/index.html", "/docs/assets/../assets/swagger-ui.js"])
def test_other_files_are_not_served(path: str) -> None:
    assert get(path).status_code == 404


def test_page_uses_openapi_3_0_and_the_api_keeps_3_1() -> None:
    converted, original = get("/docs/openapi.json").json(), get("/openapi.json").json()
    assert (converted["openapi"][:3], original["openapi"][:3]) == ("3.0", "3.1")
    assert set(converted["paths"]) == set(original["paths"]) == {"/tea"}
    assert converted["paths"]["/tea"]["get"]["parameters"][0]["schema"] == {
        "type": "integer", "nullable": True, "title": "Cups",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"anyOf": [{"type": "string"}, {"type": "null"}], "title": "A"}, {"type": "string", "nullable": True, "title": "A"}),
        (
            {"anyOf": [{"$ref": "#/x"}, {"type": "null"}], "default": None},
            {"anyOf": [{"$ref": "#/x"}], "nullable": True, "default": None},
        ),
        (
            {"anyOf": [{"type": "string"}, {"type": "integer"}, {"type": "null"}]},
            {"anyOf": [{"type": "string"}, {"type": "integer"}], "nullable": True},
        ),
        ({"type": ["string", "null"]}, {"type": "string", "nullable": True}),
        ({"const": "a"}, {"enum": ["a"]}),
        ({"examples": ["a", "b"]}, {"example": "a"}),
        ({"exclusiveMinimum": 0}, {"minimum": 0, "exclusiveMinimum": True}),
        (
            {"properties": {"const": {"type": "string"}, "examples": {"type": "array", "items": {"const": 1}}}},
            {"properties": {"const": {"type": "string"}, "examples": {"type": "array", "items": {"enum": [1]}}}},
        ),
    ],
)  # fmt: skip
def test_schema_of_3_1_is_converted_to_3_0(schema: dict[str, Any], expected: dict[str, Any]) -> None:
    document = {"openapi": "3.1.0", "components": {"schemas": {"A": schema}}}
    assert as_3_0(document) == {"openapi": "3.0.3", "components": {"schemas": {"A": expected}}}
    assert document["openapi"] == "3.1.0" and document["components"] == {"schemas": {"A": schema}}
