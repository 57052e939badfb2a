"""A client that resumes gets all behind its cursor, once and in order, or a gap that names what is lost."""

import asyncio
import json
from random import Random
from time import perf_counter

import pytest

from tests.chaos.client import (
    Answer,
    Chunks,
    Connection,
    Publishing,
    Stream,
    post,
    publish_all,
    publishing,
    stats,
    streams,
    texts_of,
    together,
    until,
    until_stats,
)
from tests.chaos.conftest import Serve, Server, count
from tests.chaos.proxy import Proxy, after_bytes, after_the_first_block, proxy_to


async def test_the_welcome_is_first_and_nothing_is_missing_behind_it(server: Server) -> None:
    async def connect(publishing: Publishing) -> None:
        async with await Stream.open(server.port) as stream:
            await stream.until(lambda: bool(stream.events))
            assert stream.events[0].type == "welcome"
            top = publishing.top
            await stream.until_offset(top + 5)
            first = int(json.loads(stream.events[0].data)["top"].partition("-")[2]) + 1
            assert stream.offsets == list(range(first, first + len(stream.offsets)))

    async with publishing(server.port) as load:
        begun = perf_counter()
        await together((connect(load) for _ in range(200)), at_once=10)
        print(f"published meanwhile: {load.top / (perf_counter() - begun):.0f}/s")


@pytest.mark.parametrize("already_published", [True, False])
async def test_a_cut_behind_any_byte_loses_and_doubles_nothing(server: Server, already_published: bool) -> None:
    async with proxy_to(server.port) as proxy, await Connection.open(server.port) as publisher:
        cursor = await publisher.publish("before")
        if already_published:
            await publish_three(publisher)
        cut = 0
        cut_off = True
        while cut_off:
            proxy.limit = after_bytes(cut)
            trial = _replayed if already_published else _live
            cut_off = await trial(proxy, publisher, cursor)
            cut += 1
    assert cut > 350  # bytes, of the welcome and three events


async def publish_three(publisher: Connection) -> list[str]:
    return [await publisher.publish(body) for body in ("one", "two\nlines", "drei – ü")]


async def _replayed(proxy: Proxy, publisher: Connection, cursor: str) -> bool:
    """Resume at the cursor, and again where the stream was cut. Return True when it was cut."""
    async with await Stream.open(proxy.port, cursor) as first:
        await first.until(lambda: first.over or len(first.offsets) == 3)
    async with await Stream.open(proxy.upstreams[0], first.cursor) as second:
        await second.until_offset(4)
    assert first.offsets + second.offsets == [2, 3, 4]
    assert not first.of_type("gap") + second.of_type("gap")
    return first.over


async def _live(proxy: Proxy, publisher: Connection, cursor: str) -> bool:
    """As ``_replayed``, with publications after the welcome, or after a cut that came before it."""
    async with await Stream.open(proxy.port) as first:
        await first.until(lambda: first.over or bool(first.events))
        ids = await publish_three(publisher)
        await first.until(lambda: first.over or len(first.offsets) == 3)
    if not first.cursor:  # cut before there was a cursor, and so before the publications
        return True
    async with await Stream.open(proxy.upstreams[0], first.cursor) as second:
        await second.until(lambda: second.cursor == ids[-1])
    assert [event.id for event in first.events + second.events if event.type == "message"] == ids
    assert not first.of_type("gap") + second.of_type("gap")
    return first.over


async def test_a_cut_between_the_welcome_and_the_first_replayed_event_loses_nothing(server: Server) -> None:
    async with proxy_to(server.port) as proxy, publishing(server.port) as load:
        proxy.limit = after_the_first_block
        for _ in range(100):
            cursor = load.cursor(max(0, load.top - 20))
            async with await Stream.open(proxy.port, cursor) as first:
                await first.to_the_end()
            assert [event.type for event in first.events] == ["welcome"]
            assert first.cursor == cursor
            async with await Stream.open(server.port, first.cursor) as second:
                await second.until_offset(load.top + 1)
            assert_follows(second, cursor)


async def test_resuming_anywhere_under_load_has_no_seam_between_log_and_live(server: Server) -> None:
    random = Random(1)
    load: Publishing

    async def resume() -> None:
        cursor = load.cursor(max(0, load.top - random.randint(0, 300)))
        async with await Stream.open(server.port, cursor) as stream:
            await stream.until_offset(load.top + 10)
        assert_follows(stream, cursor)

    async with publishing(server.port) as load:
        await load.until(300)
        begun, before = perf_counter(), load.top
        await together((resume() for _ in range(count(ci=100, full=300))), at_once=8)
        print(f"published meanwhile: {(load.top - before) / (perf_counter() - begun):.0f}/s")


def assert_follows(stream: Stream, cursor: str) -> None:
    """Assert that the stream has every publication behind the cursor."""
    first = int(cursor.partition("-")[2]) + 1
    assert stream.offsets == list(range(first, first + len(stream.offsets)))
    assert not stream.of_type("gap")


async def test_a_replay_far_longer_than_the_queue_is_whole(serve: Serve) -> None:
    server = serve("--history", "10000", "--queue", "1000")
    await publish_all(server.port, [b"x" * 200] * 10_000)
    epoch = (await stats(server.port))["top"].partition("-")[0]
    before = server.memory
    async with await Stream.open(server.port, f"{epoch}-0") as stream:
        await stream.until_offset(10_000)
        grown = server.memory - before
        now = await stats(server.port)
    print("grown by bytes:", grown)
    assert stream.offsets == list(range(1, 10_001))
    assert (now["subscribers"], now["totals"]["gaps"], now["totals"]["closed"]) == (1, {}, {})
    assert grown <= 2 * 1024**2


async def test_fifty_subscribers_see_one_order_of_twenty_publishers(server: Server) -> None:
    each = count(ci=100, full=500)
    async with asyncio.TaskGroup() as tasks:
        readers = []
        for _ in range(50):
            readers.append(tasks.create_task(_raw(server, last=20 * each)))
        await until_stats(server.port, subscribers=50)
        for name in range(20):
            tasks.create_task(_publish_numbers(server, name, each))
    orders = {reader.result() for reader in readers}
    assert len(orders) == 1
    pairs = [line[6:].split(b" ") for line in orders.pop().split(b"\n") if line.startswith(b"data: ")]
    for name in range(20):
        assert [int(number) for publisher, number in pairs if int(publisher) == name] == list(range(each))


async def _publish_numbers(server: Server, name: int, each: int) -> None:
    async with await Connection.open(server.port) as connection:
        for number in range(each):
            await connection.publish(f"{name} {number}")


async def _raw(server: Server, last: int) -> bytes:
    """The bytes of a new subscriber's stream behind the welcome, up to the publication ``last``."""
    end = b"-%d\n" % last
    payload, chunks = bytearray(), Chunks()
    async with await Connection.open(server.port) as connection:
        await connection.send_head("GET", "/events")
        await connection.receive_head()
        while not (end in payload[-200:] and payload.endswith(b"\n\n")):
            payload += chunks.feed(await connection.receive())
    return (
        bytes(payload).partition(b"\n\n")[2].replace(b":\n\n", b"")
    )  # without heartbeats, whose times differ by stream


async def test_a_restart_tells_every_old_cursor_and_uses_no_id_again(serve: Serve) -> None:
    used: list[str] = []
    server = serve()
    for _ in range(3):
        async with await Connection.open(server.port) as connection:
            used += [await connection.publish("before the restart") for _ in range(20)]
        server.kill()
        server = serve(port=server.port)
        for cursor in used:
            await _assert_gap_of_a_new_epoch(server, cursor)
    assert len(set(used)) == len(used)


async def _assert_gap_of_a_new_epoch(server: Server, cursor: str) -> None:
    async with await Stream.open(server.port, cursor) as stream:
        await stream.until(lambda: len(stream.events) == 2)
    welcome, gap = stream.events
    assert not json.loads(welcome.data)["recovered"]
    assert gap.type == "gap"
    assert json.loads(gap.data)["reason"] == "epoch"
    assert json.loads(gap.data)["requested"] == cursor


async def test_a_hundred_posts_with_one_key_at_once_are_one_publication(server: Server) -> None:
    async with streams(server.port, 1) as (stream,):
        answers = await asyncio.gather(*(_post_with_key(server, "body") for _ in range(100)))
        assert {answer.body for answer in answers} == {answers[0].body}
        other = await _post_with_key(server, "other body")
        assert (other.status, other.json["code"]) == (409, "key_reused")
        await post(server.port, "after")
        await stream.until_offset(2)
        assert texts_of(stream) == ["body", "after"]


async def test_a_key_can_be_used_again_after_its_window(serve: Serve) -> None:
    server = serve("--idempotency-window", "1")
    async with streams(server.port, 1) as (stream,):
        first = await _post_with_key(server, "body")

        async def forgotten() -> bool:
            return (await _post_with_key(server, "body")).body != first.body

        await until(forgotten, "the key is forgotten after its window")
        await stream.until_offset(2)
        assert stream.offsets == [1, 2]


async def _post_with_key(server: Server, body: str) -> Answer:
    async with await Connection.open(server.port) as connection:
        return await connection.request("POST", "/broadcast", body.encode(), idempotency_key="the-key")
