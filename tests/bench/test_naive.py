"""The naive server is a fair comparison: it delivers all that is published."""

import json

import httpx

from sse_app.bench.naive import create_app
from sse_app.testing import StreamingASGITransport, events
from tests.support.peers import PATIENCE


async def test_every_client_hears_what_is_broadcast() -> None:
    transport = StreamingASGITransport(create_app())
    async with (
        httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=PATIENCE) as client,
        client.stream("GET", "/events") as first,
        client.stream("GET", "/events") as second,
    ):
        for number in (1, 2):
            assert (await client.post("/broadcast", json={"n": number})).json() == {"subscribers": 2}
        for stream in (events(first), events(second)):
            for number in (1, 2):
                event = await anext(stream)
                assert (event.id, json.loads(event.data)) == (str(number), {"n": number})
