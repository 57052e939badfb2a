"""CORS: the headers that pages of allowed origins may send, and read of an answer. The guard refuses other origins."""

from collections.abc import Callable, Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from sse_app.errors import BadInput, PreflightRefused

OURS = ("Authorization", "Cache-Control", "Content-Type", "Idempotency-Key", "Last-Event-ID")
METHODS = ("GET", "HEAD", "POST", "DELETE")
# Headers that libraries add to every request of a page, and that nothing here reads: those of old Ajax libraries,
# Sentry, OpenTelemetry (W3C Trace Context and Baggage).
UNASKED = ("X-Requested-With", "sentry-trace", "baggage", "traceparent", "tracestate")


class Cors(CORSMiddleware):
    """Starlette's CORS middleware. ``headers`` are those that pages may send beside OURS and UNASKED, ``*`` for any;
    with ``credentials`` pages may also send cookies. ``refuse`` makes an error a response.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        origins: Collection[str],
        headers: Collection[str],
        refuse: Callable[[BadInput], Response],
        credentials: bool = False,
    ) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=METHODS,
            allow_headers=[*OURS, *UNASKED, *headers],
            expose_headers=["Retry-After"],
        )
        self._refuse = refuse
        self._credentials = credentials  # not Starlette's allow_credentials, which also origins not allowed are told

    def preflight_response(self, request_headers: Headers) -> Response:
        """Return Starlette's answer, or in place of its refusal a problem, which repeats nothing of the request."""
        answer = super().preflight_response(request_headers)
        origin = answer.headers.get("access-control-allow-origin")
        if answer.status_code != 200:
            answer = self._refuse(
                PreflightRefused(
                    f"This page may send {', '.join(METHODS[:-1])} and {METHODS[-1]}, with the headers that"
                    " Access-Control-Allow-Headers names; the hub's operator can allow more of them with cors_headers."
                )
            )
            answer.headers.update(self.preflight_headers)
        if origin:  # of a refusal too, else browsers report the origin as refused
            answer.headers["Access-Control-Allow-Origin"] = origin
            self._allow_credentials(answer.headers)
        return answer

    def allow_explicit_origin(self, headers: MutableHeaders, origin: str) -> None:  # type: ignore[override]  # was static
        super().allow_explicit_origin(headers, origin)
        self._allow_credentials(headers)

    def _allow_credentials(self, headers: MutableHeaders) -> None:
        if self._credentials:
            headers["Access-Control-Allow-Credentials"] = "true"
