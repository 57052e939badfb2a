"""Callers: what a request may do, by the first credential that it has.

    Authorization: Bearer ...     a token of an issuer, a key of auth_file, or the publish_key
    a cookie of auth_cookies      the same, but for a request that a page may have been made to send: never admin
    authorize(request)            what the app around the hub knows of the request
    nothing                       what anonymous_subscribe grants, else 401

A credential that does not count ends the search: the request is refused, and not tried as another's.
"""

import asyncio
import hmac
import inspect
import logging
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

from anyio import CapacityLimiter, to_thread
from starlette.requests import Request, cookie_parser
from starlette.types import Scope

from sse_app.address import Proxies
from sse_app.auth.credentials import Credentials
from sse_app.coroutines import is_async
from sse_app.errors import (
    AuthorizeFailed,
    InsufficientScope,
    InvalidTicket,
    InvalidToken,
    Overloaded,
    RepeatedHeader,
    SSEAppError,
    TokenInURL,
    Unauthorized,
)
from sse_app.grants import OPEN, Grant
from sse_app.limits import Failures
from sse_app.node import Node
from sse_app.refusals import Refusals
from sse_app.topics import TopicFilter

logger = logging.getLogger("sse_app")

IN_URL = frozenset(("access_token", "authorization", "jwt", "token"))  # a credential's names in a query, in any case
IN_QUERY = re.compile("|".join(IN_URL).encode(), re.IGNORECASE)
AUTHORIZE_WINDOW = 5.0  # seconds that an app's authorize may take
AUTHORIZING_MAX = 200  # requests that may wait for it at a time, and threads in which it may be running
AUTHORIZE_THREADS = 40  # of its own: one that hangs must not take those of the app's routes, which are as many
LOG_INTERVAL = 10.0  # seconds between two lines about its failures

READER = replace(OPEN, publish=None)  # of a hub with a publish_key alone, where everyone may subscribe
PUBLISHER = Grant(publish=TopicFilter(), source="publish_key")  # of its key where subscribing needs a credential too

Authorize = Callable[[Request], Awaitable[Grant | None] | Grant | None]


@dataclass(frozen=True, kw_only=True)
class Access:
    """The credentials that a hub takes. With none of them it is open to ``everyone``; with a ``publish_key`` alone
    everyone may subscribe; with any other everyone needs one, but for what ``anonymous`` grants.
    """

    publish_key: str | None = None
    credentials: Credentials | None = None
    cookies: Sequence[str] = ()
    authorize: Authorize | None = None
    anonymous: Grant | None = None
    everyone: Grant = OPEN

    @property
    def closed(self) -> bool:
        """True when subscribing needs a credential too."""
        return self.credentials is not None or self.authorize is not None


class Callers:
    """Finds the grants of requests. ``everyone`` is the grant of all of them on an open hub, else None. ``proxies`` are
    those that say where a request came from, and ``failures`` the limit on credentials that do not count.
    """

    def __init__(self, access: Access, node: Node, *, proxies: Proxies, failures: Failures) -> None:
        self._access, self._node, self._outcomes = access, node, node.totals.auth
        self._proxies, self._failures, self._refusals = proxies, failures, Refusals()
        self._publish_key = None if access.publish_key is None else access.publish_key.encode()
        self._closed = access.closed
        # Whether browsers add credentials that count here by themselves; authorize may look at any.
        self.ambient = bool(access.cookies) or access.authorize is not None
        self.everyone = None if self._closed or self._publish_key is not None else access.everyone
        self._authorizing, self._logged, self._outages = 0, float("-inf"), 0
        self._in_threads = set[object]()  # its calls that have not returned: one that hangs outlives its request
        self._threads = CapacityLimiter(AUTHORIZE_THREADS)

    async def find(self, request: Request) -> Grant:
        """Return the grant of a request, or what revocations have left of it. Raises Unauthorized for none,
        InvalidToken for a credential that does not count, Unavailable when that cannot be told now.
        """
        if self.everyone is not None:
            return self.everyone
        if IN_QUERY.search(request.scope["query_string"]):  # else there is no need to parse it
            refuse_in_url(request.query_params)
        try:
            if self._closed:
                found = self._kept(bearer(request)) or await self._find(request)
            else:
                found = self._find_by_publish_key(request)
            grant = found if self._node.revoking.settled else await self._left_of(request, found)
        except SSEAppError as error:
            self._outcomes[_outcome_of(error)] += 1
            raise
        self.count(found)
        return grant

    def known(self, scope: Scope, given: str | None) -> tuple[Grant, Grant] | None:
        """Return what ``find`` returns for a request whose header has this bearer, None for no bearer, and before that
        the grant as it was found, which has to be counted once it is used. None when something is to be waited for, or
        to be refused: then ``find`` does so.
        """
        if self.everyone is not None:
            return self.everyone, self.everyone
        found = self._known(scope, given)
        if found is None:
            return None
        try:
            left = self._node.revoking.check_now(found)
        except SSEAppError:
            return None
        return None if left is None else (found, left)

    def _known(self, scope: Scope, given: str | None) -> Grant | None:
        if not self._closed:
            if scope["method"] == "GET" and given is None:
                return READER
            return OPEN if given is not None and self._is_publish_key(given) else None
        if given is not None:
            return self._kept(given)
        may_be_another = self._access.authorize is not None or any(name == b"cookie" for name, _ in scope["headers"])
        return None if may_be_another else self._access.anonymous

    def count(self, found: Grant) -> None:
        """Count a request whose grant was ``known``."""
        if self.everyone is None:
            self._outcomes["anonymous" if found is self._access.anonymous else "ok"] += 1

    def address(self, scope: Scope) -> str:
        """Return the address of the client of a request."""
        return client_address(scope, self._proxies)

    @contextmanager
    def attempt(self, request: Request) -> Iterator[None]:
        """Count and log the credential that is verified in this block when it does not count. Raises TooManyRequests
        for an address with too many of those.
        """
        address = self.address(request.scope)
        self._failures.check(address)
        try:
            yield
        except Unauthorized as error:
            self._note(error, address)
            raise

    @contextmanager
    def scope_counted(self) -> Iterator[None]:
        """Count the request of a caller whose grant turns out not to be enough."""
        try:
            yield
        except InsufficientScope:
            self._outcomes["scope"] += 1
            raise

    def gauges(self) -> dict[str, float]:
        """Return what ``GET /metrics`` shows of the credentials beside the totals."""
        return {} if self._access.credentials is None else self._access.credentials.gauges()

    def counts(self, grant: Grant) -> bool:
        """Return True while the credential counts that a grant came from."""
        return self._access.credentials is None or self._access.credentials.counts(grant)

    def _note(self, error: Unauthorized, address: str) -> None:
        """Count and log a credential that does not count."""
        self._failures.count(address)
        self._refusals.note(_reason_of(error), address)

    def _find_by_publish_key(self, request: Request) -> Grant:
        given = bearer(request)
        if given is not None and self._is_publish_key(given):
            return OPEN
        if request.method in ("GET", "HEAD"):
            return READER
        refusal = Unauthorized("Publishing here needs the publish key: send `Authorization: Bearer <key>`.")
        if given is None:
            raise refusal
        with self.attempt(request):
            raise refusal

    def _kept(self, given: str | None) -> Grant | None:
        """Return the grant of a key or token that nothing has to be waited for: a reconnect, as most connects are."""
        if given is None:
            return None
        if self._is_publish_key(given):
            return PUBLISHER
        credentials = self._access.credentials
        return None if credentials is None else credentials.kept(given)

    async def _find(self, request: Request) -> Grant:
        """Return the grant of a request whose header has no credential that is kept."""
        access, given = self._access, bearer(request)
        if access.credentials is not None:
            if given is not None:
                return await self._verify(request, access.credentials, given)
            for name in access.cookies:
                if cookie := _cookie(request, name):
                    found = self._kept(cookie) or await self._verify(request, access.credentials, cookie)
                    return replace(found, admin=False)
        grant = await self._authorize(request) if access.authorize else None
        grant = grant or access.anonymous
        if grant is None:
            raise Unauthorized("This needs a credential: send `Authorization: Bearer <token or key>`.")
        return grant

    async def _verify(self, request: Request, credentials: Credentials, given: str) -> Grant:
        """Return the grant of a credential that is not kept. Raises InvalidToken, TooManyRequests, Unavailable."""
        with self.attempt(request):
            return await credentials.verify(given)

    async def _left_of(self, request: Request, grant: Grant) -> Grant:
        """Return what revocations have left of a grant. Raises as ``Node.check`` does."""
        try:
            return await self._node.check(grant)
        except InvalidToken as error:  # taken back: counted and logged as one that was never good
            self._note(error, self.address(request.scope))
            raise

    def _is_publish_key(self, given: str) -> bool:
        return self._publish_key is not None and hmac.compare_digest(given.encode(), self._publish_key)

    async def _authorize(self, request: Request) -> Grant | None:
        """Return what the app grants. Raises InvalidToken for a grant that has expired, Overloaded, and AuthorizeFailed
        for whatever the app raises: an outage is not a refusal, after which a client would not come back.
        """
        if max(self._authorizing, len(self._in_threads)) >= AUTHORIZING_MAX:
            raise Overloaded("Too many requests wait for the app's authorize; try again later.")
        self._authorizing += 1
        asked_at = time.time()  # a revocation that comes while the app looks takes back what it will answer
        try:
            async with asyncio.timeout(AUTHORIZE_WINDOW):
                grant = await self._call_authorize(request)
            if grant is not None and not isinstance(grant, Grant):
                raise TypeError("authorize returns a Grant or None")
        except Exception as error:
            self._log_failure(error)
            raise AuthorizeFailed("Who asks could not be found out just now; try again in a few seconds.") from error
        finally:
            self._authorizing -= 1
        return grant and _completed(grant, asked_at)

    async def _call_authorize(self, request: Request) -> Grant | None:
        authorize = self._access.authorize
        assert authorize is not None
        if is_async(authorize):
            found = authorize(request)
        else:
            called = partial(self._call_in_thread, authorize, request)
            found = await to_thread.run_sync(called, abandon_on_cancel=True, limiter=self._threads)
        return await found if inspect.isawaitable(found) else found

    def _call_in_thread(self, authorize: Authorize, request: Request) -> Awaitable[Grant | None] | Grant | None:
        call = object()
        self._in_threads.add(call)
        try:
            return authorize(request)
        finally:
            self._in_threads.discard(call)

    def _log_failure(self, error: Exception) -> None:
        self._outages += 1
        now = time.monotonic()
        if now - self._logged >= LOG_INTERVAL:
            logger.error("authorize failed, %d times since the last line", self._outages, exc_info=error)
            self._logged, self._outages = now, 0


def client_address(scope: Scope, proxies: Proxies) -> str:
    """Return the address of the client of a request, which may come by way of these proxies."""
    client = scope.get("client")
    return proxies.client_address(client[0] if client else None, scope["headers"])


def refuse_in_url(names: Iterable[str]) -> None:
    """Raise TokenInURL for a credential among a query's names, used or not: it is in the logs of every proxy on the way
    by now.
    """
    if not IN_URL.isdisjoint(map(str.lower, names)):
        raise TokenInURL(
            "A token does not belong in a URL, which logs and histories keep: send it as `Authorization: Bearer ...`,"
            " or get a ticket for an EventSource."
        )


def bearer(request: Request) -> str | None:
    """Return the credential of the Authorization header, None without one. Other schemes are a proxy's business."""
    for name, value in request.scope["headers"]:  # once: Starlette's Headers would decode all of them
        if name == b"authorization":
            scheme, _, given = value.decode("latin-1").partition(" ")
            return given.strip() if scheme.lower() == "bearer" else None
    return None


def _completed(grant: Grant, asked_at: float) -> Grant:
    """Return what an app grants with where that came from and since when, as far as it does not say."""
    return (grant if grant.source else replace(grant, source="authorize")).dated(asked_at)


def _cookie(request: Request, name: str) -> str | None:
    """Return the value of a cookie; None without one, or for one that is empty. Raises RepeatedHeader for two of the
    name: a site beside this one (RFC 6265, 8.6) can add one of its own, and has its visitors act as somebody else.
    """
    pairs = (pair for header in request.headers.getlist("cookie") for pair in header.split(";"))
    values = {cookie_parser(pair).get(name, "") for pair in pairs if pair.partition("=")[0].strip() == name} - {""}
    if len(values) > 1:
        raise RepeatedHeader(
            "Two cookies of the name that holds the credential came with this request, and which of them counts cannot"
            " be told; delete one of them."
        )
    return values.pop() if values else None


def _reason_of(error: Unauthorized) -> str:
    """Return why a credential does not count, for the log. What it was is never shown."""
    if isinstance(error, InvalidToken):
        return f"credential: {error.reason}"
    return "ticket" if isinstance(error, InvalidTicket) else "publish_key"


def _outcome_of(error: SSEAppError) -> str:
    if isinstance(error, InvalidToken):
        return "expired" if error.reason == "expired" else "invalid"
    return "missing" if isinstance(error, Unauthorized) else "error"
