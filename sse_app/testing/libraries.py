"""httpx and httpx2: a transport of this package serves clients of either, and raises errors of the one that asks."""

from typing import Any, TypeAlias

import httpx
import httpx2

Request: TypeAlias = httpx.Request | httpx2.Request
Response: TypeAlias = httpx.Response | httpx2.Response


def library_of(request: Request) -> Any:
    """Return the module that a request is of, whose responses and errors its client knows."""
    return httpx2 if isinstance(request, httpx2.Request) else httpx


class BaseTransport(httpx.AsyncBaseTransport, httpx2.AsyncBaseTransport):
    """A transport for an AsyncClient of either library."""

    async def handle_async_request(self, request: Any) -> Any:
        """The response to a request, of the same library."""
        raise NotImplementedError


class BodyStream(httpx.AsyncByteStream, httpx2.AsyncByteStream):
    """The body of a response of either library."""
