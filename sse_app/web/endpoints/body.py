"""The body of a request, bounded in bytes and seconds, and what its headers say of it."""

import asyncio
import re
from collections.abc import Callable

from starlette.types import Message, Receive, Scope

from sse_app.content_type import is_json
from sse_app.coroutines import Suspended, step
from sse_app.errors import BadInput, InvalidBody, TooSlow, UnsupportedEncoding

LARGE = 256 * 1024  # bytes: a larger body is checked and encoded in a thread, since it would hold up the loop
LENGTH = re.compile(rb"[0-9]{1,18}")


async def read_body(
    scope: Scope, receive: Receive, most: int, deadline: float, too_large: Callable[[], BadInput]
) -> bytes:
    """Return the body, which has ``deadline`` seconds to arrive. Raises ``too_large()`` for more than ``most`` bytes,
    InvalidBody, TooSlow.
    """
    check_length(scope, most, too_large)
    first = step(receive())
    if not isinstance(first, Suspended) and not first.get("more_body"):
        body = _piece(first)  # it is there, as most are: no timer is needed
    else:
        try:
            async with asyncio.timeout(deadline):
                body = await _collect(first, receive, most)
        except TimeoutError:
            raise TooSlow("The body did not arrive in time (head_deadline).") from None
    if len(body) > most:
        raise too_large()
    return body


def check_length(scope: Scope, most: int, too_large: Callable[[], BadInput]) -> None:
    """Raise ``too_large()`` for a Content-Length of more than ``most`` bytes, InvalidBody for one that is no number."""
    for name, value in scope["headers"]:
        if name == b"content-length":
            if not LENGTH.fullmatch(value):
                raise InvalidBody("Content-Length is not a number of bytes.")
            if int(value) > most:
                raise too_large()


async def _collect(first: Message | Suspended[Message], receive: Receive, most: int) -> bytes:
    """Return the body from its first message on, or as much of it as is too much."""
    message = await first if isinstance(first, Suspended) else first
    body = bytearray(_piece(message))
    while message.get("more_body") and len(body) <= most:
        message = await receive()
        body += _piece(message)
    return bytes(body)


def _piece(message: Message) -> bytes:
    if message["type"] == "http.disconnect":
        raise InvalidBody("The connection ended before the body did.")
    piece: bytes = message.get("body", b"")
    return piece


def described(scope: Scope) -> tuple[bool, str | None]:
    """Return what the headers say of a body: True when it is JSON, and its idempotency key. Raises BadInput for a body
    that cannot be taken.
    """
    content_type, encoding, key = b"", b"", None
    for name, value in scope["headers"]:
        if name == b"content-type":
            content_type = value
        elif name == b"content-encoding":
            encoding = value
        elif name == b"idempotency-key":
            key = value.decode("latin-1")
    must_be_json = is_json(content_type.decode("latin-1") or "text/plain")
    if encoding and encoding.lower() != b"identity":
        raise UnsupportedEncoding("The body is the data as it is; send it without Content-Encoding.")
    return must_be_json, key
