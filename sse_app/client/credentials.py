"""The ``Authorization`` of a client's requests: a user and password, a token, or a function that returns tokens.

A newer token is asked for when the hub no longer takes the last one. No ``repr`` shows one, and no frame that raises
holds one in a variable: reporters of errors show both.
"""

import inspect
from base64 import b64encode
from collections.abc import Awaitable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import anyio
from anyio import to_thread

from sse_app.coroutines import is_async
from sse_app.errors import ConfigError
from sse_app.publication import check_token


class TokenFunction(Protocol):
    """A function that returns the token to send, or a coroutine function that does."""

    def __call__(self, *, refresh: bool) -> str | Awaitable[str]:
        """Return a token. refresh: True when the hub no longer takes the last one, so that a kept one is of no use."""


class PlainTokenFunction(Protocol):
    """A function that returns the token to send."""

    def __call__(self, *, refresh: bool) -> str:
        """Return a token. refresh: True when the hub no longer takes the last one, so that a kept one is of no use."""


@dataclass(frozen=True, slots=True)
class Authorization:
    """The value of an ``Authorization`` header; false when there is none."""

    value: str = field(default="", repr=False)

    @classmethod
    def basic(cls, user: str, password: str) -> "Authorization":
        """Return that of a user and a password (RFC 7617)."""
        return cls(f"Basic {b64encode(f'{user}:{password}'.encode()).decode()}")

    def __bool__(self) -> bool:
        return bool(self.value)


class Credentials:
    """The authorization of a client's requests: always the same, or what a token function returns.

    Raises ConfigError for a token that no header can carry, and for a function that cannot be called with ``refresh``.
    """

    def __init__(self, given: Authorization | str | TokenFunction | None) -> None:
        self._function: TokenFunction | None = None
        self._newest = Authorization()  # of the function: what it returned last
        if given is None or isinstance(given, str | Authorization):
            self._newest = given if isinstance(given, Authorization) else _bearer(check_token(given))
        else:
            self._function = _checked(given)
        self._renewing = anyio.Lock()

    def __bool__(self) -> bool:
        return self.renewable or bool(self._newest)

    @property
    def renewable(self) -> bool:
        """True when there is a function to ask for another token."""
        return self._function is not None

    async def current(self) -> Authorization:
        """Return what to send. Raises what the token function raises."""
        if self._function is not None:
            self._newest = await _ask(self._function, refresh=False)
        return self._newest

    async def renewed(self, outdated: Authorization) -> Authorization | None:
        """Return another one than that which the hub no longer takes, None when there is no other.

        Streams whose token ends at the same time ask the function once.
        """
        if self._function is None:
            return None
        async with self._renewing:
            if self._newest == outdated:
                self._newest = await _ask(self._function, refresh=True)
            return None if self._newest == outdated else self._newest


class Permit:
    """The authorization of one publication, or of one stream: until ``begin_anew`` a newer token is asked for once."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._authorization = Authorization()  # of the last request
        self._is_refused = False
        self.may_renew = credentials.renewable
        self.is_outdated = False

    async def authorize(self, request: Any) -> bool:
        """Give a request its header. Return False when there is no other than that which was refused.

        Raises what the token function raises.
        """
        if self.is_outdated:
            newer = await self._credentials.renewed(self._authorization)
            if newer is None and self._is_refused:
                return False
            self._authorization, self.is_outdated = newer or self._authorization, False
        else:
            self._authorization = await self._credentials.current()
        if self._authorization:
            request.headers["Authorization"] = self._authorization.value
        return True

    def renew(self, *, refused: bool) -> bool:
        """Have a newer token asked for next. Return False when there is no function, or that was done already.

        refused: the last one is of no use even when there is no newer one.
        """
        if not self.may_renew:
            return False
        self.may_renew, self.is_outdated, self._is_refused = False, True, refused
        return True

    def begin_anew(self) -> None:
        """Begin another attempt: a newer token may be asked for again, unless it is asked for now."""
        self.may_renew = self._credentials.renewable and not self.is_outdated


async def _ask(function: TokenFunction, *, refresh: bool) -> Authorization:
    authorization = _returned(await _call(function, refresh=refresh))
    if authorization is None:
        raise ConfigError("The token function returns a text: visible ASCII characters, without white space between.")
    return authorization


async def _call(function: TokenFunction, *, refresh: bool) -> Any:
    """Call a coroutine function here, any other one in a thread: it may wait for a server, and this loop must not."""
    if is_async(function):
        pending: Any = function(refresh=refresh)
    else:
        pending = await to_thread.run_sync(partial(function, refresh=refresh), abandon_on_cancel=True)
    return await pending if inspect.isawaitable(pending) else pending


def _returned(token: object) -> Authorization | None:
    """Return the authorization by what a function has returned, None when that is no token."""
    try:
        return (_bearer(check_token(token)) or None) if isinstance(token, str) else None
    except ConfigError:
        return None


def _bearer(token: str | None) -> Authorization:
    return Authorization(f"Bearer {token}" if token else "")


def _checked(function: TokenFunction) -> TokenFunction:
    try:
        inspect.signature(function).bind(refresh=True)
    except ValueError:  # of a callable that does not tell its parameters
        return function
    except TypeError:
        raise ConfigError("token is a text, or a function that is called as token(refresh=False).") from None
    return function


def check_plain(token: object) -> None:
    """Raise ConfigError for a coroutine function, which would run in another event loop than its author's."""
    if is_async(token):
        raise ConfigError("The token function of a SyncClient is a plain one: it is called in a thread.")
