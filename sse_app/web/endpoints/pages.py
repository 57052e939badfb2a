"""The pages that people open: the console, and the OpenAPI document."""

from functools import cached_property
from pathlib import Path

import msgspec
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from sse_app.web import openapi
from sse_app.web.endpoints.operations import HEALTH

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)

PAGE_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


class Pages:
    """The pages of an app. ``static`` is the directory of the console's files."""

    def __init__(self, static: Path) -> None:
        self._static = static

    async def console(self, request: Request) -> Response:
        return FileResponse(self._static / "index.html", headers=PAGE_HEADERS)

    async def openapi(self, request: Request) -> Response:
        return Response(self._document, media_type="application/json", headers={"Cache-Control": "no-cache"})

    @cached_property
    def _document(self) -> bytes:
        return msgspec.json.encode(openapi.document(HEALTH))
