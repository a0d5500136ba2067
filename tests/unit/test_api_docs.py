"""The page /docs comes from this machine alone, and shows what the API says of itself."""

import asyncio
import re
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from serving.pages.api_docs import ASSETS, add_docs, as_3_0


def app() -> FastAPI:
    """An application with one operation."""
    made = FastAPI(title="tea", docs_url=None, redoc_url=None)

    @made.get("/tea")
    async def tea(cups: int | None = None) -> dict[str, str | None]:
        return {}

    add_docs(made)
    return made


def get(path: str) -> httpx.Response:
    """One answer of it."""

    async def once() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app()), base_url="http://api") as client:
            return await client.get(path)

    return asyncio.run(once())


def test_the_page_asks_nobody_else() -> None:
    page = get("/docs")
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    assert "://" not in page.text and not re.search(r"""["'(=]//""", page.text)
    assert '"validatorUrl": null' in page.text
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "http" not in policy


def test_everything_that_the_page_names_is_there() -> None:
    named = re.findall(r"""(?:src|href)="([^"]+)"|url: '([^']+)'""", get("/docs").text)
    paths = {f"/{source or url}" for source, url in named}
    assert paths == {"/docs/openapi.json", *(f"/docs/assets/{name}" for name in ASSETS)}
    for path in paths:
        answer = get(path)
        assert answer.status_code == 200 and len(answer.content) > 100, path
    kinds = {get(f"/docs/assets/{name}").headers["content-type"].partition(";")[0] for name in ASSETS}
    assert kinds == {"text/javascript", "text/css", "image/png"}


def test_styles_load_nothing_from_elsewhere() -> None:
    loaded = re.findall(r"url\(([^)]*)\)|@import ([^;]*)", get("/docs/assets/swagger-ui.css").text)
    assert loaded and all(url.strip("\"'").startswith("data:") for url, _imported in loaded)


@pytest.mark.parametrize("path", ["/redoc", "/docs/assets/index.html", "/docs/assets/../assets/swagger-ui.js"])
def test_nothing_more_is_served(path: str) -> None:
    assert get(path).status_code == 404


def test_the_page_reads_a_document_of_3_0_and_the_api_keeps_3_1() -> None:
    shown, kept = get("/docs/openapi.json").json(), get("/openapi.json").json()
    assert (shown["openapi"][:3], kept["openapi"][:3]) == ("3.0", "3.1")
    assert set(shown["paths"]) == set(kept["paths"]) == {"/tea"}
    assert shown["paths"]["/tea"]["get"]["parameters"][0]["schema"] == {
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
def test_what_3_1_says_otherwise_is_rewritten(schema: dict[str, Any], expected: dict[str, Any]) -> None:
    document = {"openapi": "3.1.0", "components": {"schemas": {"A": schema}}}
    assert as_3_0(document) == {"openapi": "3.0.3", "components": {"schemas": {"A": expected}}}
    assert document["openapi"] == "3.1.0" and document["components"] == {"schemas": {"A": schema}}
