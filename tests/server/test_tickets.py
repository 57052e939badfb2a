"""Tickets behind our own HTTP protocol: a stream that is cut at any byte resumes, and each event arrives once."""

import asyncio
import re

import pytest

from sse_app import EventDecoder, Hub
from sse_app.grants import Grant
from sse_app.server.protocol import Protocol
from tests.chaos.proxy import no_limit, proxy_to
from tests.support.paths import served
from tests.support.peers import PATIENCE, datas, until

ANN = Grant.of(user="ann", subscribe=["news/*"])
COOKIE = re.compile(rb"set-cookie: (sse_lease=[^;]*)", re.IGNORECASE)
ID = re.compile(rb"^id: (.*)\n(?:.+\n)*\n", re.MULTILINE)


async def get(port: int, url: str, fields: bytes, end: bytes = b"") -> bytes:
    """Return what arrives, without the frames of its chunks, up to ``end`` or to the end of the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(b"GET %s HTTP/1.0\r\nHost: localhost\r\n%s\r\n" % (url.encode(), fields))
        found = b""
        async with asyncio.timeout(PATIENCE):
            while not (end and end in found) and (piece := await reader.read(65536)):
                found += piece
        return found
    finally:
        writer.close()


def events_of(answer: bytes) -> list[str]:
    return datas(EventDecoder().feed(answer.partition(b"\r\n\r\n")[2]))


@pytest.mark.timeout(120)
async def test_a_stream_that_is_cut_at_any_byte_resumes_and_has_each_event_once() -> None:
    async with (
        Hub(authorize=lambda request: None) as hub,
        served(hub.app, Protocol) as server,
        proxy_to(server.port) as proxy,
    ):

        async def ticket_url() -> str:
            return f"/events?ticket={(await hub.ticket(ANN)).ticket}&last_event_id={begin}"

        begin = await hub.broker.oldest()
        await hub.publish("0", topic="news/1")
        whole = await get(proxy.port, await ticket_url(), b"", b"data: 0\n\n")
        for size in range(len(whole) - 3):  # the seconds left may have a digit less
            url = await ticket_url()
            proxy.limit = lambda seen, size=size: size  # type: ignore[misc]
            cut = await get(proxy.port, url, b"")
            proxy.limit = no_limit
            fields = b""
            if b"\r\n\r\n" in cut:  # a browser takes no cookie from half a head
                found = COOKIE.search(cut)
                assert found is not None
                fields += b"Cookie: %s\r\n" % found[1]
            if ids := ID.findall(cut.partition(b"\r\n\r\n")[2]):
                fields += b"Last-Event-ID: %s\r\n" % ids[-1]
            rest = await get(proxy.port, url, fields, b"welcome" if events_of(cut) else b"data: 0\n\n")
            assert rest.startswith(b"HTTP/1.1 200 "), (size, rest)
            assert sorted(events_of(cut) + events_of(rest)) == ["0"], (size, cut, rest)
        await until(lambda: len(hub) == 0)
        assert hub.node.totals.tickets["refused"] == 0
