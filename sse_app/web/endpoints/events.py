"""``GET /events``: the stream of one subscriber."""

from collections.abc import Iterable

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from sse_app.errors import InvalidClient, InvalidSince, InvalidTicket, SSEAppError
from sse_app.grants import OPEN, Grant
from sse_app.joining import StreamRequest
from sse_app.node import Node
from sse_app.web.callers import Callers, bearer
from sse_app.web.door import Door
from sse_app.web.endpoints.parameters import count, cursor, moment, only, parse, refuse_near_misses
from sse_app.web.endpoints.tickets import TicketOffice
from sse_app.web.problems import method_not_allowed, mistake
from sse_app.web.stream import EventStream, refusal

EVENTS_PARAMETERS = ("topic", "last_event_id", "lastEventId", "last", "since", "client", "ticket")


class Events:
    """The endpoint as an ASGI app, since it is called outside Starlette's routing (``app.py``). It answers its errors
    itself: an HTTP error would end an EventSource for good, where a passing trouble should make it reconnect.
    """

    def __init__(self, node: Node, door: Door, callers: Callers, office: TicketOffice) -> None:
        self._node, self._door, self._callers, self._office = node, door, callers, office

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            # The response is bound to no name here, so that an open stream does not keep it in memory.
            await (await self._answer(Request(scope)))(scope, receive, send)
        except Exception:
            await mistake()(scope, receive, send)  # a stream that has begun catches its own
            raise  # for the server's log, as from an endpoint in Starlette's routing

    async def _answer(self, request: Request) -> Response:
        if request.method not in ("GET", "HEAD"):
            return method_not_allowed({"Allow": "GET, HEAD"})
        try:
            if b"ticket=" in request.scope["query_string"]:
                return await self._stream_by_ticket(request)
            return self._stream(request, self._callers.everyone or await self._callers.find(request))
        except SSEAppError as error:
            return refusal(error, request.scope, self._node.retry())

    async def _stream_by_ticket(self, request: Request) -> Response:
        """Return the stream of a request with a ticket, unless a header, which is the stronger, says who asks."""
        ticket = only(parse(request), "ticket", InvalidTicket)
        if ticket is None or bearer(request) is not None:
            return self._stream(request, await self._callers.find(request))
        asked = stream_request(request, OPEN)  # one that is not as described uses nothing up
        grant, headers = await self._office.use(request, ticket)
        asked = asked._replace(grant=grant, address=self._address(request, grant))
        return EventStream(self._node, asked, door=self._door, headers=headers)

    def _stream(self, request: Request, grant: Grant) -> Response:
        asked = stream_request(request, grant, address=self._address(request, grant))
        return EventStream(self._node, asked, door=self._door)

    def _address(self, request: Request, grant: Grant) -> str | None:
        """Return where a request came from; it is kept on a closed hub alone, for who administers that."""
        return None if grant.source == "open" else self._callers.address(request.scope)


def stream_request(
    request: Request, grant: Grant, topics: Iterable[str] | None = None, *, address: str | None = None
) -> StreamRequest:
    """Return what a request for a stream asks for; with ``topics``, these in place of its own. Raises BadInput."""
    given = parse(request)
    refuse_near_misses(given, EVENTS_PARAMETERS)
    last, since = only(given, "last", InvalidSince), only(given, "since", InvalidSince)
    return StreamRequest.parse(
        given.get("topic", ()) if topics is None else topics,
        after=cursor(request, given),
        last=None if last is None else count(last),
        since=None if since is None else moment(since),
        client=only(given, "client", InvalidClient),
        grant=grant,
        address=address,
    )
