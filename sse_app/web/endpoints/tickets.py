"""``POST /tickets``: make a ticket; and its use in ``GET /events?ticket=...``."""

import time
from typing import Annotated
from urllib.parse import quote

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from sse_app.address import bucket
from sse_app.errors import BadInput, InvalidTicket, InvalidTicketRequest, InvalidToken
from sse_app.grants import Grant, Stats
from sse_app.node import Node
from sse_app.tickets import LIFETIME, LIFETIME_MAX, REFUSED, TTL, TTL_MAX
from sse_app.web.callers import Callers
from sse_app.web.endpoints.body import read_body
from sse_app.web.endpoints.json_answer import json_answer
from sse_app.web.prefix import route_path

BODY_MAX = 16 * 1024  # bytes
IN_PATHS = "/!$&'()*+,=:@"  # characters that browsers leave as they are in a path, and a cookie may have in one


class _Asked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a request for a ticket; every member may be left out."""

    user: str | None = None
    topics: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)] | None = None
    client: str | None = None
    stats: Stats | None = None
    ttl: Annotated[float, msgspec.Meta(ge=1, le=TTL_MAX)] = TTL
    expires_in: Annotated[float, msgspec.Meta(ge=1, le=LIFETIME_MAX)] = LIFETIME


class TicketOffice:
    """The endpoint of one hub, and the way of a stream's ticket. ``body_deadline`` is in seconds."""

    def __init__(self, node: Node, callers: Callers, *, body_deadline: float) -> None:
        self._node, self._callers, self._body_deadline = node, callers, body_deadline

    async def mint(self, request: Request) -> Response:
        """POST /tickets: make a ticket."""
        asked_at = time.time()  # a revocation that comes while the body is read takes the ticket back too
        grant = await self._callers.find(request)
        self._node.life.check_started()
        body = await read_body(request.scope, request.receive, BODY_MAX, self._body_deadline, _too_large)
        asked = _parse(body)
        with self._callers.scope_counted():
            granted = grant.ticket(
                now=asked_at,
                lifetime=asked.expires_in,
                user=asked.user,
                topics=asked.topics,
                client=asked.client,
                stats=asked.stats,
            )
        ticket = await self._node.leases.mint(granted, asked.ttl, None if grant.mint else grant.owner)
        url = f"{_events_path(request)}?ticket={ticket}"
        made = {"ticket": ticket, "url": url, "ttl": asked.ttl, "expires": granted.expires}
        return json_answer(made, status=201)

    async def use(self, request: Request, ticket: str) -> tuple[Grant, dict[str, str]]:
        """Return the grant of a request for a stream with a ticket, and the header fields of the stream's head. HEAD
        uses nothing up, nor does a hub without room. Raises InvalidTicket, TooManyRequests, Draining, Overloaded,
        Unavailable.
        """
        self._node.life.check_started()
        leases, cookie, agent = self._node.leases, request.cookies.get(_cookie_name(request)), self._agent(request)
        headers: dict[str, str] = {}
        with self._callers.attempt(request):
            if request.method == "HEAD":
                grant = await leases.tickets.look_at(ticket, cookie=cookie, agent=agent)
            else:
                self._node.check_room()
                grant, secret, _ = await leases.use(ticket, cookie=cookie, agent=agent)
                headers["Set-Cookie"] = _cookie(request, secret)
            await self._check(grant)
        return grant, headers

    async def _check(self, grant: Grant) -> None:
        """Raises InvalidTicket when what a ticket was made from is gone or was taken back, as for every other ticket
        that does not count; InsufficientScope, Unavailable.
        """
        if not self._callers.counts(grant):
            raise InvalidTicket(REFUSED)
        try:
            await self._node.check(grant)
        except InvalidToken:
            raise InvalidTicket(REFUSED) from None

    def _agent(self, request: Request) -> str:
        """Return what tells one browser at one address from others."""
        return f"{bucket(self._callers.address(request.scope))} {request.headers.get('user-agent', '')}"


def _too_large() -> BadInput:
    return InvalidTicketRequest(f"The body of a request for a ticket has at most {BODY_MAX} bytes.")


def _parse(body: bytes) -> _Asked:
    try:
        return msgspec.json.decode(body or b"{}", type=_Asked)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise InvalidTicketRequest(
            "A request for a ticket is a JSON object with any of user, topics (one at least), client, stats (none, own,"
            f" all), ttl (1 to {TTL_MAX:.0f} s) and expires_in (1 to {LIFETIME_MAX:.0f} s), and no other member."
        ) from None


def _events_path(request: Request) -> str:
    """Return the path of GET /events as the client sees it."""
    path: str = request.scope["path"]
    return quote(path.removesuffix(route_path(request.scope)), IN_PATHS) + "/events"


def _cookie_name(request: Request) -> str:
    return "__Secure-sse_lease" if request.url.scheme == "https" else "sse_lease"


def _cookie(request: Request, secret: str) -> str:
    """Return the cookie by which the browser that used a ticket is known when it comes back: one for all tickets."""
    secure = "; Secure" if request.url.scheme == "https" else ""
    path = quote(request.scope["path"], IN_PATHS)
    kept = f"Path={path}; Max-Age={LIFETIME_MAX:.0f}; HttpOnly; SameSite=Strict{secure}"
    return f"{_cookie_name(request)}={secret}; {kept}"
