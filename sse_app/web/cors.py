"""CORS: the headers that pages of allowed origins may send, and read of an answer. The guard refuses other origins."""

from collections.abc import Callable, Collection

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from sse_app.errors import BadInput, PreflightRefused

OURS = ("Authorization", "Cache-Control", "Content-Type", "Idempotency-Key", "Last-Event-ID")
# Headers that libraries add to every request of a page, and that nothing here reads: those of old Ajax libraries,
# Sentry, OpenTelemetry (W3C Trace Context and Baggage).
UNASKED = ("X-Requested-With", "sentry-trace", "baggage", "traceparent", "tracestate")


class Cors(CORSMiddleware):
    """Starlette's CORS middleware, without credentials. ``headers`` are those that pages may send beside OURS and
    UNASKED, ``*`` for any. ``refuse`` makes an error a response.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        origins: Collection[str],
        headers: Collection[str],
        refuse: Callable[[BadInput], Response],
    ) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=["GET", "HEAD", "POST"],
            allow_headers=[*OURS, *UNASKED, *headers],
            expose_headers=["Retry-After"],
        )
        self._refuse = refuse

    def preflight_response(self, request_headers: Headers) -> Response:
        """Return Starlette's answer, or in place of its refusal a problem, which repeats nothing of the request."""
        answer = super().preflight_response(request_headers)
        if answer.status_code == 200:
            return answer
        refusal = self._refuse(
            PreflightRefused(
                "This page may send GET, HEAD and POST, with the headers that Access-Control-Allow-Headers names; the"
                " hub's operator can allow more of them with cors_headers."
            )
        )
        refusal.headers.update(self.preflight_headers)
        if origin := answer.headers.get("access-control-allow-origin"):  # else browsers report the origin as refused
            refusal.headers["Access-Control-Allow-Origin"] = origin
        return refusal
