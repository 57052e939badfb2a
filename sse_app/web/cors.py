"""Permission for the pages of other origins, which the guard has let in: what they may send, and read of an answer."""

from collections.abc import Callable, Collection

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from sse_app.errors import BadInput, PreflightRefused

OURS = ("Authorization", "Cache-Control", "Content-Type", "Idempotency-Key", "Last-Event-ID")
# Headers that libraries put on every request of a page unasked, and that nothing here reads: old ones that mark their
# own, Sentry, OpenTelemetry (W3C Trace Context and Baggage).
UNASKED = ("X-Requested-With", "sentry-trace", "baggage", "traceparent", "tracestate")


class Cors(CORSMiddleware):
    """Starlette's, without credentials. ``headers`` are those that pages may send beside these, ``*`` for any.
    ``refuse`` makes an error a response.
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
        """Starlette's answer, or a refusal that is a problem like all others and repeats nothing of the request."""
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
        if origin := answer.headers.get("access-control-allow-origin"):  # else browsers take that for what is wrong
            refusal.headers["Access-Control-Allow-Origin"] = origin
        return refusal
