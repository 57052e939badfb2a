"""The data of a publication: the text that stands for an object, the same for every way to publish.

A str is that text, all else becomes JSON. Nothing is guessed: an object without one obvious form in JSON is refused,
with an error that says what to give instead.
"""

import json
import math
import re
from collections.abc import AsyncIterable, Awaitable, Collection, Iterable, Mapping
from dataclasses import fields, is_dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import msgspec

from sse_app.errors import BadInput, InvalidData, InvalidJSON, TooDeep, TooLarge

JSON_DEPTH = 64
_skip = msgspec.json.Decoder(msgspec.Raw).decode  # checks the syntax, and makes no objects of it
_AS_IT_IS = frozenset({str, int, bool, type(None)})
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"')  # of valid JSON
_TO_SQUARE = bytes.maketrans(b"{}", b"[]")
_NO_BRACKET = bytes(set(range(256)) - set(b"[]{}"))
# The types in a msgspec.Struct that _plain converts: msgspec would make base64 of bytes, and refuse subclasses.
_NOT_OF_STRUCTS = (bytes, bytearray, memoryview, datetime, date, time, timedelta, UUID, Decimal, Enum)


def encode_data(data: object, body_max: int | None = None) -> str:
    """Return the text to publish, of at most ``body_max`` bytes in UTF-8.

    A str is that text. All else becomes JSON: its own types and their subclasses; tuples as arrays, sets as sorted
    ones, since a retry from another process has to be the same publication; datetime, date and time as ISO 8601, with
    Z for UTC, timedelta as an ISO 8601 duration; UUID and Decimal as strings, which keep every digit; an enum as its
    value; dataclasses, attrs classes, msgspec Structs and Pydantic models as objects.
    Raises InvalidData, TooDeep, TooLarge.
    """
    try:
        plain = _plain(data, 0)
        text = plain if isinstance(data, str) and isinstance(plain, str) else msgspec.json.encode(plain).decode()
        size = len(text) if text.isascii() else len(text.encode())
    except BadInput:
        raise
    except UnicodeEncodeError:
        raise InvalidData("The data holds a lone surrogate, which UTF-8 cannot carry.") from None
    except RecursionError:
        raise _too_deep() from None
    except (AttributeError, TypeError, ValueError) as error:  # of the classes in it, or of an int of 5,000 digits
        raise InvalidData("The data could not be made JSON; the exception that caused this one says why.") from error
    if body_max is not None and size > body_max:
        raise too_large(body_max)
    return text


def too_large(body_max: int) -> TooLarge:
    return TooLarge(f"The data of a publication has at most {body_max} bytes (body_max).")


def _plain(value: object, depth: int) -> object:
    """Return the value made of JSON's own types alone. ``depth`` counts the arrays and objects around it."""
    if type(value) in _AS_IT_IS:
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise _not_finite()
        return float(value)
    if isinstance(value, str):
        return str.__str__(value)  # str() of an enum is its name
    if isinstance(value, int):
        return int(value)
    if isinstance(value, dict | Mapping):  # dict first: comparing classes is faster than the function of an ABC
        return _object(value, depth)
    if isinstance(value, list | tuple):
        return _array(value, depth)
    if isinstance(value, set | frozenset):
        return sorted(_array(value, depth), key=_rank)
    return _of_class(value, depth)


def _of_class(value: Any, depth: int) -> object:
    if isinstance(value, Enum):
        return _plain(value.value, depth)
    if isinstance(value, datetime | time):
        text = value.isoformat()
        return f"{text[:-6]}Z" if text.endswith("+00:00") else text
    if isinstance(value, date | UUID):
        return str(value)
    if isinstance(value, Decimal):
        if not value.is_finite():
            raise _not_finite()
        return str(value)
    if isinstance(value, timedelta):
        return msgspec.to_builtins(value)
    if isinstance(value, type):
        raise _refused(value)
    if isinstance(value, msgspec.Struct):
        inner = msgspec.to_builtins(
            value, builtin_types=_NOT_OF_STRUCTS, order="deterministic", enc_hook=lambda other: _plain(other, depth)
        )
        return _plain(inner, depth)
    if is_dataclass(value):
        return _object({field.name: getattr(value, field.name) for field in fields(value)}, depth)
    if attributes := getattr(type(value), "__attrs_attrs__", ()):
        return _object({attribute.name: getattr(value, attribute.name) for attribute in attributes}, depth)
    if hasattr(type(value), "model_dump"):  # Pydantic's
        return _plain(value.model_dump(mode="json"), depth)
    raise _refused(value)


def _object(value: Mapping[object, object], depth: int) -> dict[str, object]:
    if depth >= JSON_DEPTH:
        raise _too_deep()
    inner = depth + 1
    found = {
        key if type(key) is str else _key(key): item if type(item) in _AS_IT_IS else _plain(item, inner)
        for key, item in value.items()
    }
    if len(found) != len(value):
        raise InvalidData('Two keys of an object in the data are the same in JSON, as 1 and "1" are.')
    return found


def _key(key: object) -> str:
    plain = _plain(key, JSON_DEPTH - 1)
    if isinstance(plain, str):
        return plain
    if isinstance(plain, int | float) and not isinstance(plain, bool):
        return msgspec.json.encode(plain).decode()
    raise InvalidData("The keys of an object in the data are text or numbers: JSON has no others.")


def _array(value: Collection[object], depth: int) -> list[object]:
    if depth >= JSON_DEPTH:
        raise _too_deep()
    inner = depth + 1
    return [item if type(item) in _AS_IT_IS else _plain(item, inner) for item in value]


def _rank(plain: object) -> tuple[int, Any]:
    """Return a key that sorts all that a set may hold, in every process alike."""
    if isinstance(plain, int | float):
        return 0, plain
    return (1, plain) if isinstance(plain, str) else (2, msgspec.json.encode(plain))


def _not_finite() -> InvalidData:
    return InvalidData("The data holds NaN or Infinity, which JSON has not; give None or a str in its place.")


def _too_deep() -> TooDeep:
    return TooDeep(f"JSON is nested at most {JSON_DEPTH} deep.")


def _refused(value: object) -> InvalidData:
    kind = value if isinstance(value, type) else type(value)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return InvalidData(f"Data of type {name} cannot be published: {_advice(value)}.")


def _advice(value: object) -> str:
    if isinstance(value, bytes | bytearray | memoryview):
        return "decode it first, as in data.decode(), or make it base64 text"
    if isinstance(value, Awaitable):
        return "await it first"
    if isinstance(value, type) or callable(value):
        return "call it, and give what it returns"
    if hasattr(value, "tolist"):  # numpy's, array.array
        return "call its tolist() first"
    if isinstance(value, AsyncIterable):
        return "collect it first, as in [item async for item in data]"
    if isinstance(value, Iterable):
        return "make a list of it first, as in list(data)"
    return "give text, what JSON has, or an object of a dataclass, attrs, msgspec or Pydantic class"


def check_json(body: bytes) -> None:
    """Raise InvalidJSON for text in UTF-8 that RFC 8259 does not allow, TooDeep for what is nested deeper than
    JSON_DEPTH.
    """
    try:
        try:
            _skip(body)
        except msgspec.DecodeError:
            _check_syntax(body)
    except ValueError:
        raise InvalidJSON("The body is not valid JSON, which its Content-Type says it is.") from None
    except RecursionError:
        raise _too_deep() from None
    if body.count(b"[") + body.count(b"{") > JSON_DEPTH and _is_deep(body):
        raise _too_deep()


def _check_syntax(body: bytes) -> None:
    """Raise ValueError for invalid JSON, and for nothing else. msgspec also refuses half a surrogate pair, which is
    valid (RFC 8259, 8.2). Here numbers stay text.
    """
    # Decoded first: of bytes json.loads would also take UTF-16, and a byte order mark.
    json.loads(body.decode(), parse_int=str, parse_float=str, parse_constant=_refuse)


def _refuse(constant: str) -> None:
    raise ValueError("JSON has no NaN and no Infinity.")


def _is_deep(body: bytes) -> bool:
    """Return True when valid JSON is nested deeper than JSON_DEPTH. Its text is examined, since a decoded object has
    only the last of several equal names.
    """
    brackets = _STRING.sub(b"", body).translate(_TO_SQUARE, _NO_BRACKET)
    for _ in range(JSON_DEPTH):
        brackets = brackets.replace(b"[]", b"")  # the innermost level of each place
        if not brackets:
            return False
    return True
