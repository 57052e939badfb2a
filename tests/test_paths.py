"""One stream on every path: for the same history each path sends the bytes of the reference."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sse_app import notices
from sse_app.events import EventDecoder
from sse_app.node import Node
from sse_app.publication import Draft
from sse_app.subscriber import FROM_LOG, CloseReason
from tests.support.nodes import node_on
from tests.support.paths import (
    PATHS,
    Path,
    both_loops,
    every_path,
    fixed_broker,
    reference,
    without_chance,
)
from tests.support.peers import PATIENCE, turns, until

HEADERS = ("content-type: text/event-stream; charset=utf-8", "cache-control: no-store, no-transform")
BIG = "x" * 8_000
TEXT = "é – 日本語 👩‍👩‍👧‍👦"
ENDLESS = 3_600.0  # seconds between heartbeats: none comes within a test

Work = Callable[[Node], Awaitable[None]]


async def nothing(node: Node) -> None:
    pass


@dataclass(frozen=True)
class Story:
    """The publications before and during a stream, and the events that its client has to have at its end."""

    expected: list[str]  # data of the publications, and the types of the hub's own events
    before: Work = nothing
    live: Work = nothing
    target: str = "/"
    cursor: str = ""
    node: dict[str, Any] = field(default_factory=dict)
    log: int = 10_000  # publications that the log holds


class Outcome(NamedTuple):
    body: bytes
    node: Node


async def run_story(story: Story, path: Path) -> Outcome:
    """The body of one stream. Its client reads the welcome, and the rest after the end of the story."""
    async with node_on(
        fixed_broker(history=story.log), **{"heartbeat": ENDLESS, "drain": PATIENCE} | story.node
    ) as node:
        await story.before(node)
        await turns(5)
        headers = f"Last-Event-ID: {story.cursor}\r\n" if story.cursor else ""
        async with path(node, story.target, "GET", headers) as reader:
            await reader.until(b"event: welcome")
            await until(lambda: not any(reader._mode in FROM_LOG for reader in node._delivery), "it is live")
            await story.live(node)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(node.drain())
                await reader.to_the_end()
        assert node.totals.subscribers == 0
    return Outcome(without_chance(reader.body), node)


def gist(body: bytes) -> list[str]:
    events = EventDecoder().feed(body)
    return [event.data if event.type == "message" else event.type for event in events]


def publish(*data: str, **named: Any) -> Work:
    async def work(node: Node) -> None:
        for item in data:
            await node.publish(Draft.compose(item, **named))
            await turns(3)  # each is delivered by itself

    return work


def joined(count: int) -> Work:
    async def work(node: Node) -> None:
        for number in range(count):  # the memory log answers at once, so that the loop does not turn
            await node.publish(Draft.compose(str(number)))
        await turns(5)

    return work


def after_each_other(*work: Work) -> Work:
    async def all_of_it(node: Node) -> None:
        for step in work:
            await step(node)

    return all_of_it


async def beat(node: Node) -> None:
    for subscriber in node._delivery:
        subscriber.beat()
    await turns(3)


async def end(node: Node) -> None:
    await until(lambda: not any(reader._count for reader in node._delivery), "nothing waits that an end would drop")
    for subscriber in node._delivery:
        subscriber.end(CloseReason.REVOKED, notices.bye("revoked", 3_000))


def numbers(first: int, last: int) -> list[str]:
    return [str(number) for number in range(first, last + 1)]


STORIES = {
    "nothing at all": Story(["welcome", "bye"]),
    "an end at once": Story(["welcome", "a", "bye"], live=after_each_other(publish("a"), end, publish("b"))),
    "live": Story(["welcome", "a", "b", "bye"], live=publish("a", "b")),
    "a history that is not asked for": Story(["welcome", "new", "bye"], publish("old"), publish("new")),
    "a resume": Story(["welcome", *numbers(3, 9), "new", "bye"], publish(*numbers(1, 9)), publish("new"), cursor="e-2"),
    "a resume with nothing missed": Story(["welcome", "new", "bye"], publish("1"), publish("new"), cursor="e-1"),
    "a resume over several pages": Story(
        ["welcome", *numbers(1, 1_200), "new", "bye"], publish(*numbers(1, 1_200)), publish("new"), cursor="e-0"
    ),
    "a gap: trimmed": Story(
        ["welcome", "gap", *numbers(6, 9), "new", "bye"], publish(*numbers(1, 9)), publish("new"), cursor="e-2", log=4
    ),
    "a gap: another epoch": Story(["welcome", "gap", "1", "new", "bye"], publish("1"), publish("new"), cursor="f-7"),
    "a gap: ahead": Story(["welcome", "gap", "new", "bye"], publish("1"), publish("new"), cursor="e-7"),
    "a gap: malformed": Story(["welcome", "gap", "new", "bye"], publish("1"), publish("new"), cursor="seven"),
    "the last three": Story(
        ["welcome", "7", "8", "9", "new", "bye"], publish(*numbers(1, 9)), publish("new"), target="/?last=3"
    ),
    "the last of a topic": Story(
        ["welcome", "mine", "bye"],
        after_each_other(publish("mine", topic="a/b"), publish("other", topic="c")),
        publish("not mine", topic="c"),
        target="/?last=1&topic=a/*",
    ),
    "since a time": Story(["welcome", "1", "2", "new", "bye"], publish("1", "2"), publish("new"), target="/?since=9"),
    "since now": Story(["welcome", "new", "bye"], publish("1", "2"), publish("new"), target="/?since=1800000000"),
    "filters": Story(
        ["welcome", "both", "everyone", "bye"],
        live=after_each_other(publish("both", topic=["a/b", "d"]), publish("no", topic="c"), publish("everyone")),
        target="/?topic=a/**&topic=d",
    ),
    "named clients": Story(
        ["welcome", "for c", "all but d", "bye"],
        live=after_each_other(
            publish("for c", to=["c", "d"]),
            publish("for d", to="d"),
            publish("all but c", exclude="c"),
            publish("all but d", exclude="d"),
        ),
    ),
    "named clients in the log": Story(
        ["welcome", "for c", "all but d", "bye"],
        before=after_each_other(
            publish("for c", to=["c", "d"]),
            publish("for d", to="d"),
            publish("all but c", exclude="c"),
            publish("all but d", exclude="d"),
        ),
        cursor="e-0",
    ),
    "lines": Story(["welcome", "1\n2\n\n3", "", "\n", TEXT, "bye"], live=publish("1\r2\r\n\n3", "", "\n", TEXT)),
    "a type of its own": Story(["welcome", "order", "bye"], live=publish("1", event="order")),
    "heartbeats": Story(["welcome", "a", "bye"], live=after_each_other(beat, beat, publish("a"), beat)),
    "a moved cursor": Story(
        ["welcome", "mine", "bye"],
        live=after_each_other(publish(*numbers(1, 200), topic="other"), publish("mine", topic="a")),
        target="/?topic=a",
        log=256,
    ),
    "a thousand at once": Story(["welcome", *numbers(0, 999), "bye"], live=joined(1_000)),
    "a full queue": Story(
        ["welcome", *[BIG] * 400, "small", "bye"],
        live=after_each_other(publish(*[BIG] * 400), publish("small")),
        node={"queue_size": 5},
    ),
    "a queue full of bytes": Story(
        ["welcome", *[BIG] * 400, "bye"], live=publish(*[BIG] * 400), node={"queue_bytes": 50_000}
    ),
}

every_story = pytest.mark.parametrize("story", STORIES.values(), ids=STORIES)


@both_loops
@every_path
@every_story
async def test_each_path_has_the_bytes_of_the_reference(story: Story, path: Path) -> None:
    wanted, outcome = await run_story(story, reference), await run_story(story, path)
    assert gist(wanted.body) == story.expected
    assert outcome.body == wanted.body
    assert outcome.node.totals.delivered == wanted.node.totals.delivered
    assert (outcome.node.totals.overflows > 0) == bool({"queue_size", "queue_bytes"} & set(story.node))
    assert outcome.node.totals.lagging == 0


@every_path
async def test_a_moved_cursor_is_a_block_without_data(path: Path) -> None:
    body = (await run_story(STORIES["a moved cursor"], path)).body
    assert re.search(rb"\n\nid: e-1\d\d\nevent: cursor\n\n", body)


@every_path
async def test_a_heartbeat_is_a_comment(path: Path) -> None:
    assert (await run_story(STORIES["heartbeats"], path)).body.count(b":\n\n") == 3


@both_loops
@every_path
async def test_a_thousand_publications_at_once_are_one_piece(path: Path) -> None:
    outcome = await run_story(STORIES["a thousand at once"], path)
    assert [event.id for event in EventDecoder().feed(outcome.body) if event.type == "message"] == [
        f"e-{offset}" for offset in range(1, 1_001)
    ]


@every_path
async def test_the_head_says_that_it_is_a_stream_and_nothing_else(path: Path) -> None:
    async with node_on(fixed_broker()) as node, path(node, "/", "GET", "") as reader:
        assert reader.head.startswith("HTTP/1.1 200 OK\r\n")
        for line in HEADERS:
            assert line in reader.head
        assert "content-length" not in reader.head


@every_path
async def test_a_head_request_gets_the_head_and_leaves_no_subscriber(path: Path) -> None:
    async with node_on(fixed_broker()) as node:
        async with path(node, "/", "HEAD", "") as reader:
            assert reader.head.startswith("HTTP/1.1 200 OK\r\n")
            assert HEADERS[0] in reader.head
            assert await reader.to_the_end() == b""
        assert (node.totals.subscribers, node.totals.connected) == (0, 0)


@both_loops
@every_path
async def test_a_client_that_resets_leaves_no_subscriber(path: Path) -> None:
    async with node_on(fixed_broker(), heartbeat=ENDLESS) as node, path(node, "/", "GET", "") as reader:
        await reader.until(b"event: welcome")
        await reader.reset()
        await until(lambda: not node.totals.subscribers)
        assert node.totals.closed == {"gone": 1}


# Any history


class Step(NamedTuple):
    data: str
    topics: tuple[str, ...]
    to: frozenset[str]
    exclude: frozenset[str]
    alone: bool  # the loop turns after it


names = st.frozensets(st.sampled_from(["c", "d"]), max_size=1)
steps = st.lists(
    st.builds(
        Step,
        st.text(max_size=20, alphabet=st.characters(exclude_categories=["Cs"])) | st.just(BIG[:1_000]),
        st.lists(st.sampled_from(["a", "a/b", "c"]), max_size=2, unique=True).map(tuple),
        names,
        names,
        st.booleans(),
    ),
    max_size=12,
)
targets = st.sampled_from(["/", "/?topic=a/**", "/?topic=c&last=2", "/?last=3", "/?since=9", "/?client=d"])
cursors = st.sampled_from(["", "", "e-0", "e-3", "e-9", "f-1", "junk"])


def publishing_all(steps: list[Step]) -> Work:
    async def work(node: Node) -> None:
        for step in steps:
            await node.publish(
                Draft.compose(step.data, topic=step.topics or None, to=step.to or None, exclude=step.exclude)
            )
            await turns(3 * step.alone)
        await turns(3)

    return work


@given(before=steps, live=steps, target=targets, cursor=cursors, queue=st.sampled_from([1, 1_000]))
def test_any_history_has_the_same_bytes_on_every_path(
    before: list[Step], live: list[Step], target: str, cursor: str, queue: int
) -> None:
    node, trimmed = {"queue_size": queue}, 12  # of at most 24 publications; none is trimmed before it is read
    story = Story([], publishing_all(before + before), publishing_all(live), target, cursor, node, log=trimmed)

    async def on_every_path() -> list[bytes]:
        return [(await run_story(story, path)).body for path in (reference, *PATHS.values())]

    wanted, *bodies = asyncio.run(on_every_path())
    assert msgspec.json.decode(EventDecoder().feed(wanted)[0].data)["message"] == "Welcome!"
    assert bodies == [wanted] * len(bodies)
