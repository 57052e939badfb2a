"""The body of a request, bounded in bytes and seconds."""

import asyncio
import re

from starlette.requests import ClientDisconnect, Request

from sse_app.errors import BadInput, InvalidBody, TooSlow


async def read_body(request: Request, most: int, deadline: float, too_large: BadInput) -> bytes:
    """Return the body, which has ``deadline`` seconds to arrive. Raises ``too_large`` for more than ``most`` bytes,
    InvalidBody, TooSlow.
    """
    declared = request.headers.get("content-length", "0")
    if not re.fullmatch("[0-9]{1,18}", declared):
        raise InvalidBody("Content-Length is not a number of bytes.")
    if int(declared) > most:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(deadline):
            async for chunk in request.stream():
                body += chunk
                if len(body) > most:
                    raise too_large
    except TimeoutError:
        raise TooSlow("The body did not arrive in time (head_deadline).") from None
    except ClientDisconnect:
        raise InvalidBody("The connection ended before the body did.") from None
    return bytes(body)
