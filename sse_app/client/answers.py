"""The meaning of an answer to a client, or of none: try again and when, or give up."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, get_args
from urllib.parse import quote

import anyio

from sse_app.client.http import TIMEOUT
from sse_app.errors import Refused
from sse_app.publication import Durability, Position, Receipt

if TYPE_CHECKING:
    from sse_app.client.http import Response

BACKOFF = (0.5, 30.0)  # seconds after the first failure, and at most; a server may ask for more
WAIT_MIN = 0.1  # seconds: no server may have its clients ask without a pause
WAIT_MAX = 3600.0  # seconds: no server may put its clients to sleep for ever
UNAUTHORIZED = 401  # the credential is missing, wrong, or no longer good: another token may be
DURABLE = get_args(Durability)
BODY_MAX = 65_536  # bytes of an error's body that are read


@dataclass(frozen=True, slots=True)
class Ticket:
    """A ticket for one client's stream, which an ``EventSource`` opens with it, since it cannot send a token.

    ticket: its text, for ``/events?ticket=...`` at the address that the page has for the hub
    url: the same at the address that this client has for it
    ttl: seconds within which it has to be used
    expires: when its streams end (Unix time)
    """

    ticket: str = field(repr=False)
    url: str = field(repr=False)
    ttl: float
    expires: float

    @classmethod
    def of(cls, answer: Mapping[str, Any], hub: str) -> "Ticket":
        """Return the ticket in an answer of the hub at this URL. Raises Refused for what is none."""
        ticket, ttl, expires = (answer.get(name) for name in ("ticket", "ttl", "expires"))
        if not isinstance(ticket, str) or not isinstance(ttl, int | float) or not isinstance(expires, int | float):
            raise not_a_hub()
        return cls(ticket, f"{hub}/events?ticket={quote(ticket)}", ttl, expires)


def receipt_of(given: object, subscribers: Any, durable: Any) -> Receipt:
    """Return the receipt that a hub's answer describes; ``given`` is the id in it. Raises Refused for what is none."""
    position = Position.parse(str(given).encode())
    if position is None:
        raise not_a_hub()
    return Receipt(position, subscribers, durable if durable in DURABLE else "none")


def retry_after(headers: Mapping[str, str]) -> float:
    """Return the seconds that an answer asks to wait (RFC 9110 section 10.2.3), 0 when it asks for none."""
    text = headers.get("retry-after", "").strip()
    try:
        wait = float(int(text)) if text.isdecimal() else parsedate_to_datetime(text).timestamp() - time.time()
    except (ValueError, OverflowError):
        return 0.0
    return min(max(0.0, wait), WAIT_MAX)


def refused(response: "Response", body: bytes) -> Refused:
    """Return an answer other than 200 as an error, in the hub's words when it has problem details (RFC 9457)."""
    problem = fields(body)
    code, detail = problem.get("code"), problem.get("detail")
    if isinstance(code, str) and isinstance(detail, str):
        return Refused(response.status_code, code, detail)
    phrase = response.reason_phrase or "The answer is an error"
    if "location" in response.headers:
        phrase = f"{phrase}: the hub is asked for at {response.headers['location']}"
    return Refused(response.status_code, "http_error", f"{phrase}.")


def not_a_hub() -> Refused:
    """Return the error for an answer 200 that does not have the fields of a hub's."""
    return Refused(200, "http_error", "What is at this address is no hub.")


async def beginning(response: "Response") -> bytes:
    """Return the first of a body, which may have no end or never come."""
    body = bytearray()
    with anyio.move_on_after(TIMEOUT):
        async for piece in response.aiter_bytes():
            body += piece
            if len(body) >= BODY_MAX:
                break
    return bytes(body)


def fields(text: bytes | str | None) -> dict[str, Any]:
    """Return the JSON object in ``text``, an empty one when there is none."""
    try:
        value = json.loads(text or "")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def reason(error: Exception | None) -> str:
    """Return in words why there is no answer; None stands for a stream that the server ended in good order."""
    if error is None:
        return "the server ended the stream"
    return str(error).rstrip(".") or type(error).__name__
