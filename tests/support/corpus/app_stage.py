"""A hub's app, whose client is httpx without a network in between: the stepped path."""

import asyncio

import httpx

from sse_app.testing import StreamingASGITransport
from tests.support.corpus.requests import get_of, outcome_of, post_of
from tests.support.corpus.scripts import ENDLESS, Draft, Publish, StreamRequest
from tests.support.corpus.stages import MOMENT, Answer, Stage

CURSOR_STEP = 64  # publications; fewer move no cursor


class AppStage(Stage):
    """A hub's app, whose client is httpx without a network in between."""

    async def start(self) -> None:
        await super().start()
        transport = StreamingASGITransport(self.hub.app)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=None)
        count = sum(len(step.drafts) for step in self.script.steps if isinstance(step, Publish))
        # Whoever reads nothing is slow. How much the transport takes for it decides on heartbeats and cursors.
        self.slow = self.script.hub["heartbeat"] == ENDLESS and count < CURSOR_STEP

    async def close(self) -> None:
        await self.client.aclose()

    async def publish(self, drafts: tuple[Draft, ...]) -> list[str]:
        if len(drafts) > 1:
            return await super().publish(drafts)
        target, body, headers = post_of(drafts[0])
        response = await self.client.post(target, content=body, headers=headers)
        await self.settle()
        return [outcome_of(response.status_code, response.text)]

    async def open(self, asked: StreamRequest) -> Answer:
        target, headers = get_of(asked, await self.cursor(asked), self.around.wall())
        fields = [(name.encode(), value.encode()) for name, value in headers.items()]
        request = self.client.build_request("GET", target, headers=fields)
        response = await self.client.send(request, stream=True)
        if response.status_code != 200:
            await response.aread()
            return Answer([outcome_of(response.status_code, response.text)])
        stream = AppStream(response, slow=self.slow)
        await self.settle()
        return Answer(head_of(response), stream)

    async def head(self, asked: StreamRequest) -> list[str]:
        target, headers = get_of(asked, None, self.around.wall())
        return head_of(await self.client.head(target, headers=headers))


def head_of(response: httpx.Response) -> list[str]:
    return [str(response.status_code), *(f"{name}: {value}" for name, value in response.headers.multi_items())]


class AppStream:
    """A stream through the transport. ``slow``: only ``take`` and ``rest`` read."""

    def __init__(self, response: httpx.Response, *, slow: bool) -> None:
        self._response, self._slow = response, slow
        self._reading = asyncio.Event()
        self._data = bytearray()
        if not slow:
            self._reading.set()
        self._pump = asyncio.create_task(self._read())

    async def _read(self) -> None:
        pieces = aiter(self._response.aiter_raw())
        while await self._reading.wait():
            if (piece := await anext(pieces, None)) is None:
                return
            self._data += piece

    async def take(self, settled: bytes) -> bytes:
        self._reading.set()
        await asyncio.sleep(MOMENT)
        if self._slow:
            self._reading.clear()
        data, self._data = bytes(self._data), bytearray()
        return data

    async def rest(self) -> bytes:
        self._reading.set()
        await self._pump
        return bytes(self._data)

    async def close(self) -> None:
        self._pump.cancel()
        await asyncio.wait([self._pump])
        await self._response.aclose()
