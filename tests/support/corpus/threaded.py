"""Hubs beside threads: over a log in a file, and behind a server on a real socket.

Threads know no virtual time, and do not say when all work is done: ``settle`` publishes an event to every stream, and
reads until that event arrives.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from starlette.applications import Starlette
from starlette.routing import Mount

from sse_app import Hub
from sse_app.brokers.sqlite import SQLiteBroker
from sse_app.testing import live
from tests.chaos.client import Answer as HTTPAnswer
from tests.chaos.client import Chunks, Connection
from tests.support.corpus.chance import Surroundings
from tests.support.corpus.requests import get_of, outcome_of, post_of
from tests.support.corpus.scripts import Draft, Script, StreamRequest
from tests.support.corpus.stages import Answer, ClientStream, Readable, ReadStream, Stage
from tests.support.corpus.transcript import lines_of

PATIENCE = 30.0  # seconds; nothing takes long unless it hangs


class FileStage(Stage):
    """A hub over a log in a file, which stays when the hub is started again."""

    def __init__(self, script: Script, around: Surroundings) -> None:
        super().__init__(script, around)
        self._folder = TemporaryDirectory()
        self._settled = 0

    def make_log(self) -> SQLiteBroker:
        path = Path(self._folder.name, "hub.db")
        return SQLiteBroker(path, sync="normal", **self.script.log, clock=self.around.clock, wall=self.around.wall)

    async def start(self) -> None:
        await super().start()
        self._everything = AsyncExitStack()  # holds a subscriber to every topic
        self._canary = await self._everything.enter_async_context(self.hub.subscribe(client="canary"))

    async def stop(self) -> list[str]:
        await super().stop()
        await self._everything.aclose()
        return []

    async def close(self) -> None:
        self._folder.cleanup()

    async def settle(self) -> bytes:
        """Publish an event to every stream, after all earlier ones. Return its bytes once it is delivered."""
        self._settled += 1
        await self.hub.publish(f"settled {self._settled}")
        marker = b"\ndata: settled %d\n\n" % self._settled
        await read_to(marker, self._canary.read)
        return marker

    def client_stream(self, stream: Readable, stack: AsyncExitStack) -> ClientStream:
        return FileStream(stream, stack)


async def read_to(marker: bytes, read: Callable[[], Awaitable[bytes]]) -> bytes:
    data = bytearray()
    async with asyncio.timeout(PATIENCE):
        while marker not in data[-1_000:]:
            piece = await read()
            assert piece, f"the stream ended before {marker!r}"
            data += piece
    return bytes(data)


class FileStream(ReadStream):
    async def take(self, settled: bytes) -> bytes:
        return await read_to(settled, self.stream.read)


class SocketStage(Stage):
    """A hub's app on a uvicorn server in a thread, with our protocol: direct streams to clients on bare sockets."""

    async def start(self) -> None:
        self._settled, self.open_streams, self.serving = 0, 0, True
        self.hub = Hub(self.make_log(), **self.script.hub)
        app = Starlette(routes=[Mount("/", self.hub.app)], lifespan=self.hub.lifespan)
        self._server = ExitStack()
        serving = live(app, http="sse_app.server:Protocol", ws="none", timeout_graceful_shutdown=PATIENCE)
        self._port = self._server.enter_context(serving).port
        self._control = await Connection.open(self._port)
        canary = (await self.open(StreamRequest(client="canary"))).stream
        assert isinstance(canary, SocketStream)
        self._canary = canary

    async def stop(self) -> list[str]:
        self._control.close()
        self.serving = False
        ending = asyncio.create_task(asyncio.to_thread(self._server.close))
        rest = await self._canary.rest()
        await ending
        await self._canary.close()
        return lines_of(rest)

    async def top(self) -> str:
        return str((await self._control.request("GET", "/stats")).json["top"])

    async def publish(self, drafts: tuple[Draft, ...]) -> list[str]:
        outcomes = [await self.publish_one(draft) for draft in drafts]
        await self.settle()
        return outcomes

    async def publish_one(self, draft: Draft) -> str:
        target, body, headers = post_of(draft)
        answer = await self._control.request("POST", target, body, **headers)
        return outcome_of(answer.status, answer.body.decode())

    async def settle(self) -> bytes:
        self._settled += 1
        await self._control.publish(f"settled {self._settled}")
        marker = b"\ndata: settled %d\n\n" % self._settled
        await read_to(marker, self._canary.receive)
        return marker

    async def open(self, asked: StreamRequest) -> Answer:
        target, headers = get_of(asked, await self.cursor(asked), self.around.wall())
        connection = await Connection.open(self._port)
        await connection.send_head("GET", target, **headers)
        head = await connection.receive_head()
        if head.status != 200:
            connection.close()
            return Answer([str(head.status)])
        self.open_streams += 1
        return Answer(head_of(head), SocketStream(self, connection))

    async def head(self, asked: StreamRequest) -> list[str]:
        target, headers = get_of(asked, None, self.around.wall())
        async with await Connection.open(self._port) as connection:
            await connection.send_head("HEAD", target, **headers)
            return head_of(await connection.receive_head())

    async def until_closed(self) -> None:
        """Wait until the server has noticed the end of every closed stream."""
        async with asyncio.timeout(PATIENCE):
            while (await self._control.request("GET", "/stats")).json["here"] != self.open_streams:
                pass


def head_of(answer: HTTPAnswer) -> list[str]:
    return [str(answer.status), *(f"{name}: {value}" for name, value in answer.headers.items() if name != "date")]


class SocketStream:
    """A stream on a connection of its own, which only ``take`` and ``rest`` read."""

    def __init__(self, stage: SocketStage, connection: Connection) -> None:
        self._stage, self._connection, self._chunks = stage, connection, Chunks()

    async def receive(self) -> bytes:
        """Return a piece of the body, without the chunks' framing; b"" at its end."""
        payload = b""
        while not payload and not self._chunks.ended:
            data = await self._connection.receive()
            assert data, "the connection ended without its last chunk"
            payload = self._chunks.feed(data)
        return payload

    async def take(self, settled: bytes) -> bytes:
        return await read_to(settled, self.receive)

    async def rest(self) -> bytes:
        data = bytearray()
        async with asyncio.timeout(PATIENCE):
            while piece := await self.receive():
                data += piece
        return bytes(data)

    async def close(self) -> None:
        self._connection.close()
        self._stage.open_streams -= 1
        if self._stage.serving:
            await self._stage.until_closed()
