"""Plays the script of a history, and writes down what every client received."""

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

from sse_app import EventDecoder
from sse_app.testing import run_virtual
from tests.support.corpus.app_stage import AppStage
from tests.support.corpus.chance import Surroundings, without_chance
from tests.support.corpus.scripts import (
    Close,
    Head,
    Open,
    Publish,
    Read,
    Resume,
    Script,
    Step,
    Stop,
    StreamRequest,
    Wait,
    Way,
    script,
)
from tests.support.corpus.stages import ClientStream, Stage
from tests.support.corpus.threaded import FileStage, SocketStage
from tests.support.corpus.transcript import Transcript, lines_of, shortened

STAGES: dict[Way, type[Stage]] = {Way.HUB: Stage, Way.APP: AppStage, Way.FILE: FileStage, Way.SOCKET: SocketStage}


def play(number: int) -> str:
    """The transcript of this history."""
    history = script(number)
    run = run_virtual if history.way in (Way.HUB, Way.APP) else asyncio.run
    with without_chance() as around:
        return around.plain(run(_Play(history, around).run()))


@dataclass
class _Client:
    """A client with an open stream, and the position with which the client would resume."""

    asked: StreamRequest
    stream: ClientStream
    decoder: EventDecoder = field(default_factory=EventDecoder)


class _Play:
    def __init__(self, script: Script, around: Surroundings) -> None:
        self.script, self.around = script, around
        self.stage = STAGES[script.way](script, around)
        self.clients: dict[str, _Client] = {}
        self.away: dict[str, _Client] = {}
        title = f"history {script.number} {script.way.value} log={script.log} hub={script.hub}"
        self.transcript = Transcript(title)

    async def run(self) -> str:
        await self.stage.start()
        try:
            for step in self.script.steps:
                self.transcript.begin(described(step))
                await self.take(step)
            self.transcript.begin("the end")
            await self.stop(None)
        finally:
            await self.stage.close()
        return self.transcript.text()

    async def take(self, step: Step) -> None:
        match step:
            case Publish(drafts):
                self.transcript.add(*await self.stage.publish(drafts))
                self.around.clock.now += 1.0
                self.around.wall.now += 1.0
            case Open(name, asked):
                await self.open(name, asked)
            case Read(name) if name in self.clients:
                await self.read([name])
            case Close(name) if name in self.clients:
                await self.close(name)
            case Resume(name) if name in self.clients | self.away:
                await self.resume(name)
            case Wait(beats, ages, wall):
                self.around.clock.now += ages
                self.around.wall.now += wall
                await self.stage.pass_time(beats)
            case Head(asked):
                self.transcript.add(*await self.stage.head(asked))
            case Stop(window):
                await self.stop(window)
                await self.stage.start()
            case _:
                self.transcript.add("(has no stream)")

    async def open(self, name: str, asked: StreamRequest) -> None:
        answer = await self.stage.open(asked)
        self.transcript.add(*answer.lines)
        if answer.stream is not None:
            self.clients[name] = _Client(asked, answer.stream)

    async def resume(self, name: str) -> None:
        if name in self.clients:
            await self.close(name)
        client = self.away.pop(name)
        await self.open(name, replace(client.asked, after=client.decoder.last_event_id or client.asked.after))

    async def close(self, name: str) -> None:
        self.away[name] = client = self.clients.pop(name)
        await client.stream.close()

    async def read(self, names: Iterable[str]) -> None:
        settled = await self.stage.settle()
        for name in names:
            self.write(name, await self.clients[name].stream.take(settled))

    async def stop(self, window: float | None) -> None:
        if window is not None:
            draining = asyncio.create_task(self.stage.drain(window))
            await self.read_to_the_end()
            await draining
        await self.read(self.clients)
        self.transcript.add(*await self.stage.stop())
        await self.read_to_the_end()

    async def read_to_the_end(self) -> None:
        for name, client in self.clients.items():
            self.write(name, await client.stream.rest())
            await client.stream.close()
        self.clients.clear()

    def write(self, name: str, data: bytes) -> None:
        self.clients[name].decoder.feed(data)
        self.transcript.add(f"-> {name}", *lines_of(data))


def described(step: Step) -> str:
    """The step in one line, without the fields that have their default."""
    return shortened(f"{type(step).__name__.lower()} {' '.join(_parts(step))}".rstrip())


def _parts(value: Any) -> Iterator[str]:
    for item in fields(value):
        given = getattr(value, item.name)
        if given != item.default:
            yield f"{item.name}={_shown(given)}"


def _shown(value: Any) -> str:
    if is_dataclass(value):
        return f"({' '.join(_parts(value))})"
    if isinstance(value, tuple) and value and is_dataclass(value[0]):
        shown = [*map(_shown, value)] if len(value) < 10 else [_shown(value[0]), "...", _shown(value[-1])]
        return " ".join(shown)
    return ascii(value)
