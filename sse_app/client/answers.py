"""What an answer, or none, means to a client: try again and when, or give up."""

import json
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

import anyio

from sse_app.client.http import TIMEOUT
from sse_app.errors import Refused

if TYPE_CHECKING:
    from sse_app.client.http import Response

BACKOFF = (0.5, 30.0)  # seconds after the first failure, and at most; a server may ask for more
WAIT_MIN = 0.1  # seconds: no server may have its clients ask without a pause
WAIT_MAX = 3600.0  # seconds: no server may put its clients to sleep for ever
BODY_MAX = 65_536  # bytes of an error's body that are read


def retry_after(headers: Mapping[str, str]) -> float:
    """The seconds that an answer asks to wait (RFC 9110 section 10.2.3), 0 when it asks for none."""
    text = headers.get("retry-after", "").strip()
    try:
        wait = float(int(text)) if text.isdecimal() else parsedate_to_datetime(text).timestamp() - time.time()
    except (ValueError, OverflowError):
        return 0.0
    return min(max(0.0, wait), WAIT_MAX)


def refused(response: "Response", body: bytes) -> Refused:
    """An answer that says no, as the error that it is: in the hub's words when it has problem details (RFC 9457)."""
    problem = fields(body)
    code, detail = problem.get("code"), problem.get("detail")
    if isinstance(code, str) and isinstance(detail, str):
        return Refused(response.status_code, code, detail)
    reason = response.reason_phrase or "The answer says no"
    if "location" in response.headers:
        reason = f"{reason}: the hub is asked for at {response.headers['location']}"
    return Refused(response.status_code, "http_error", f"{reason}.")


async def beginning(response: "Response") -> bytes:
    """The first of a body that may have no end, or never come."""
    body = bytearray()
    with anyio.move_on_after(TIMEOUT):
        async for piece in response.aiter_bytes():
            body += piece
            if len(body) >= BODY_MAX:
                break
    return bytes(body)


def fields(text: bytes | str | None) -> dict[str, Any]:
    """A JSON object; an empty one when it is none."""
    try:
        value = json.loads(text or "")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def reason(error: Exception | None) -> str:
    """Why there is no answer, in words; None when the server ended its own in good order."""
    if error is None:
        return "the server ended the stream"
    return str(error).rstrip(".") or type(error).__name__
