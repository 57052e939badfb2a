"""The design that is written most often in Python, to compare with: a queue, a generator and an encoding per client.

`sse-app bench --against naive` runs it in a process of its own, on uvicorn with its defaults. No module imports it.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route


class Broadcaster:
    """The endpoints, and a queue for each client."""

    def __init__(self) -> None:
        self._queues: set[asyncio.Queue[tuple[int, Any]]] = set()
        self._number = 0

    async def events(self, request: Request) -> EventSourceResponse:
        queue: asyncio.Queue[tuple[int, Any]] = asyncio.Queue()
        self._queues.add(queue)

        async def stream() -> AsyncIterator[dict[str, str]]:
            try:
                while True:
                    number, message = await queue.get()
                    yield {"id": str(number), "data": json.dumps(message)}
            finally:
                self._queues.discard(queue)

        return EventSourceResponse(stream())

    async def broadcast(self, request: Request) -> JSONResponse:
        message, self._number = await request.json(), self._number + 1
        for queue in self._queues:
            queue.put_nowait((self._number, message))
        return JSONResponse({"subscribers": len(self._queues)})


def create_app() -> Starlette:
    broadcaster = Broadcaster()
    return Starlette(
        routes=[Route("/events", broadcaster.events), Route("/broadcast", broadcaster.broadcast, methods=["POST"])]
    )
