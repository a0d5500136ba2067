"""The page `/docs`: Swagger UI from local files. FastAPI's own page loads its scripts from a CDN and is blank offline."""

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
# An explicit list, because the package also has a page that shows a foreign API from the internet.
ASSETS = ("swagger-ui-bundle.js", "swagger-ui.css", "favicon-32x32.png")
# Forbids the browser to load anything else. Swagger UI inlines styles and small images.
POLICY = (
    "default-src 'none'; connect-src 'self'; img-src 'self' data:; "
    "script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'"
)
_NULL = {"type": "null"}


def add_docs(app: FastAPI) -> None:
    """Serve the page and its files. Create the app with `docs_url=None, redoc_url=None`."""
    # URLs are relative, so that the page works behind a proxy with a path prefix.
    html = get_swagger_ui_html(
        openapi_url=DOCUMENT.removeprefix("/"),
        title=f"{app.title}: API",
        swagger_js_url="docs/assets/swagger-ui-bundle.js",
        swagger_css_url="docs/assets/swagger-ui.css",
        swagger_favicon_url="docs/assets/favicon-32x32.png",
        # By default, a page that is not on localhost sends the document's URL to validator.swagger.io.
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
    """An OpenAPI 3.1 document converted to 3.0, the version that the packaged Swagger UI supports. `/openapi.json` stays 3.1."""
    return {**_converted(document), "openapi": "3.0.3"}


def _converted(node: Any) -> Any:
    """Converts what differs in 3.1: null, constants, examples and exclusive limits."""
    if isinstance(node, list):
        return [_converted(item) for item in node]
    if not isinstance(node, dict):
        return node
    schema = {name: _converted(value) for name, value in node.items()}
    kinds = schema.get("type")
    if isinstance(kinds, list):
        del schema["type"]
        schema["anyOf"] = [{"type": kind} for kind in kinds]
    choices = schema.get("anyOf")
    if isinstance(choices, list) and _NULL in choices:
        del schema["anyOf"]
        rest = [choice for choice in choices if choice != _NULL]
        # 3.0 ignores everything next to a reference, so the reference is wrapped.
        is_simple = len(rest) == 1 and "$ref" not in rest[0]
        schema = {**(rest[0] if is_simple else {"anyOf": rest}), **schema, "nullable": True}
    if "const" in schema and not isinstance(schema["const"], dict):
        schema["enum"] = [schema.pop("const")]
    if isinstance(schema.get("examples"), list):
        schema["example"] = next(iter(schema.pop("examples")), None)
    for limit, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if isinstance(schema.get(exclusive), int | float) and not isinstance(schema[exclusive], bool):
            schema |= {limit: schema[exclusive], exclusive: True}
    return schema


def _file(name: str) -> Callable[[Request], Awaitable[Response]]:
    path = str(swagger_ui_path / name)

    async def send_file(request: Request) -> Response:
        return FileResponse(path, headers={"Cache-Control": "public, max-age=86400"})

    return send_file
