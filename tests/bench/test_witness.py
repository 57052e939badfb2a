"""The stream whose events are kept, wherever its bytes are cut and whatever the server does."""

import asyncio
from collections.abc import Sequence

import pytest

from sse_app.bench import witness as module
from sse_app.bench.target import resolve
from sse_app.bench.witness import witness
from tests.bench.fake_hub import HEAD, chunk
from tests.support.peers import listening

EVENTS = b"event: welcome\ndata: {}\n\n", b"id: 1\r\ndata: @a.1.5!\r\n\r\n", b"data: @a.2.5!\ndata: more\n\n"
WIRE = HEAD + b"".join(map(chunk, EVENTS))


async def heard(*sent: bytes, wanted: bytes = b"@a.2.", ends: bool = False) -> Sequence[bytes]:
    """The events of a stream of these bytes, each sent by itself, until one is there."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for part in sent:
            writer.write(part)
            await writer.drain()
        if ends:
            writer.close()

    async with listening(serve) as port, witness(resolve(f"http://127.0.0.1:{port}"), None) as stream:
        return await stream.until(wanted)


@pytest.mark.parametrize("cut", range(1, len(WIRE), 5))
async def test_events_come_as_they_stand(cut: int) -> None:
    welcome, first, second = await heard(WIRE[:cut], WIRE[cut:])
    assert (welcome, first, second) == tuple(event.rstrip() for event in EVENTS)


async def test_a_body_without_chunks_is_read_too() -> None:
    assert await heard(b"HTTP/1.1 200 OK\r\n\r\n" + EVENTS[1], wanted=b"@a.1.") == [EVENTS[1].rstrip()]


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        ([b"HTTP/1.1 503 No\r\n\r\n"], "answered 503"),
        ([b"HTTP/1.1 200"], "no answer"),
        ([b"x" * 70_000], "no answer"),
        ([WIRE[: -len(chunk(EVENTS[2]))]], "ended"),
        ([HEAD + b"0\r\n\r\n", b"more"], "ended"),
        ([HEAD + b"no chunk\r\n"], "chunk"),
    ],
)
async def test_a_stream_that_does_not_bring_it_is_a_failure(sent: Sequence[bytes], why: str) -> None:
    with pytest.raises(ConnectionError, match=why):
        await heard(*sent, ends=True)


async def test_a_head_that_does_not_come_in_time_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OPEN_SECONDS", 0.05)
    with pytest.raises(ConnectionError, match="no answer"):
        await heard()
