"""The page `/docs`: Swagger UI from this machine. FastAPI's own page loads its scripts from a CDN, and is blank without the internet."""

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from swagger_ui_bundle import swagger_ui_path

PAGE = "/docs"
DOCUMENT = "/docs/openapi.json"
# Named one by one: the package also has a page of its own, which shows somebody else's API from the internet.
ASSETS = ("swagger-ui-bundle.js", "swagger-ui.css", "favicon-32x32.png")
# The browser, too, asks nobody else. Swagger UI puts its styles and small images into the page.
POLICY = (
    "default-src 'none'; connect-src 'self'; img-src 'self' data:; "
    "script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'"
)
_NULL = {"type": "null"}


def add_docs(app: FastAPI) -> None:
    """Serve the page and its files. The app is made with `docs_url=None, redoc_url=None`."""
    # Addresses are relative to the page, so that it works behind a proxy's prefix.
    html = get_swagger_ui_html(
        openapi_url=DOCUMENT.removeprefix("/"),
        title=f"{app.title}: API",
        swagger_js_url="docs/assets/swagger-ui-bundle.js",
        swagger_css_url="docs/assets/swagger-ui.css",
        swagger_favicon_url="docs/assets/favicon-32x32.png",
        # Without it a page that is not on localhost asks validator.swagger.io what it thinks of the document.
        swagger_ui_parameters={"validatorUrl": None},
    ).body

    async def page(request: Request) -> Response:
        return HTMLResponse(html, headers={"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff"})

    async def document(request: Request) -> Response:
        return JSONResponse(as_3_0(app.openapi()))

    app.router.routes += [
        Route(PAGE, page, include_in_schema=False),
        Route(DOCUMENT, document, include_in_schema=False),
        *(Route(f"{PAGE}/assets/{name}", _file(name), include_in_schema=False) for name in ASSETS),
    ]


def as_3_0(document: dict[str, Any]) -> dict[str, Any]:
    """A document of OpenAPI 3.1 as 3.0, which is what the packaged Swagger UI shows; `/openapi.json` stays as it is."""
    return {**_rewritten(document), "openapi": "3.0.3"}


def _rewritten(node: Any) -> Any:
    """What JSON Schema says otherwise since OpenAPI 3.1: null, constants, examples and open limits."""
    if isinstance(node, list):
        return [_rewritten(item) for item in node]
    if not isinstance(node, dict):
        return node
    made = {name: _rewritten(value) for name, value in node.items()}
    kinds = made.get("type")
    if isinstance(kinds, list):
        del made["type"]
        made["anyOf"] = [{"type": kind} for kind in kinds]
    choices = made.get("anyOf")
    if isinstance(choices, list) and _NULL in choices:
        del made["anyOf"]
        rest = [choice for choice in choices if choice != _NULL]
        # Beside a reference nothing else counts in 3.0, so it is wrapped.
        alone = len(rest) == 1 and "$ref" not in rest[0]
        made = {**(rest[0] if alone else {"anyOf": rest}), **made, "nullable": True}
    if "const" in made and not isinstance(made["const"], dict):
        made["enum"] = [made.pop("const")]
    if isinstance(made.get("examples"), list):
        made["example"] = next(iter(made.pop("examples")), None)
    for limit, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if isinstance(made.get(exclusive), int | float) and not isinstance(made[exclusive], bool):
            made |= {limit: made[exclusive], exclusive: True}
    return made


def _file(name: str) -> Callable[[Request], Awaitable[Response]]:
    path = str(swagger_ui_path / name)

    async def answer(request: Request) -> Response:
        return FileResponse(path, headers={"Cache-Control": "public, max-age=86400"})

    return answer
