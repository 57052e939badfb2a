"""The client loses and doubles nothing, whatever happens to its connections and its server."""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import count as numbers
from random import Random

import httpx2
import pytest

from sse_app import Client, client
from sse_app.client import Stream, stream
from sse_app.errors import Gap
from tests.chaos.conftest import Serve, count
from tests.chaos.proxy import Limit, proxy_to
from tests.support.web import live_hub

END = "the end"


class Scissors:
    """Cuts each connection somewhere within the first so many bytes of its answer, the head included."""

    def __init__(self, seed: int, *, within: int, cuts: int) -> None:
        self.cuts, self.enough = 0, cuts
        self._random, self._within = Random(seed), within

    @property
    def done(self) -> bool:
        return self.cuts >= self.enough

    def __iter__(self) -> Iterator[Limit]:
        while not self.done:
            yield partial(self._limit, self._random.randint(1, self._within))

    def _limit(self, end: int, seen: bytes) -> int:
        self.cuts += len(seen) >= end
        return end


@asynccontextmanager
async def numbers_published(publish: Callable[[str], Awaitable[object]]) -> AsyncIterator[list[str]]:
    """Publish the numbers from 1 on while the block lasts, then an end. The list has what was acknowledged."""
    acknowledged: list[str] = []

    async def run() -> None:
        for number in numbers(1):
            if done:
                break
            await publish(str(number))
            acknowledged.append(str(number))
        await publish(END)

    done = False
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(run())
        yield acknowledged
        done = True


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the client's waits: a thousand reconnects after 2 to 5 s each would take an hour."""
    monkeypatch.setattr(stream, "RETRY", (0.001, 0.003))
    for module in (client, stream):
        monkeypatch.setattr(module, "BACKOFF", (0.001, 0.003))


@pytest.mark.usefixtures("impatient")
async def test_a_thousand_cuts_anywhere_lose_and_double_nothing() -> None:
    number = count(ci=100, full=1_000)
    listening = Scissors(1, within=2_000, cuts=number)
    publishing = Scissors(2, within=1_000, cuts=number)
    received: list[str | None] = []
    with live_hub(retry_min=0.001, retry_max=0.003) as server:
        async with (
            proxy_to(server.port, listening) as down,
            proxy_to(server.port, publishing) as up,
            Client(f"http://127.0.0.1:{down.port}") as listener,
            Client(f"http://127.0.0.1:{up.port}") as publisher,
        ):
            events = listener.listen("cut", last=10_000)  # all, while no connection has lived long enough for a cursor
            async with numbers_published(partial(publisher.publish, topic="cut")) as acknowledged:
                while not (listening.done and publishing.done):
                    received.append((await anext(events)).data)
            while received[-1] != END:
                received.append((await anext(events)).data)
        published = server.hub.node.totals.published
    print(f"{len(received)} events")
    assert received == [*acknowledged, END]
    assert published == len(received)


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM])
async def test_a_new_log_is_told_once_and_all_of_it_comes(serve: Serve, sign: signal.Signals) -> None:
    server = serve()
    came: list[str | None] = []
    expected: list[str | None] = []

    def on_gap(gap: Gap) -> None:
        came.append(gap.reason)

    async with Client(f"http://127.0.0.1:{server.port}") as client:
        events = client.listen(on_gap=on_gap, last=100)
        await client.publish("before")
        came.append((await anext(events)).data)
        for life in range(count(ci=1, full=10)):
            server.process.send_signal(sign)
            reading = asyncio.ensure_future(anext(events))
            await server.exit_code()
            early = asyncio.ensure_future(client.publish(f"early in life {life}"))  # before the server listens
            server = serve(port=server.port)
            await early
            await client.publish(f"later in life {life}")
            came += [(await reading).data, (await anext(events)).data]
            expected += ["epoch", f"early in life {life}", f"later in life {life}"]
    assert came == ["before", *expected]


async def test_a_server_that_stands_still_is_noticed_and_nothing_is_lost(serve: Serve) -> None:
    server = serve("--heartbeat", "100ms")
    stalled = asyncio.Event()

    def note(stream: Stream) -> None:
        if isinstance(stream.error, httpx2.ReadTimeout):
            stalled.set()

    async with Client(f"http://127.0.0.1:{server.port}", heartbeat=0.3) as client:
        events = client.listen(last=10, on_state=note)
        for data in ("before", "last before"):
            await client.publish(data)
            assert (await anext(events)).data == data
        server.process.send_signal(signal.SIGSTOP)
        reading = asyncio.ensure_future(anext(events))
        await stalled.wait()
        posting = asyncio.ensure_future(client.publish("in between"))
        server.process.send_signal(signal.SIGCONT)
        await posting
        await client.publish("after")
        assert [(await reading).data, (await anext(events)).data] == ["in between", "after"]
