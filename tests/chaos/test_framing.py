"""However a network divides the bytes, the same events arrive."""

from collections.abc import Sequence

from sse_app.events import Event
from tests.chaos.client import Connection, Stream, offset_of
from tests.chaos.conftest import Server, count
from tests.chaos.proxy import Recut, at_random, into_bytes, proxy_to

BODIES = (
    "plain",
    "naïve – 日本語 – 👩‍👩‍👧‍👦",  # 2, 3 and 4 bytes a character
    "line\nline\r\nline\rline\n",
    "\n\n\n",
    ": not a comment\nid: 7\nevent: bye\nretry: 1",
    "\ufeffBOM \u2028 \u0085 \0 end",
    '{"json": [1, 2.5, "ü"]}',
    "x" * 1_000,
    "é" * 500,
)


async def publish(server: Server) -> str:
    """Publish all the bodies. Return the cursor before the first."""
    async with await Connection.open(server.port) as connection:
        ids = [await connection.publish(body, f"/broadcast?event=t%C3%BCp{n}") for n, body in enumerate(BODIES)]
    return ids[0].replace("-1", "-0")


async def read(port: int, cursor: str) -> Sequence[Event]:
    async with await Stream.open(port, cursor) as stream:
        await stream.until_offset(len(BODIES))
        assert stream.of_type("welcome") == stream.events[:1]
        return stream.events[1:]


def recuts() -> list[Recut]:
    """The ways to divide the bytes: one by one, and at random places."""
    runs = count(ci=60, full=200)
    return [into_bytes] * (runs // 4) + [at_random(seed) for seed in range(runs - runs // 4)]


async def test_a_stream_cut_into_other_pieces_is_the_same_stream(server: Server) -> None:
    cursor = await publish(server)
    expected = await read(server.port, cursor)
    assert [event.data for event in expected] == [body.replace("\r\n", "\n").replace("\r", "\n") for body in BODIES]
    assert [offset_of(event.id or "") for event in expected] == list(range(1, len(BODIES) + 1))
    async with proxy_to(server.port) as proxy:
        for proxy.recut in recuts():
            assert await read(proxy.port, cursor) == expected


async def test_a_request_cut_into_bytes_is_the_same_request(server: Server) -> None:
    async with proxy_to(server.port) as proxy:
        proxy.recut = into_bytes
        async with await Stream.open(server.port) as stream, await Connection.open(proxy.port) as publisher:
            for body in BODIES:
                await publisher.publish(body)
            await stream.until_offset(len(BODIES))
    assert [event.data for event in stream.events[1:]] == [
        body.replace("\r\n", "\n").replace("\r", "\n") for body in BODIES
    ]
