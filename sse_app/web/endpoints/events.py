"""``GET /events``: the stream of one subscriber."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from sse_app.errors import InvalidClient, InvalidSince, SSEAppError
from sse_app.joining import StreamRequest
from sse_app.node import Node
from sse_app.web.door import Door
from sse_app.web.endpoints.parameters import count, cursor, moment, only, parse, refuse_near_misses
from sse_app.web.problems import method_not_allowed
from sse_app.web.stream import EventStream, refusal

EVENTS_PARAMETERS = ("topic", "last_event_id", "lastEventId", "last", "since", "client")


class Events:
    """The endpoint as an ASGI app, since it is called outside Starlette's routing (``app.py``). It answers its errors
    itself: an HTTP error would end an EventSource for good, where a passing trouble should make it reconnect.
    """

    def __init__(self, node: Node, door: Door) -> None:
        self._node, self._door = node, door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # The response is bound to no name here, so that an open stream does not keep it in memory.
        await (await self._answer(Request(scope)))(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        if request.method not in ("GET", "HEAD"):
            return method_not_allowed({"Allow": "GET, HEAD"})
        try:
            return self._stream(request)
        except SSEAppError as error:
            return refusal(error, request.scope, self._node.retry())

    def _stream(self, request: Request) -> Response:
        given = parse(request)
        refuse_near_misses(given, EVENTS_PARAMETERS)
        last, since = only(given, "last", InvalidSince), only(given, "since", InvalidSince)
        asked = StreamRequest.parse(
            given.get("topic", ()),
            after=cursor(request, given),
            last=None if last is None else count(last),
            since=None if since is None else moment(since),
            client=only(given, "client", InvalidClient),
        )
        return EventStream(self._node, asked, door=self._door)
