"""The HTTP answers to errors: the status and code of each error, and its RFC 9457 problem.

A problem's text is fixed and never repeats what was sent.
"""

import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import NamedTuple

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.staticfiles import StaticFiles

from sse_app import errors
from sse_app.web.prefix import hint

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER = 5  # seconds, of every Unavailable
HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}  # of every problem

# The status and code of each error over HTTP. A class without a row has its parent's.
ANSWERS: Mapping[type[errors.SSEAppError], tuple[int, str]] = {
    errors.BadInput: (400, "bad_input"),
    errors.InvalidEvent: (400, "invalid_event"),
    errors.ReservedEvent: (400, "reserved_event"),
    errors.InvalidData: (400, "invalid_data"),
    errors.InvalidTopic: (400, "invalid_topic"),
    errors.TooManyTopics: (400, "too_many_topics"),
    errors.InvalidClient: (400, "invalid_client"),
    errors.InvalidSince: (400, "invalid_since"),
    errors.InvalidIdempotencyKey: (400, "invalid_idempotency_key"),
    errors.KeyReused: (409, "key_reused"),
    errors.UnknownParameter: (400, "unknown_parameter"),
    errors.InvalidParameter: (400, "invalid_parameter"),
    errors.InvalidBody: (400, "invalid_body"),
    errors.EmptyBody: (400, "empty_body"),
    errors.InvalidJSON: (400, "invalid_json"),
    errors.InvalidUTF8: (400, "invalid_utf8"),
    errors.InvalidBatch: (400, "invalid_batch"),
    errors.TooDeep: (400, "too_deep"),
    errors.TooLarge: (413, "too_large"),
    errors.TooSlow: (408, "too_slow"),
    errors.UnsupportedType: (415, "unsupported_type"),
    errors.UnsupportedEncoding: (415, "unsupported_encoding"),
    errors.RepeatedHeader: (400, "repeated_header"),
    errors.BadHost: (400, "bad_host"),
    errors.UnknownHost: (421, "bad_host"),
    errors.UnsafeUpgrade: (400, "unsafe_upgrade"),
    errors.TokenInURL: (400, "token_in_url"),
    errors.TopicRequired: (400, "topic_required"),
    errors.InvalidTicketRequest: (400, "invalid_ticket_request"),
    errors.InvalidRevocation: (400, "invalid_revocation"),
    errors.NoSuchClient: (404, "no_such_client"),
    errors.Vetoed: (422, "vetoed"),
    errors.Forbidden: (403, "forbidden"),
    errors.BadOrigin: (403, "bad_origin"),
    errors.PreflightRefused: (403, "cors_refused"),
    errors.InsufficientScope: (403, "insufficient_scope"),
    errors.Unauthorized: (401, "unauthorized"),
    errors.InvalidToken: (401, "invalid_token"),
    errors.InvalidTicket: (401, "invalid_ticket"),
    errors.TooManyRequests: (429, "too_many_requests"),
    errors.Blocked: (429, "blocked"),
    errors.Unavailable: (503, "unavailable"),
    errors.Draining: (503, "draining"),
    errors.Overloaded: (503, "overloaded"),
    errors.KeysUnavailable: (503, "keys_unavailable"),
    errors.AuthorizeFailed: (503, "authorize_failed"),
    errors.HubNotStarted: (503, "hub_not_started"),
    errors.BrokerError: (503, "broker_error"),
    errors.BrokerUnavailable: (503, "broker_unavailable"),
    errors.LogUnavailable: (503, "log_unavailable"),
    errors.LogFull: (507, "log_full"),
    errors.OutcomeUnknown: (504, "outcome_unknown"),
}

# The header fields that an error has, and those below it in the tree.
HEADERS_OF: Mapping[type[errors.SSEAppError], Mapping[str, str]] = {
    errors.Unavailable: {"Retry-After": str(RETRY_AFTER)},
    errors.TooManyRequests: {"Retry-After": str(RETRY_AFTER)},  # that of a problem is as long as its error says
    errors.Unauthorized: {"WWW-Authenticate": "Bearer"},  # RFC 6750, 3: without an error code when there was no token
    errors.InvalidToken: {"WWW-Authenticate": 'Bearer error="invalid_token"'},
    errors.InvalidTicket: {"WWW-Authenticate": 'Bearer error="invalid_token"'},
    errors.InsufficientScope: {"WWW-Authenticate": 'Bearer error="insufficient_scope"'},
    errors.BadOrigin: {"Vary": "Origin"},
    errors.UnsafeUpgrade: {"Connection": "close"},
}


class Problem(NamedTuple):
    """A problem whose text is always the same, as it is for all that are no error of the tree."""

    status: int
    code: str
    detail: str


# The answers of our server to requests that do not reach the app, and to bytes that are no request.
BAD_REQUEST = Problem(400, "bad_request", "This is not a valid HTTP request.")
BAD_TARGET = Problem(
    400,
    "bad_request",
    "The request's target is no path with a query: percent-encode what is not ASCII, in curl with -G --data-urlencode.",
)
HEAD_TOO_SLOW = Problem(408, "too_slow", "The request's head did not arrive in time (head_deadline).")
HEAD_TOO_LARGE = Problem(
    431, "head_too_large", "The request's head is larger than head_max. Name fewer topics or clients, or raise it."
)
UNKNOWN_VERSION = Problem(505, "unsupported_version", "This server speaks HTTP/1.1 and HTTP/1.0 only.")
OF_THE_SERVER = (BAD_REQUEST, BAD_TARGET, HEAD_TOO_SLOW, HEAD_TOO_LARGE, UNKNOWN_VERSION)

# The answers to requests that Starlette refuses, and to exceptions that it catches.
NOT_FOUND = Problem(404, "not_found", "There is nothing at this path; /openapi.json lists what there is.")
METHOD_NOT_ALLOWED = Problem(
    405, "method_not_allowed", "This path does not take that method; the Allow header lists those it takes."
)
INTERNAL_ERROR = Problem(500, "internal_error", "The server failed on this request; its log says why.")
OF_STARLETTE = (NOT_FOUND, METHOD_NOT_ALLOWED, INTERNAL_ERROR)


def problem(error: Exception) -> Response:
    """Return an error of ours as an answer."""
    status, code = answer_of(type(error))
    headers = headers_of(type(error))
    if isinstance(error, errors.TooManyRequests):
        headers = {**headers, "Retry-After": str(math.ceil(error.wait))}
    return _response(Problem(status, code, str(error)), headers)


def answer_of(kind: type[Exception]) -> tuple[int, str]:
    """Return the status and code of an error: its row in ANSWERS, or that of the nearest parent that has one."""
    return next(ANSWERS[parent] for parent in kind.__mro__ if parent in ANSWERS)


def headers_of(kind: type[Exception]) -> Mapping[str, str]:
    """Return the header fields that an error's answer has beside HEADERS."""
    return next((HEADERS_OF[parent] for parent in kind.__mro__ if parent in HEADERS_OF), {})


def body_of(found: Problem) -> dict[str, object]:
    """Return the fields of a problem, in their order."""
    status, code, detail = found
    return {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "code": code, "detail": detail}


def method_not_allowed(headers: Mapping[str, str]) -> Response:
    """Return a 405. ``headers`` has the Allow field."""
    return _response(METHOD_NOT_ALLOWED, headers)


def _response(found: Problem, headers: Mapping[str, str] = {}) -> Response:
    return Response(
        msgspec.json.encode(body_of(found)), found.status, media_type=MEDIA_TYPE, headers={**HEADERS, **headers}
    )


async def _on_error(request: Request, error: Exception) -> Response:
    return problem(error)


async def _on_refusal_of_starlette(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        return method_not_allowed(error.headers or {})
    if error.status_code == 404:
        return _not_found(request)
    found = Problem(error.status_code, "http_error", "The request cannot be answered.")
    return _response(found, error.headers or {})


def _not_found(request: Request) -> Response:
    advice = ""
    if not isinstance(request.scope.get("endpoint"), StaticFiles):  # whose paths are below a prefix of their own
        advice = hint(request.scope, [route.path for route in request.app.routes if isinstance(route, Route)])
    return _response(NOT_FOUND._replace(detail=NOT_FOUND.detail + advice))


def mistake() -> Response:
    """Return the answer to a request on which the server failed."""
    return _response(INTERNAL_ERROR)


async def _on_mistake(request: Request, error: Exception) -> Response:
    return mistake()


HANDLERS = {errors.SSEAppError: _on_error, HTTPException: _on_refusal_of_starlette, Exception: _on_mistake}
