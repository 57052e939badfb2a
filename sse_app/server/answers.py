"""Answers as bytes, each for one write: what uvicorn would send for the app, in the same order."""

import logging

from starlette.responses import Response
from starlette.types import Scope

from sse_app.errors import SSEAppError
from sse_app.node import Node
from sse_app.publication import Receipt
from sse_app.server.uvicorn_internals import STATUS_LINE, ServerState
from sse_app.web.desk import Field
from sse_app.web.endpoints import broadcast
from sse_app.web.problems import mistake, problem
from sse_app.web.stream import refused

logger = logging.getLogger("uvicorn.error")

CLOSE = b"connection: close\r\n"
CHUNKED = b"transfer-encoding: chunked\r\n"


class Answers:
    """The answers of one server, whose ``state`` has the fields that all begin with: uvicorn replaces these once a
    second, since one is the date. ``stream_fields`` are those of a stream.
    """

    def __init__(self, state: ServerState, stream_fields: list[Field]) -> None:
        self._state = state
        self._stream_fields = _lines(stream_fields)
        self._rendered: list[Field] | None = None  # the fields that _defaults was made of

    def _render(self) -> bytes:
        """Return the lines of the fields that all answers begin with."""
        fields = self._state.default_headers
        if fields is not self._rendered:
            self._rendered, self._defaults = fields, _lines(fields)
            self._published = STATUS_LINE[200] + self._defaults + _lines(broadcast.HEADERS) + b"content-length: "
        return self._defaults

    def published(self, receipt: Receipt, *, last: bool) -> tuple[int, bytes]:
        """Return the status and the bytes of the answer to a publication. After the ``last`` one the connection is
        closed.
        """
        self._render()
        body = broadcast.answer(receipt)
        return 200, b"%b%d\r\n%b\r\n%b" % (self._published, len(body), CLOSE if last else b"", body)

    def refused(self, error: Exception, *, last: bool) -> tuple[int, bytes]:
        """Return the status and the bytes of the answer to a publication that failed."""
        response = problem(error) if isinstance(error, SSEAppError) else _mistake(error)
        return response.status_code, self._whole(response, last=last)

    def no_stream(self, error: Exception, node: Node, scope: Scope, *, last: bool) -> tuple[int, bytes, bool]:
        """Return the status and the bytes of the answer to a request whose stream could not join; and True when its
        connection is closed then, as it is after the ``last``.
        """
        if not isinstance(error, SSEAppError):
            return 500, self._whole(_mistake(error), last=last), True
        response = refused(node, error, scope)
        says_so = response.headers.get("connection") == "close"
        return response.status_code, self._whole(response, last=last and not says_so), last or says_so

    def _whole(self, response: Response, *, last: bool) -> bytes:
        head = STATUS_LINE[response.status_code] + self._render() + _lines(response.raw_headers)
        return b"%b%b\r\n%b" % (head, CLOSE if last else b"", bytes(response.body))

    def stream_head(self) -> bytes:
        """Return the head of a stream."""
        return b"%b%b%b%b\r\n" % (STATUS_LINE[200], self._render(), self._stream_fields, CHUNKED)


def _mistake(error: Exception) -> Response:
    """Return the answer to a request on which the server failed, and log why, as uvicorn does."""
    logger.error("Exception in ASGI application\n", exc_info=error)
    return mistake()


def _lines(fields: "list[Field] | tuple[Field, ...]") -> bytes:
    return b"".join(b"%b: %b\r\n" % field for field in fields)
