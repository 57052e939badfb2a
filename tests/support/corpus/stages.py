"""The stages of histories: a hub of this package, driven through one of its public doors.

On virtual time all work of a hub is done when the next moment begins.
"""

import asyncio
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Protocol

from sse_app import Hub, SSEAppError
from sse_app.brokers.memory import MemoryBroker
from sse_app.brokers.sqlite import SQLiteBroker
from tests.support.corpus.chance import Surroundings
from tests.support.corpus.scripts import Cursor, Draft, Script, StreamRequest

MOMENT = 0.0001  # virtual seconds: it passes only when nobody has anything left to do


class ClientStream(Protocol):
    """One open stream, as its client reads it."""

    async def take(self, settled: bytes) -> bytes:
        """Return what has arrived up to the bytes that ``Stage.settle`` returned."""
        ...

    async def rest(self) -> bytes:
        """Return what arrives until the stream ends."""
        ...

    async def close(self) -> None: ...


@dataclass
class Answer:
    """The answer to a client's request, in lines of text, and the stream if the hub opened one."""

    lines: list[str]
    stream: ClientStream | None = None


class Stage:
    """A hub that is subscribed to with ``subscribe`` and read with ``read``."""

    def __init__(self, script: Script, around: Surroundings) -> None:
        self.script, self.around = script, around

    async def start(self) -> None:
        self.hub = Hub(self.make_log(), **self.script.hub)
        await self.hub.__aenter__()

    async def stop(self) -> list[str]:
        """End the hub; open streams get their bye. Return lines for the transcript."""
        await self.hub.__aexit__(None, None, None)
        return []

    async def drain(self, window: float) -> None:
        await self.hub.drain(window)

    async def close(self) -> None:
        """Remove all that the stage has made."""

    def make_log(self) -> MemoryBroker | SQLiteBroker:
        return MemoryBroker(**self.script.log, clock=self.around.clock, wall=self.around.wall)

    async def publish(self, drafts: tuple[Draft, ...]) -> list[str]:
        """Publish all drafts in one turn of the loop, and wait for their delivery."""
        outcomes = await asyncio.gather(*map(self.publish_one, drafts))
        await self.settle()
        return list(outcomes)

    async def publish_one(self, draft: Draft) -> str:
        try:
            receipt = await self.hub.publish(
                draft.data,
                topic=draft.topic,
                event=draft.event,
                to=draft.to or None,
                exclude=draft.exclude or None,
                idempotency_key=draft.key,
            )
        except SSEAppError as error:
            return type(error).__name__
        return f"{receipt.id} for {receipt.subscribers}"

    async def settle(self) -> bytes:
        """Wait until all work of the hub is done. Return the last bytes that every stream then has; b"" on virtual
        time, where streams are read without such a mark.
        """
        await asyncio.sleep(MOMENT)
        return b""

    async def pass_time(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def top(self) -> str:
        return str((await self.hub.stats())["top"])

    async def cursor(self, asked: StreamRequest) -> str | None:
        if not isinstance(asked.after, Cursor):
            return asked.after
        epoch, _, offset = (await self.top()).partition("-")
        return f"{asked.after.epoch or epoch}-{max(0, int(offset) - asked.after.back)}"

    async def open(self, asked: StreamRequest) -> Answer:
        since = None if asked.since is None else self.around.wall() - asked.since
        stack = AsyncExitStack()
        subscription = self.hub.subscribe(
            *asked.topics, after=await self.cursor(asked), last=asked.last, since=since, client=asked.client
        )
        try:
            stream = await stack.enter_async_context(subscription)
        except SSEAppError as error:
            return Answer([type(error).__name__])
        return Answer([], self.client_stream(stream, stack))

    def client_stream(self, stream: "Readable", stack: AsyncExitStack) -> ClientStream:
        return ReadStream(stream, stack)

    async def head(self, asked: StreamRequest) -> list[str]:
        raise NotImplementedError("a hub has no HEAD")


class Readable(Protocol):
    async def read(self) -> bytes: ...


@dataclass
class ReadStream:
    """A stream that is read with ``read``, as long as something is there at once."""

    stream: Readable
    stack: AsyncExitStack

    async def take(self, settled: bytes) -> bytes:
        data = bytearray()
        with suppress(TimeoutError):
            async with asyncio.timeout(MOMENT):
                while piece := await self.stream.read():
                    data += piece
        return bytes(data)

    async def rest(self) -> bytes:
        data = bytearray()
        while piece := await self.stream.read():
            data += piece
        return bytes(data)

    async def close(self) -> None:
        await self.stack.aclose()
