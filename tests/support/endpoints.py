"""Requests to a hub's endpoints that several of their tests make."""

from typing import Any

import httpx
import msgspec

from sse_app import Event
from tests.support.web import Web

JSON = {"Content-Type": "application/json"}
HOST = (b"host", b"localhost")
KEY = "k3y-0123456789-abcdef"


def payload(event: Event) -> Any:
    return msgspec.json.decode(event.data)


def url_of(path: str, query: dict[str, Any] | bytes) -> httpx.URL:
    """Return the URL of a path with parameters, or with bytes as its query."""
    return httpx.URL(path, query=query) if isinstance(query, bytes) else httpx.URL(path, params=query)


def raw(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode()


async def publish_numbers(hub_web: Web, count: int) -> list[str]:
    """Publish the numbers from 0 on; return the ids."""
    return [(await hub_web.hub.publish(str(number))).id for number in range(count)]


async def read(hub_web: Web, count: int, url: str = "/events", **options: Any) -> list[Event]:
    async with hub_web.stream(url, **options) as events:
        return [await anext(events) for _ in range(count)]
