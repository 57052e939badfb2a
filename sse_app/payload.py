"""The data of a publication."""

import json
import re

import msgspec

from sse_app.errors import InvalidJSON, TooDeep

JSON_DEPTH = 64

_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"')  # of valid JSON
_TO_SQUARE = bytes.maketrans(b"{}", b"[]")
_NO_BRACKET = bytes(set(range(256)) - set(b"[]{}"))
_TOO_DEEP = f"JSON is nested at most {JSON_DEPTH} deep."


def check_json(body: bytes) -> None:
    """Raise InvalidJSON for what RFC 8259 does not allow, TooDeep for what is nested deeper than JSON_DEPTH."""
    try:
        try:
            msgspec.json.decode(body)
        except msgspec.DecodeError:
            _second_look(body)
    except ValueError:
        raise InvalidJSON("The body is not valid JSON, which its Content-Type says it is.") from None
    except RecursionError:
        raise TooDeep(_TOO_DEEP) from None
    if body.count(b"[") + body.count(b"{") > JSON_DEPTH and _is_deep(body):
        raise TooDeep(_TOO_DEEP)


def _second_look(body: bytes) -> None:
    """Raise ValueError for JSON that is none. msgspec also refuses JSON of which it cannot make a value: half a
    surrogate pair, 1e309, an integer of 5,000 digits (RFC 8259, 6 and 8.2). Here numbers stay text.
    """
    json.loads(body.decode(), parse_int=str, parse_float=str, parse_constant=_refuse)  # bytes might be UTF-16, or a BOM


def _refuse(constant: str) -> None:
    raise ValueError("JSON has no NaN and no Infinity.")


def _is_deep(body: bytes) -> bool:
    """Return True when valid JSON is nested deeper than JSON_DEPTH. Its text counts, since of equal names its value
    holds only the last.
    """
    brackets = _STRING.sub(b"", body).translate(_TO_SQUARE, _NO_BRACKET)
    for _ in range(JSON_DEPTH):
        brackets = brackets.replace(b"[]", b"")  # the innermost level of each place
        if not brackets:
            return False
    return True
