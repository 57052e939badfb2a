"""A large fan-out lets the loop turn between its slices, and that reorders, loses and doubles nothing."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sse_app import delivery
from sse_app.batch import Batch
from sse_app.delivery import SLICE
from sse_app.events import EventDecoder
from sse_app.joining import StreamRequest
from sse_app.node import Node
from sse_app.publication import Draft, Position
from sse_app.subscriber import CloseReason, Subscriber
from sse_app.testing import run_virtual
from tests.support.nodes import node_on
from tests.support.paths import fixed_broker
from tests.support.peers import turns

ENDLESS = 3_600.0  # seconds between heartbeats: none comes within a test
MANY = 5_000


@dataclass
class Sink:
    """A writer that always has room; ``seen`` has the batches."""

    on_write: Callable[[Batch], None] = lambda batch: None
    seen: list[Batch] = field(default_factory=list)

    def write(self, batch: Batch) -> bool:
        self.seen.append(batch)
        self.on_write(batch)
        return True

    def end(self, farewell: bytes = b"") -> None:
        pass

    @property
    def offsets(self) -> list[int]:
        events = EventDecoder().feed(b"".join(batch.data for batch in self.seen))
        ids = [Position.parse((event.id or "").encode()) for event in events if event.type == "message"]
        return [id.offset for id in ids if id is not None]


async def join(node: Node, *topics: str, sink: Sink | None = None) -> Sink:
    sink = sink or Sink()
    (await node.join(StreamRequest.parse(topics))).attach(sink)
    return sink


class Turns:
    """Counts the turns of the loop within its block."""

    def __init__(self) -> None:
        self.count = 0
        self._over = False

    def __enter__(self) -> "Turns":
        asyncio.get_running_loop().call_soon(self._turn)
        return self

    def __exit__(self, *error: object) -> None:
        self._over = True

    def _turn(self) -> None:
        self.count += 1
        if not self._over:
            asyncio.get_running_loop().call_soon(self._turn)


@pytest.mark.virtual_time
@pytest.mark.parametrize("filters", [1, 10, MANY], ids=["one group", "ten groups", "a group for each"])
async def test_a_fan_out_to_thousands_lets_the_loop_turn_after_each_slice(filters: int) -> None:
    async with node_on(fixed_broker(), heartbeat=ENDLESS) as node:
        written: dict[int, int] = {}
        with Turns() as loop:

            def count(batch: Batch) -> None:
                written[loop.count] = written.get(loop.count, 0) + 1

            sinks = [await join(node, f"t/{number % filters}") for number in range(MANY)]
            for sink in sinks:
                sink.on_write = count
            await node.publish(Draft.compose("to everyone"))
            await turns(3 * MANY // SLICE + 10)
        assert [sink.offsets for sink in sinks] == [[1]] * MANY
        assert sum(written.values()) == MANY
        assert max(written.values()) <= SLICE
        assert len(written) >= MANY // SLICE


@pytest.mark.virtual_time
async def test_a_small_fan_out_is_done_in_one_turn() -> None:
    async with node_on(fixed_broker(), heartbeat=ENDLESS) as node:
        sinks = [await join(node) for _ in range(SLICE)]
        await node.publish(Draft.compose("to everyone"))
        await turns(4)
        assert [sink.offsets for sink in sinks] == [[1]] * SLICE


@pytest.mark.virtual_time
async def test_publications_that_come_between_two_slices_come_after_it_to_everyone() -> None:
    async with node_on(fixed_broker(), heartbeat=ENDLESS) as node:
        sinks = [await join(node) for _ in range(MANY)]
        for _ in range(20):
            await node.publish(Draft.compose("x"))
            await turns(2)  # fewer than a fan-out takes
        await turns(100)
        assert [sink.offsets for sink in sinks] == [[*range(1, 21)]] * MANY
        assert max(len(sink.seen) for sink in sinks) < 20  # publications of the meantime are joined


@pytest.mark.virtual_time
async def test_cursors_are_moved_without_holding_up_the_loop() -> None:
    """All of a large hub's quiet streams fall behind at the same time."""
    async with node_on(fixed_broker(history=120), heartbeat=ENDLESS) as node:
        written: dict[int, int] = {}
        with Turns() as loop:

            def count(batch: Batch) -> None:
                written[loop.count] = written.get(loop.count, 0) + 1

            sinks = [await join(node, "quiet") for _ in range(MANY)]
            for sink in sinks:
                sink.on_write = count
            for _ in range(100):
                await node.publish(Draft.compose("x", topic="loud"))
            await turns(50)
        assert all(len(sink.seen) == 2 and b"event: cursor" in sink.seen[1].data for sink in sinks)
        assert max(written.values()) <= SLICE


# Any interleaving


@dataclass
class Client:
    subscriber: Subscriber
    sink: Sink
    joined: int  # the offset of the newest publication before it joined
    here: bool = True


actions = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), st.integers(1, 3)),
        st.tuples(st.just("turn"), st.integers(1, 4)),
        st.tuples(st.just("join"), st.integers(0, 2)),
        st.tuples(st.just("leave"), st.integers(0, 30)),
        st.tuples(st.just("stall"), st.integers(0, 30)),
        st.tuples(st.just("resume"), st.integers(0, 30)),
    ),
    max_size=60,
)
FILTERS: tuple[tuple[str, ...], ...] = ((), ("a",), ("b",))


class Room(Sink):
    """A socket that may be full."""

    def __init__(self, subscriber: Subscriber) -> None:
        super().__init__()
        self.subscriber, self.full, self.waits = subscriber, False, False

    def write(self, batch: Batch) -> bool:
        assert not self.waits, "written to a full socket"
        super().write(batch)
        self.waits = self.full
        return not self.full


async def interleave(actions: list[tuple[str, int]]) -> None:
    async with node_on(fixed_broker(), heartbeat=ENDLESS, queue_size=3) as node:
        clients: list[Client] = []
        published: list[str] = []
        for name, value in actions:
            match name:
                case "publish":
                    published.append("ab"[value % 2] if value < 3 else "")
                    await node.publish(Draft.compose("x", topic=published[-1] or None))
                case "turn":
                    await turns(value)
                case "join":
                    subscriber = await node.join(StreamRequest.parse(FILTERS[value]))
                    clients.append(Client(subscriber, Room(subscriber), len(published)))
                    subscriber.attach(clients[-1].sink)
                case _ if clients:
                    act(node, name, clients[value % len(clients)])
        for client in clients:
            act(node, "resume", client)
        await turns(200)
        for client in clients:
            wanted = [
                offset
                for offset, topic in enumerate(published, 1)
                if offset > client.joined and (not topic or client.subscriber.filter.matches((topic,)))
            ]
            got = client.sink.offsets
            assert got == (wanted if client.here else wanted[: len(got)])


def act(node: Node, name: str, client: Client) -> None:
    sink = client.sink
    assert isinstance(sink, Room)
    match name:
        case "leave" if client.here:
            client.here = False
            node.leave(client.subscriber, CloseReason.GONE)
        case "stall":
            sink.full = True
        case "resume":
            sink.full = False
            if sink.waits:
                sink.waits = False
                client.subscriber.resume()


@given(actions=actions, slice=st.integers(1, 3))
def test_whoever_comes_goes_or_stalls_between_slices_gets_everything_once_and_in_order(
    actions: list[tuple[str, int]], slice: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delivery, "SLICE", slice)
        run_virtual(interleave(actions))
