"""The endpoints for administrators: ``/connections`` and ``POST /revoke``."""

import re

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from sse_app.connections import LIMIT, Kicked, Wanted
from sse_app.errors import BadInput, InvalidClient, InvalidParameter, InvalidRevocation, InvalidTopic
from sse_app.node import Node
from sse_app.revocations import Revocation
from sse_app.web.callers import Callers
from sse_app.web.endpoints.body import read_body
from sse_app.web.endpoints.json_answer import json_answer
from sse_app.web.endpoints.parameters import Parameters, only, parse, refuse_unknown

LIST_PARAMETERS = ("user", "client", "topic", "limit")
KICK_PARAMETERS = ("block",)  # of the streams of a client, which the path names
KICK_USER_PARAMETERS = ("user", "block")
BODY_MAX = 16 * 1024  # bytes
_WHOLE = re.compile(r"[0-9]{1,9}")
_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")


class _Revoked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a revocation."""

    token: str | None = None
    session: str | None = None
    user: str | None = None
    key: str | None = None
    kid: str | None = None
    topics: list[str] | None = None
    lasts: float | None = msgspec.field(default=None, name="for")


class Administration:
    """The endpoints of one hub. ``body_deadline`` and ``token_max_age`` are in seconds."""

    def __init__(self, node: Node, callers: Callers, *, body_deadline: float, token_max_age: float) -> None:
        self._node, self._callers = node, callers
        self._body_deadline, self._token_max_age = body_deadline, token_max_age

    async def connections(self, request: Request) -> Response:
        """GET /connections: the streams that are open on all nodes. DELETE /connections?user=: end those of a user."""
        await self._check_admin(request)
        given = parse(request)
        if request.method == "DELETE":
            return await self._kick_user(given)
        refuse_unknown(given, LIST_PARAMETERS)
        wanted = Wanted(
            user=only(given, "user", InvalidClient),
            client=only(given, "client", InvalidClient),
            topic=only(given, "topic", InvalidTopic),
            limit=_count(given, "limit", LIMIT),
        )
        found = await self._node.connections.find(wanted)
        return json_answer(found._asdict())

    async def kick(self, request: Request) -> Response:
        """DELETE /connections/{client}: end the streams of a client on all nodes."""
        await self._check_admin(request)
        given = parse(request)
        refuse_unknown(given, KICK_PARAMETERS)
        client: str = request.path_params["client"]
        return _kicked(await self._node.connections.kick("client", client, _seconds(given, "block")))

    async def _kick_user(self, given: Parameters) -> Response:
        refuse_unknown(given, KICK_USER_PARAMETERS)
        user = only(given, "user", InvalidClient)
        if user is None:
            raise InvalidParameter(
                "Say whose streams are to end: DELETE /connections?user=..., or /connections/CLIENT."
            )
        return _kicked(await self._node.connections.kick("user", user, _seconds(given, "block")))

    async def revoke(self, request: Request) -> Response:
        """POST /revoke: take grants back on all nodes."""
        await self._check_admin(request)
        body = await read_body(request.scope, request.receive, BODY_MAX, self._body_deadline, _bad_body)
        asked = _parse(body)
        revocation = Revocation.of(**msgspec.structs.asdict(asked), token_max_age=self._token_max_age)
        done = await self._node.revoke(revocation)
        return json_answer({"id": str(done.position), "closed": done.closed})

    async def _check_admin(self, request: Request) -> None:
        """Raises Unauthorized, InsufficientScope, Unavailable."""
        grant = await self._callers.find(request)
        self._node.life.check_started()
        with self._callers.scope_counted():
            grant.check_admin()


def _kicked(done: Kicked) -> Response:
    return json_answer(done._asdict())


def _count(given: Parameters, name: str, default: int) -> int:
    """Return the whole number that a parameter has. Raises InvalidParameter for what is none."""
    text = only(given, name, InvalidParameter)
    if text is None:
        return default
    if not _WHOLE.fullmatch(text):
        raise InvalidParameter(f"{name} is a whole number, such as {name}=100.")
    return int(text)


def _seconds(given: Parameters, name: str) -> float:
    """Return the seconds that a parameter has, 0 without it. Raises InvalidParameter for what is no number."""
    text = only(given, name, InvalidParameter)
    if text is None:
        return 0.0
    if not _SECONDS.fullmatch(text):
        raise InvalidParameter(f"{name} is a number of seconds, such as {name}=60.")
    return float(text)


def _parse(body: bytes) -> _Revoked:
    try:
        return msgspec.json.decode(body, type=_Revoked)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise _bad_body() from None


def _bad_body() -> BadInput:
    return InvalidRevocation(
        "A revocation is a JSON object of at most 16 KiB with one of token, session, user, key and kid; with topics and"
        " for (seconds) if it is not of everything or not as long as a token may last; and with no other member."
    )
