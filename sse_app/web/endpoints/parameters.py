"""The query and header parameters of requests: parsed, and refused when they are not as documented."""

import difflib
import re
import time
from collections.abc import Collection
from datetime import datetime
from itertools import islice
from urllib.parse import parse_qsl

from starlette.requests import Request

from sse_app.errors import InvalidEvent, InvalidSince, InvalidUTF8, UnknownParameter
from sse_app.joining import LAST_MAX, StartRequest
from sse_app.publication import Envelope
from sse_app.web.callers import refuse_in_url

COMPARED_MAX = 32  # unknown names that are compared with the known ones, some 20 us each
DIGITS_MAX = len(str(LAST_MAX))
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_TIME = re.compile(r"\d{4}-\d{2}-\d{2}[Tt]\d{2}:\d{2}:\d{2}(\.\d{1,9})?([Zz]|[+ -]\d{2}:\d{2})")  # RFC 3339

Parameters = dict[str, list[str]]


def parse(request: Request) -> Parameters:
    """Return ``parse_query`` of a request's query."""
    return parse_query(request.scope["query_string"])


def parse_query(query: bytes) -> Parameters:
    """Return a query's parameters, each with its values. Raises InvalidUTF8, TokenInURL.

    Starlette's query_params replace invalid UTF-8 by U+FFFD: a publication would silently go to another topic.
    """
    given: Parameters = {}
    if not query:
        return given
    try:
        for name, value in parse_qsl(query.decode("ascii"), keep_blank_values=True, errors="strict"):
            given.setdefault(name, []).append(value)
    except UnicodeDecodeError:
        raise InvalidUTF8("The query is not valid percent-encoded UTF-8.") from None
    refuse_in_url(given)
    return given


def _near_miss(name: str, known: Collection[str]) -> str | None:
    matches = difflib.get_close_matches(name.lower(), known, 1, 0.75)
    return matches[0] if matches else None


def refuse_near_misses(given: Parameters, known: Collection[str]) -> None:
    """Raise UnknownParameter for a name that looks like a misspelt one. Other names are ignored: pages add some to pass
    caches.
    """
    for name in islice((name for name in given if name not in known), COMPARED_MAX):
        if meant := _near_miss(name, known):
            raise UnknownParameter(f"There is a parameter that is not known here; did you mean {meant}?")


def refuse_unknown(given: Parameters, known: Collection[str]) -> None:
    """Raise UnknownParameter for a name that is not known: a misspelt ``topic`` would publish to everyone."""
    for name in given.keys() - set(known):
        meant = _near_miss(name, known)
        hint = f"did you mean {meant}?" if meant else f"known are {', '.join(known)}."
        raise UnknownParameter(f"There is a parameter that is not known here; {hint}")


def only(given: Parameters, name: str, error: type[Exception]) -> str | None:
    """Return the one value of a parameter, None when it is not given. Raises ``error`` for more than one."""
    values = given.get(name, [])
    if len(values) > 1:
        raise error(f"The parameter {name} is given more than once.")
    return values[0] if values else None


def cursor(request: Request, given: Parameters) -> bytes | None:
    """Return the cursor to resume behind, in the bytes that were sent: from the header, else from ``lastEventId``, else
    from ``last_event_id``.

    An empty cursor counts as none. Of two in one place neither can be trusted: the answer is a cursor that is invalid.
    """
    # From the scope, since Starlette decodes headers as latin-1.
    header = [value for name, value in request.scope["headers"] if name == b"last-event-id"]
    # A polyfill adds its newest id as lastEventId to a URL that may have an older last_event_id: so that one is second.
    kinds = (header, *([value.encode() for value in given.get(name, ())] for name in ("lastEventId", "last_event_id")))
    for kind in kinds:
        if sent := [value for value in kind if value]:
            return sent[0] if len(sent) == 1 else b"more than one"
    return None


def count(text: str) -> int:
    """Return the number of ``last``. Raises InvalidSince, in the words of StartRequest, which has its bounds."""
    is_number = text.isascii() and text.isdigit() and len(text) <= DIGITS_MAX
    number = int(text) if is_number else -1
    StartRequest(last=number)
    return number


def moment(text: str) -> float:
    """Return the Unix time of an RFC 3339 time, or of a time before now (``15m``, ``2h``). Raises InvalidSince."""
    if match := re.fullmatch(r"([0-9]{1,9})([smhd])", text):
        return time.time() - int(match[1]) * _UNITS[match[2]]
    if _TIME.fullmatch(text):
        try:
            return datetime.fromisoformat(text.upper().replace(" ", "+")).timestamp()  # a bare + in a query is a space
        except (ValueError, OverflowError):
            pass
    raise InvalidSince("since is an RFC 3339 time such as 2026-01-31T08:00:00Z, or 30s, 15m, 2h, 1d.")


def parse_envelope(given: Parameters) -> Envelope:
    """Return the envelope that the parameters of a publication describe. Raises BadInput."""
    event = only(given, "event", InvalidEvent)
    return Envelope.of(
        topic=given.get("topic"),
        event="message" if event is None else event,
        to=given.get("to"),
        exclude=given.get("exclude"),
    )
