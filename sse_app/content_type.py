"""The Content-Type of a publication: JSON or text, in UTF-8 (RFC 9110, 8.3.1).

The grammar is strict. The standard library's parser is made for mail: it fails on parameters that only mail has
(``charset*=`` of RFC 2231), and takes what it cannot read for ``text/plain``.
"""

import re
from functools import lru_cache

from sse_app.errors import UnsupportedType

UTF8_LABELS = frozenset(
    {
        *("utf-8", "utf8", "unicode-1-1-utf-8", "unicode11utf8", "unicode20utf8", "x-unicode20utf8"),  # WHATWG Encoding
        "utf_8",  # Python's name
        *("us-ascii", "ascii"),  # ASCII is a subset of UTF-8
    }
)
CACHED_MAX = 256  # characters; longer types are not cached, so that a peer cannot fill the memory with them

_TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_MEDIA_TYPE = re.compile(rf"{_TOKEN}/{_TOKEN}")
_PARAMETER = re.compile(
    rf'[ \t]*;[ \t]*(?:(?P<name>{_TOKEN})=(?:(?P<token>{_TOKEN})|"(?P<quoted>(?:[^"\\\0-\x08\x0a-\x1f\x7f]|\\.)*)")?)?'
)


def is_json(content_type: str) -> bool:
    """Return True for JSON, False for any other type, whose data is text in UTF-8. Raises UnsupportedType for another
    charset, a malformed type, or multipart.
    """
    return _cached(content_type) if len(content_type) <= CACHED_MAX else _is_json(content_type)


def _is_json(content_type: str) -> bool:
    match = _MEDIA_TYPE.match(content_type)
    charsets = None if match is None else _charsets(content_type, match.end())
    if match is None or charsets is None:
        raise UnsupportedType("The Content-Type is malformed; send one such as application/json or text/plain.")
    media_type = match[0].lower()
    if media_type.startswith("multipart/"):
        raise UnsupportedType("The body is the data as it is: JSON, or text in UTF-8; not multipart.")
    if len(charsets) > 1 or not UTF8_LABELS.issuperset(charsets):
        raise UnsupportedType("The body is the data as it is, in UTF-8; send it so, with charset=utf-8 or none.")
    return media_type == "application/json" or media_type.endswith("+json")


_cached = lru_cache(maxsize=128)(_is_json)


def _charsets(content_type: str, position: int) -> list[str] | None:
    """Return the charsets of the parameters from ``position`` on, in lower case, without empty ones; None when a
    parameter is malformed.
    """
    labels = []
    while position < len(content_type):
        match = _PARAMETER.match(content_type, position)
        if match is None:
            return None
        position = match.end()
        name = (match["name"] or "").lower()
        if name.startswith("charset*"):
            return None  # extended parameters are not defined for Content-Type (RFC 8187, 1; RFC 9110, 5.6.6)
        if name == "charset" and (label := (match["token"] or match["quoted"] or "").strip().lower()):
            labels.append(label)
    return labels
