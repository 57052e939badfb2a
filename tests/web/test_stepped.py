"""The stepped writer, over sends that end at once, that wait, that wait in unusual ways, that fail or never end."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager

import pytest
from starlette.types import Message, Send

from sse_app.events import EventDecoder
from sse_app.joining import StreamRequest
from sse_app.node import Node
from sse_app.publication import Draft
from sse_app.web.stream import EventStream
from tests.support.nodes import node_on
from tests.support.paths import both_loops, fixed_broker
from tests.support.peers import PATIENCE, turns, until

pytestmark = both_loops

Wait = Callable[[], Awaitable[object]]


class Peer:
    """One client of an ASGI server, with its ``send`` and ``receive``."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.sent: list[Message] = []
        self.sending = 0
        self.gone = asyncio.Event()
        self.before: Wait = turns_none  # each send of a body awaits this first

    async def send(self, message: Message) -> None:
        assert self.sending == 0, "two sends at a time"
        self.sending += 1
        try:
            if message["type"] == "http.response.body":
                await self.before()
            self.sent.append(message)
        finally:
            self.sending -= 1

    async def receive(self) -> Message:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def run(self, send: Send | None = None) -> None:
        scope = {"type": "http", "method": "GET", "headers": [], "http_version": "1.1"}
        await EventStream(self.node, StreamRequest.parse(client="c"))(scope, self.receive, send or self.send)

    @property
    def data(self) -> list[str]:
        body = b"".join(message.get("body", b"") for message in self.sent)
        return [event.data if event.type == "message" else event.type for event in EventDecoder().feed(body)]

    @property
    def complete(self) -> bool:
        return self.sent[-1]["type"] == "http.response.body" and not self.sent[-1]["more_body"]


async def turns_none() -> None:
    pass


@asynccontextmanager
async def connected(node: Node) -> AsyncIterator[tuple[Peer, asyncio.Task[None]]]:
    """A peer with its welcome."""
    peer = Peer(node)
    task = asyncio.create_task(peer.run())
    try:
        await until(lambda: peer.data == ["welcome"])
        yield peer, task
        async with asyncio.timeout(PATIENCE):
            await task
    finally:
        task.cancel()


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with node_on(fixed_broker(), heartbeat=3600, drain=PATIENCE) as node:
        yield node


def tasks() -> int:
    return len(asyncio.all_tasks())


async def publish(node: Node, *data: str) -> None:
    for item in data:
        await node.publish(Draft.compose(item))
        await turns(8)


async def test_what_the_socket_takes_is_sent_in_the_delivery_loop_itself(node: Node) -> None:
    async with connected(node) as (peer, _):
        before = tasks()
        for number in range(100):
            await publish(node, str(number))
            assert (tasks(), peer.data[-1]) == (before, str(number))
        peer.gone.set()


async def test_while_a_send_waits_the_rest_is_queued_and_then_goes_out_in_one_piece(node: Node) -> None:
    async with connected(node) as (peer, _):
        room = asyncio.Event()
        peer.before = room.wait
        before = tasks()
        await publish(node, "1", "2", "3")
        assert (peer.data, tasks()) == (["welcome"], before + 1)
        room.set()
        await turns(5)
        assert (peer.data, tasks()) == (["welcome", "1", "2", "3"], before)
        assert len(peer.sent) == 5  # the head, the empty first piece, the welcome, 1, and 2 with 3
        peer.gone.set()


class Bare:
    """An awaitable that yields None so many times, as asyncio.sleep(0) does once."""

    def __init__(self, times: int) -> None:
        self.times = times

    def __await__(self) -> Generator[None, None, str]:
        for _ in range(self.times):
            yield
        return "done"


async def a_future() -> None:
    future = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(future.set_result, 7)
    assert await future == 7


async def a_finished_future() -> None:
    future = asyncio.get_running_loop().create_future()
    future.set_result(7)
    assert await future == 7


async def a_failed_future() -> None:
    future = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(future.set_exception, LookupError())
    with pytest.raises(LookupError):
        await future


async def a_task() -> None:
    await asyncio.create_task(a_future())


async def many() -> None:
    assert await Bare(2) == "done"
    await asyncio.gather(a_future(), a_task(), Bare(3).__class__(1))
    await a_failed_future()
    await asyncio.wait_for(a_future(), PATIENCE)
    await Bare(1)


async def a_lock() -> None:
    lock = asyncio.Lock()
    await lock.acquire()
    asyncio.get_running_loop().call_soon(lock.release)
    async with lock:
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    "wait", [lambda: Bare(1), lambda: Bare(5), a_future, a_finished_future, a_failed_future, a_task, a_lock, many]
)
async def test_a_send_may_wait_for_whatever_a_coroutine_can(node: Node, wait: Wait) -> None:
    async with connected(node) as (peer, _):
        peer.before = wait
        await publish(node, *map(str, range(20)))
        await until(lambda: len(peer.data) == 21)
        assert peer.data == ["welcome", *map(str, range(20))]
        peer.gone.set()


async def gone() -> None:
    raise OSError


async def gone_later() -> None:
    await asyncio.sleep(0)
    raise OSError


async def broken() -> None:
    raise ZeroDivisionError


async def cancelled() -> None:
    await asyncio.sleep(0)
    raise asyncio.CancelledError


def once(peer: Peer, fails: Wait) -> Wait:
    async def fail() -> None:
        peer.before = turns_none
        await fails()

    return fail


@pytest.mark.parametrize("fails", [gone, gone_later, broken, cancelled])
async def test_a_send_that_fails_ends_its_stream_and_no_other(node: Node, fails: Wait) -> None:
    async with connected(node) as (other, _):
        async with connected(node) as (peer, task):
            peer.before = once(peer, fails)
            await publish(node, "1")
            async with asyncio.timeout(PATIENCE):
                await task
            assert (node.totals.subscribers, peer.data) == (1, ["welcome"])
        await publish(node, "2")
        assert other.data == ["welcome", "1", "2"]
        other.gone.set()


async def test_a_stream_ends_after_everything_that_waited_for_its_socket(node: Node) -> None:
    async with connected(node) as (peer, task):
        room = asyncio.Event()
        peer.before = room.wait
        await publish(node, "1", "2", "3")
        drain = asyncio.create_task(node.drain())
        await turns(10)
        assert not task.done()
        room.set()
        async with asyncio.timeout(PATIENCE):
            await drain
        assert peer.data == ["welcome", "1", "2", "3", "bye"]
        assert peer.complete


async def test_a_stream_whose_bye_has_to_wait_ends_after_it(node: Node) -> None:
    async with connected(node) as (peer, task):
        room = asyncio.Event()
        peer.before = room.wait
        drain = asyncio.create_task(node.drain())
        await turns(10)
        assert (task.done(), peer.data) == (False, ["welcome"])
        room.set()
        async with asyncio.timeout(PATIENCE):
            await drain
        assert peer.data == ["welcome", "bye"]
        assert peer.complete


@pytest.mark.parametrize("when", range(8))
async def test_a_peer_that_goes_while_its_bye_waits_ends_its_stream_and_not_the_hub(node: Node, when: int) -> None:
    async with connected(node) as (peer, _):
        went = asyncio.get_running_loop().create_future()

        async def until_it_goes() -> None:
            await went

        peer.before = until_it_goes
        for subscriber in node._delivery:
            subscriber.close("drain", b"data: bye\n\n")  # type: ignore[arg-type]
        await until(lambda: peer.sending == 1)
        await turns(when)
        went.set_exception(OSError())
        peer.before = turns_none
    assert node.totals.subscribers == 0
    await publish(node, "the hub goes on")


async def test_a_client_that_leaves_while_its_send_waits_leaves_no_task(node: Node) -> None:
    before = tasks()
    async with connected(node) as (peer, _):
        peer.before = asyncio.Event().wait  # for ever
        await publish(node, "1", "2")
        peer.gone.set()
    await turns(5)
    assert (node.totals.subscribers, tasks(), peer.sending) == (0, before, 0)


async def test_a_request_that_is_cancelled_while_its_send_waits_leaves_no_task(node: Node) -> None:
    before = tasks()
    peer = Peer(node)
    peer.before = asyncio.Event().wait
    task = asyncio.create_task(peer.run())
    await until(lambda: peer.sending == 1 and len(peer.sent) == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await turns(5)
    assert (node.totals.subscribers, tasks(), peer.sending) == (0, before, 0)


@pytest.mark.parametrize("published", [0, 2])
async def test_a_hub_that_is_closed_ends_a_stream_whose_send_waits(published: int) -> None:
    async with node_on(fixed_broker(), heartbeat=3600) as node:
        peer = Peer(node)
        task = asyncio.create_task(peer.run())
        await until(lambda: peer.data == ["welcome"])
        room = asyncio.Event()
        peer.before = room.wait
        await publish(node, *map(str, range(published)))
    room.set()
    async with asyncio.timeout(PATIENCE):
        await task
    assert (node.totals.subscribers, peer.complete) == (0, True)


async def impatient() -> None:
    async with asyncio.timeout(0.001):
        await asyncio.Event().wait()


async def test_a_send_with_a_deadline_of_its_own_ends_its_stream_and_not_the_hub(node: Node) -> None:
    async with connected(node) as (peer, task):
        peer.before = once(peer, impatient)
        await publish(node, "1")
        await asyncio.wait([task, *node._running], return_when=asyncio.FIRST_COMPLETED)
        assert task.done()


@pytest.mark.parametrize("end", ["gone", "drained"])
async def test_a_send_that_needs_a_task_gets_one(node: Node, end: str) -> None:
    """A middleware may have a deadline around every send, which needs a task."""
    peer = Peer(node)
    peer.before = patient
    task = asyncio.create_task(peer.run())
    await until(lambda: peer.data == ["welcome"])
    await publish(node, "1", "2")
    await until(lambda: peer.data == ["welcome", "1", "2"])
    if end == "gone":
        peer.gone.set()
    else:
        await node.drain()
    async with asyncio.timeout(PATIENCE):
        await task
    assert (node.totals.subscribers, peer.complete, peer.data[-1]) == (
        0,
        end == "drained",
        "bye" if end == "drained" else "2",
    )


async def patient() -> None:
    async with asyncio.timeout(PATIENCE):
        await asyncio.sleep(0)


async def test_a_peer_that_is_gone_is_no_mistake_of_ours_where_a_send_needs_a_task(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    peer = Peer(node)
    peer.before = patient
    task = asyncio.create_task(peer.run())
    await until(lambda: peer.data == ["welcome"])
    peer.before = gone
    await publish(node, "1")
    async with asyncio.timeout(PATIENCE):
        await task
    assert (node.totals.subscribers, node.totals.closed, caplog.records) == (0, {"gone": 1}, [])


async def test_a_deadline_that_strikes_while_a_stream_catches_up_ends_it_and_not_the_hub() -> None:
    """Only the send of the pages from the log takes longer than the deadline."""
    slow = asyncio.Event()

    async def late() -> None:
        async with asyncio.timeout(0.001):
            await slow.wait()

    async with node_on(fixed_broker(), heartbeat=3600, queue_size=1) as node, connected(node) as (peer, task):
        room = asyncio.Event()
        peer.before = room.wait
        await publish(node, "1", "2", "3", "4")
        assert node.totals.overflows == 1
        peer.before = once(peer, late)
        (subscriber,) = node._delivery
        room.set()
        await until(lambda: subscriber._writer is None)
        slow.set()
        async with asyncio.timeout(PATIENCE):
            await task
        assert (node.totals.subscribers, peer.complete) == (0, True)
        await publish(node, "the hub goes on")
