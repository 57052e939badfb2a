import asyncio
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest

from sse_app import Client, Event, Hub
from sse_app.pytest_plugin import HubServer
from sse_app.testing import Recording, StreamingASGITransport, assert_received, events, live, record, replay
from tests.support.peers import PATIENCE

BODY = b"retry: 5\nid: e-1\ndata: one\n\n:\n\nid: e-2\ndata: \xe2\x80\x93\r\ndata: 2\r\n\r\nevent: x\ndata: no id\n\n"
EVENTS = [Event("one", id="e-1", retry=5), Event("–\n2", id="e-2"), Event("no id", "x", "e-2")]


def client_of(app: Any, library: Any = httpx) -> Any:
    return library.AsyncClient(transport=StreamingASGITransport(app), base_url="http://localhost", timeout=PATIENCE)


@pytest.mark.parametrize("library", [httpx, httpx2], ids=["httpx", "httpx2"])
async def test_a_stream_of_a_hub_is_recorded_saved_loaded_and_replayed(library: Any, tmp_path: Path) -> None:
    async with Hub() as hub, client_of(hub.app, library) as client:
        for number in range(3):
            await hub.publish({"number": number}, topic="orders/1", event="order")
        async with client.stream("GET", "/events?last=3") as response:
            recorded = await record(response, count=4)
    assert [event.type for event in recorded.events] == ["welcome", "order", "order", "order"]
    assert recorded.body.endswith(b'data: {"number":2}\n\n')
    recorded.save(tmp_path / "orders.sse")
    loaded = Recording.load(tmp_path / "orders.sse")
    assert loaded == recorded
    async with client_of(replay(loaded), library) as client, client.stream("GET", "/events") as response:
        assert await record(response, count=4) == recorded
    async with client_of(replay(loaded)) as http, Client("http://localhost", http=http) as listener:
        await assert_received(listener.listen(), [Event(f'{{"number":{number}}}', "order") for number in range(3)])


@pytest.mark.parametrize("size", [None, 1, 2, 1_000])
@pytest.mark.parametrize("count", [1, 2, 3])
async def test_a_recording_ends_behind_the_last_event_asked_for(size: int | None, count: int) -> None:
    app = replay(Recording(BODY), size=size)
    async with client_of(app) as client, client.stream("GET", "/") as response:
        recorded = await record(response, count=count)
    assert recorded.events == EVENTS[:count]
    assert BODY.startswith(recorded.body)


async def test_a_recording_of_no_event_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 event"):
        await record(httpx.Response(200), count=0)


async def test_without_a_count_all_is_recorded_byte_for_byte() -> None:
    async with client_of(replay(Recording(BODY), hold=False)) as client, client.stream("GET", "/") as response:
        assert await record(response) == Recording(BODY)


async def test_any_answer_can_be_recorded_and_replayed() -> None:
    refusal = Recording(b"{}", 503, {"content-type": "application/problem+json"})
    async with client_of(replay(refusal, hold=False)) as client, client.stream("GET", "/") as response:
        assert await record(response) == refusal


def test_a_file_has_the_head_and_the_body_as_it_came(tmp_path: Path) -> None:
    file = tmp_path / "stream.sse"
    Recording(BODY).save(file)
    assert file.read_bytes() == b"HTTP/1.1 200 OK\ncontent-type: text/event-stream; charset=utf-8\n\n" + BODY
    assert Recording.load(file) == Recording(BODY)
    assert Recording.load(str(file)).events == EVENTS


def test_a_cookie_is_not_kept(tmp_path: Path) -> None:
    file = tmp_path / "stream.sse"
    head = "HTTP/2 200\r\nSet-Cookie: session=1\r\nCache-Control: no-store\r\nContent-Type: text/event-stream\r\n\r\n"
    file.write_bytes(head.encode() + BODY)
    loaded = Recording.load(file)
    assert loaded == Recording(BODY, 200, {"content-type": "text/event-stream", "cache-control": "no-store"})


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_what_curl_shows_is_a_recording(sse_server: HubServer, tmp_path: Path) -> None:
    sse_server.hub.publish_threadsafe("hello", topic="news")
    file = tmp_path / "curl.sse"
    with file.open("wb") as output:
        curl = subprocess.Popen(["curl", "-siN", f"{sse_server.url}/events?last=1"], stdout=output)
        try:
            while b"data: hello\n\n" not in file.read_bytes():
                assert curl.poll() is None
        finally:
            curl.kill()
            curl.wait()
    recording = Recording.load(file)
    assert recording.status == 200
    assert [event.type for event in recording.events] == ["welcome", "message"]


@pytest.mark.parametrize("text", [b"", b"data: x\n\n", b"HTTP/1.1 200 OK\ncontent-type: text/event-stream\n"])
def test_a_file_without_a_head_is_no_recording(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(text)
    with pytest.raises(ValueError, match="No recording: one begins with"):
        Recording.load(tmp_path / "x")


# Replays


@pytest.mark.parametrize(
    ("cursor", "rest"), [("e-1", EVENTS[1:]), ("e-2", EVENTS[2:]), ("", EVENTS), ("unknown", EVENTS)]
)
async def test_who_resumes_gets_what_is_behind_its_cursor(cursor: str, rest: list[Event]) -> None:
    app = replay(Recording(BODY), hold=False)
    headers = {"Last-Event-ID": cursor} if cursor else {}
    async with client_of(app) as client, client.stream("GET", "/", headers=headers) as response:
        came = [event async for event in events(response)]
    assert [event.data for event in came] == [event.data for event in rest]


async def test_a_replay_holds_its_stream_open_until_the_client_leaves() -> None:
    async with client_of(replay(Recording(BODY))) as client, client.stream("GET", "/") as response:
        stream = events(response)
        assert [await anext(stream) for _ in range(3)] == EVENTS
        more = asyncio.ensure_future(anext(stream))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not more.done()
        more.cancel()


async def test_a_replay_answers_reading_requests_only() -> None:
    async with client_of(replay(Recording(BODY))) as client:
        assert (await client.post("/broadcast", content="x")).status_code == 405
        head = await client.head("/")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == "text/event-stream; charset=utf-8"


def test_a_replay_serves_a_page() -> None:
    with live(replay(Recording(BODY))) as server, httpx.stream("GET", server.url, timeout=PATIENCE) as response:
        assert "data: no id" in response.iter_lines()
