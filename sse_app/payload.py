"""The data of a publication."""

from collections.abc import Collection

import msgspec

from sse_app.errors import InvalidJSON, TooDeep

JSON_DEPTH = 64


def check_json(body: bytes) -> None:
    """Raises InvalidJSON, TooDeep."""
    try:
        value = msgspec.json.decode(body)
    except msgspec.DecodeError:
        raise InvalidJSON("The body is not valid JSON, which its Content-Type says it is.") from None
    except RecursionError:
        raise TooDeep(f"JSON is nested at most {JSON_DEPTH} deep.") from None
    level = [value]
    for _ in range(JSON_DEPTH):
        level = [child for item in level if isinstance(item, dict | list) for child in _children(item)]
        if not level:
            return
    if any(isinstance(item, dict | list) for item in level):
        raise TooDeep(f"JSON is nested at most {JSON_DEPTH} deep.")


def _children(value: dict[str, object] | list[object]) -> Collection[object]:
    return value.values() if isinstance(value, dict) else value
