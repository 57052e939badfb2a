"""Expiry: streams whose grants end, by a wall clock that may jump."""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sse_app.brokers.memory import MemoryBroker
from sse_app.delivery import END, OFFER, SLICE
from sse_app.events import EventDecoder
from sse_app.expiry import Expiry
from sse_app.grants import Grant
from sse_app.metrics import Totals
from sse_app.node import Node
from sse_app.publication import Draft, Position
from sse_app.subscriber import CloseReason, Subscriber
from sse_app.topics import TopicFilter
from tests.support.nodes import data_of, node_on, subscribed
from tests.support.peers import PATIENCE, Clock, Socket, datas

BEGIN = 1_700_000_000.0  # Unix time
BROKER, TOTALS = MemoryBroker(), Totals()


def stream(expires: float | None) -> Subscriber:
    grant = Grant(subscribe=TopicFilter(), expires=expires)
    return Subscriber(BROKER, TOTALS, TopicFilter(), "c", (10, 1_000), grant=grant)


class Wheel:
    """An Expiry on a clock of its own; ``ended`` has the subscribers in the order of their ends."""

    def __init__(self, max_age: float | None = None) -> None:
        self.clock = Clock(BEGIN)
        self.expiry = Expiry(lambda subscriber: None, max_age=max_age, wall=self.clock)

    def add(self, expires: float | None) -> Subscriber:
        subscriber = stream(expires)
        self.expiry.add(subscriber)
        return subscriber

    def at(self, seconds: float) -> list[Subscriber]:
        self.clock.now = BEGIN + seconds
        return self.expiry.take_due()


@pytest.mark.parametrize(("expires", "before", "then"), [(5.0, 4.99, 5.0), (5.01, 5.99, 6.0), (4.5, 4.9, 5.1)])
def test_a_stream_ends_within_a_second_after_its_grant_and_not_before(
    expires: float, before: float, then: float
) -> None:
    wheel = Wheel()
    subscriber = wheel.add(BEGIN + expires)
    assert wheel.at(before) == []
    assert wheel.at(then) == [subscriber]
    assert wheel.at(then + 1) == []
    assert len(wheel.expiry) == 0


def test_a_stream_that_has_left_is_not_ended() -> None:
    wheel = Wheel()
    gone, there, never = wheel.add(BEGIN + 5), wheel.add(BEGIN + 5), wheel.add(None)
    for subscriber in (gone, never, gone):
        wheel.expiry.remove(subscriber)
    assert wheel.at(10) == [there]
    wheel.expiry.remove(there)
    assert len(wheel.expiry) == 0


@pytest.mark.parametrize(("expires", "ends"), [(None, 100), (50.0, 50), (1_000.0, 100)])
def test_no_stream_is_older_than_the_longest_age(expires: float | None, ends: float) -> None:
    wheel = Wheel(max_age=100)
    subscriber = wheel.add(None if expires is None else BEGIN + expires)
    assert wheel.at(ends - 1) == []
    assert wheel.at(ends) == [subscriber]


def test_a_clock_that_is_set_forward_ends_all_that_has_expired_by_it() -> None:
    wheel = Wheel()
    first, second, third = wheel.add(BEGIN + 5), wheel.add(BEGIN + 86_400), wheel.add(BEGIN + 90_000)
    assert wheel.at(86_401) == [first, second]
    assert wheel.at(90_001) == [third]


def test_a_clock_that_is_set_back_is_followed() -> None:
    wheel = Wheel()
    wheel.at(1_000)
    early = wheel.add(BEGIN + 1_500)
    wheel.clock.now = BEGIN + 100
    added_before_it_is_read = wheel.add(BEGIN + 150)
    assert wheel.at(100) == []
    added_after = wheel.add(BEGIN + 120)
    assert wheel.at(121) == [added_after]
    assert wheel.at(151) == [added_before_it_is_read]
    assert wheel.at(1_499) == []
    assert wheel.at(1_500) == [early]


def test_a_grant_that_has_expired_when_its_stream_begins_ends_it_in_the_next_second() -> None:
    wheel = Wheel()
    wheel.at(10.5)
    late = wheel.add(BEGIN + 3)
    assert wheel.at(10.9) == []
    assert wheel.at(11) == [late]


class CountedDict(dict[int, set[Subscriber]]):
    """A dict that counts look-ups by which seconds are taken."""

    look_ups = 0

    def pop(self, key: int, default: object = None) -> set[Subscriber]:
        self.look_ups += 1
        return super().pop(key, set())


def test_a_look_takes_as_many_steps_as_seconds_have_passed_or_are_held() -> None:
    wheel = Wheel()
    due = wheel.expiry._due = CountedDict()
    for number in range(1, 1_001):
        wheel.add(BEGIN + 1_000_000 + number)
    wheel.at(1)
    assert due.look_ups == 1
    wheel.at(1_000_000)
    assert due.look_ups == 1  # all that is held was looked through, and nothing of it taken
    assert len(wheel.at(2_000_000)) == 1_000
    assert due.look_ups == 1_001


steps = st.one_of(
    st.tuples(st.just("add"), st.integers(0, 60)),
    st.tuples(st.just("jump"), st.integers(-50, 50)),
    st.tuples(st.just("remove"), st.integers(0, 100)),
)


@given(st.lists(steps, max_size=40))
def test_whatever_the_clock_does_each_stream_ends_once_in_the_first_look_after_its_grant(
    story: list[tuple[str, int]],
) -> None:
    wheel = Wheel()
    open_ones = dict[Subscriber, float]()
    for what, number in story:
        if what == "add":
            open_ones[wheel.add(wheel.clock.now + number)] = wheel.clock.now + number
        elif what == "remove" and open_ones:
            subscriber = list(open_ones)[number % len(open_ones)]
            del open_ones[subscriber]
            wheel.expiry.remove(subscriber)
        else:
            taken = wheel.at(wheel.clock.now - BEGIN + number)
            assert len(set(taken)) == len(taken)
            # One that had expired when it was added, or when the clock was set back, may have a second more.
            assert {one for one, expires in open_ones.items() if expires <= wheel.clock.now - 1} <= set(taken)
            assert all(open_ones.pop(one) <= wheel.clock.now for one in taken)
        assert len(wheel.expiry) == len(open_ones)


# In a node, on virtual time


def wall_of_loop() -> Callable[[], float]:
    loop = asyncio.get_running_loop()
    return lambda: BEGIN + loop.time()


def expiring(seconds: float) -> Grant:
    return Grant(subscribe=TopicFilter(), expires=wall_of_loop()() + seconds)


async def publish_until(node: Node, end: float, pause: float) -> None:
    """Publish the time at which it is, again and again."""
    time = asyncio.get_running_loop().time
    while time() < end:
        await node.publish(Draft.compose(str(time())))
        await asyncio.sleep(pause)


@pytest.mark.virtual_time
@pytest.mark.parametrize("room", [None, 1, 3, 1_000_000], ids=["read", "stalled", "slow", "written"])
@pytest.mark.parametrize("pause", [3.0, 0.01], ids=["quiet", "busy"])
async def test_a_stream_gets_a_bye_when_its_grant_expires_and_nothing_after_it(room: int | None, pause: float) -> None:
    begun = asyncio.get_running_loop().time()
    async with (
        node_on(MemoryBroker(history=1_000), wall=wall_of_loop(), queue_size=20) as node,
        subscribed(node, grant=expiring(5.5)) as subscriber,
        asyncio.TaskGroup() as tasks,
    ):
        tasks.create_task(publish_until(node, begun + 10.0, pause))
        if room is None:
            body = b""
            while data := await subscriber.read():
                body += data
        else:
            socket = Socket(room)
            subscriber.attach(socket)
            while not socket.ended:
                await asyncio.sleep(0.5)
                if not socket.room:
                    socket.room = room
                    subscriber.resume()
            body = socket.sent
        assert 5.5 <= asyncio.get_running_loop().time() - begun <= 7.0
        *events, bye = EventDecoder().feed(body)
        assert (bye.type, data_of(bye)["reason"]) == ("bye", "expired")
        assert 2_000 <= data_of(bye)["retry"] <= 5_000
        assert all(float(text) < begun + 6.5 for text in datas(events))
    assert node.totals.closed == {"expired": 1}
    assert len(node._expiry) == 0


@pytest.mark.virtual_time
async def test_a_grant_that_expires_in_the_middle_of_a_long_replay_ends_it() -> None:
    async with node_on(MemoryBroker(), wall=wall_of_loop()) as node:
        for number in range(5_000):
            await node.publish(Draft.compose(str(number)))
        async with subscribed(node, after=Position("other", 0), grant=expiring(2.0)) as subscriber:
            body = b""
            async with asyncio.timeout(PATIENCE):
                while data := await subscriber.read():
                    body += data
                    await asyncio.sleep(0.25)  # twenty pages take five seconds
        events = EventDecoder().feed(body)
        assert data_of(events[-1])["reason"] == "expired"
        assert 0 < len(datas(events)) < 5_000
        assert datas(events) == [str(number) for number in range(len(datas(events)))]


@pytest.mark.virtual_time
async def test_streams_of_an_open_node_have_no_end_to_wait_for() -> None:
    async with node_on(MemoryBroker(), wall=wall_of_loop()) as node, subscribed(node) as subscriber:
        await asyncio.sleep(100_000)
        assert (len(node._expiry), subscriber.ends_at, subscriber.closing) == (0, None, None)


@pytest.mark.virtual_time
async def test_a_node_that_wants_credentials_again_ends_every_stream_in_time() -> None:
    async with node_on(MemoryBroker(), wall=wall_of_loop(), auth_max_age=60.0) as node:
        async with subscribed(node) as own, subscribed(node, grant=Grant(subscribe=TopicFilter())) as subscriber:
            await asyncio.sleep(59)
            assert subscriber.closing is None
            await asyncio.sleep(2)
            assert subscriber.closing is CloseReason.EXPIRED
            assert len(node._expiry) == 0
            assert own.closing is None
        assert node.totals.closed == {"expired": 1, "gone": 1}


@pytest.mark.virtual_time
async def test_streams_that_expire_together_all_end() -> None:
    """As after a start at which everyone came back at once."""
    async with node_on(MemoryBroker(), wall=wall_of_loop()) as node, AsyncExitStack() as stack:
        grant = expiring(5.0)
        streams = [await stack.enter_async_context(subscribed(node, grant=grant)) for _ in range(2 * SLICE + 1)]
        await asyncio.sleep(7)
        assert all(stream.closing is CloseReason.EXPIRED for stream in streams)


@pytest.mark.virtual_time
async def test_no_step_ends_more_streams_than_its_time_allows() -> None:
    steps = [0]  # streams that ended in each turn of the loop
    loop, clock = asyncio.get_running_loop(), wall_of_loop()

    def end(_: Subscriber) -> None:
        if not steps[-1]:
            loop.call_soon(steps.append, 0)
        steps[-1] += 1

    expiry = Expiry(end, max_age=None, wall=clock)
    for _ in range(SLICE):
        expiry.add(stream(clock() + 5.0))
    running = asyncio.create_task(expiry.run())
    await asyncio.sleep(7)
    running.cancel()
    assert sum(steps) == SLICE
    assert max(steps) * END <= SLICE * OFFER
