"""The query and header parameters of requests: read, and refused when they are not as described."""

import difflib
import re
import time
from collections.abc import Collection
from datetime import datetime
from urllib.parse import parse_qsl

from starlette.requests import Request

from sse_app.errors import InvalidSince, InvalidUTF8, UnknownParameter
from sse_app.joining import LAST_MAX

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_TIME = re.compile(r"\d{4}-\d{2}-\d{2}[Tt]\d{2}:\d{2}:\d{2}(\.\d{1,9})?([Zz]|[+ -]\d{2}:\d{2})")  # RFC 3339

Parameters = dict[str, list[str]]


def parse(request: Request) -> Parameters:
    """Return the query's parameters, each with its values.

    Starlette's query_params put U+FFFD for what is not UTF-8, and a topic that was silently changed is another topic.
    """
    given: Parameters = {}
    try:
        for name, value in parse_qsl(
            request.scope["query_string"].decode("ascii"), keep_blank_values=True, errors="strict"
        ):
            given.setdefault(name, []).append(value)
    except UnicodeDecodeError:
        raise InvalidUTF8("The query is not valid percent-encoded UTF-8.") from None
    return given


def _near_miss(name: str, known: Collection[str]) -> str | None:
    matches = difflib.get_close_matches(name.lower(), known, 1, 0.75)
    return matches[0] if matches else None


def refuse_near_misses(given: Parameters, known: Collection[str]) -> None:
    """Raise UnknownParameter for one that looks like a misspelt one; others are for caches, and ignored."""
    for name in given.keys() - set(known):
        if meant := _near_miss(name, known):
            raise UnknownParameter(f"There is a parameter that is not known here; did you mean {meant}?")


def refuse_unknown(given: Parameters, known: Collection[str]) -> None:
    """Raise UnknownParameter for any that is not known: a misspelt topic must not broadcast to everyone."""
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
    """Return the cursor to resume behind, as it came: of the strongest kind that is there.

    An empty one is none, and two of a kind are one that resumes nowhere.
    """
    # Raw bytes: Starlette decodes headers as latin-1.
    header = [value for name, value in request.scope["headers"] if name == b"last-event-id"]
    # A polyfill adds lastEventId, of its newest event, to the URL it was given, which may hold an old last_event_id.
    kinds = (header, *([value.encode() for value in given.get(name, ())] for name in ("lastEventId", "last_event_id")))
    for kind in kinds:
        if sent := [value for value in kind if value]:
            return sent[0] if len(sent) == 1 else b"more than one"
    return None


def count(text: str) -> int:
    """Return the number that ``last`` is."""
    if not (text.isascii() and text.isdigit() and len(text) <= 7 and int(text) <= LAST_MAX):
        raise InvalidSince(f"last is a whole number from 0 to {LAST_MAX}.")
    return int(text)


def moment(text: str) -> float:
    """Return the Unix time of an RFC 3339 time, or of so long ago (``15m``, ``2h``)."""
    if match := re.fullmatch(r"([0-9]{1,9})([smhd])", text):
        return time.time() - int(match[1]) * _UNITS[match[2]]
    if _TIME.fullmatch(text):
        try:
            return datetime.fromisoformat(text.upper().replace(" ", "+")).timestamp()  # a bare + in a query is a space
        except (ValueError, OverflowError):
            pass
    raise InvalidSince("since is an RFC 3339 time such as 2026-01-31T08:00:00Z, or 30s, 15m, 2h, 1d.")
