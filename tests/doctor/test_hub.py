"""The doctor on hubs without a proxy, on servers that are no hub, and behind faults that nginx cannot be set to."""

import asyncio
import re
import socket
import traceback
from collections.abc import Callable
from typing import Any

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sse_app import Hub
from sse_app.doctor import CHECKS, DoctorFailed, DoctorRefused, Finding, Verdict, examine, lifetime, opening
from sse_app.doctor.visit import Visit
from sse_app.errors import NotChecked
from sse_app.testing import live
from tests.doctor.conftest import ORIGIN
from tests.support.peers import listening
from tests.support.web import live_hub, read_until

KEY = "s3cret-0123456789"

Pass = Callable[[Message], Any]


def behind(distort: Callable[[Scope, Message, Pass], Any], *, paths: str = "/events") -> ASGIApp:
    """A hub whose answers on these paths go through ``distort(scope, message, pass)``, which passes them on."""
    hub = Hub()
    inner = hub.app

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def changed(message: Message) -> None:
            if re.fullmatch(paths, scope["path"]):
                await distort(scope, message, send)
            else:
                await send(message)

        if scope["type"] == "lifespan":
            await _lifespan(hub, receive, send)
        else:
            await inner({**scope, "extensions": {}}, receive, changed)

    return app


async def _lifespan(hub: Hub, receive: Receive, send: Send) -> None:
    async with hub:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
    await send({"type": "lifespan.shutdown.complete"})


def by_check(findings: list[Finding]) -> dict[str, Finding]:
    assert [finding.check for finding in findings] == list(CHECKS)
    return {finding.check: finding for finding in findings}


async def checked(check: str, url: str, **options: Any) -> Finding:
    """One check alone, on a visit whose first stream was welcomed."""
    visit = Visit(url, **options)
    async with visit:
        await visit.take_names()
        async with visit.stream(visit.silent_topic) as visit.first:
            await visit.first.welcomed()
            return await CHECKS[check](visit)


def found(findings: list[Finding]) -> list[tuple[str, Verdict]]:
    return [(finding.check, finding.verdict) for finding in findings if finding.asks_for_a_change]


async def test_a_hub_without_a_proxy_lacks_http_2_alone() -> None:
    with live_hub() as hub:
        findings = await examine(hub.url)
    assert found(findings) == [("http", Verdict.WARNING)]
    skipped = {finding.check: finding.measured for finding in findings if finding.verdict == Verdict.NOT_CHECKED}
    assert skipped == {
        "token": "give a token: --token-file, SSE_APP_TOKEN",
        "ticket": "give a token: --token-file, SSE_APP_TOKEN",
        "cors": "give the origin of a page: --origin https://app.example",
        "preflight": "give the origin of a page: --origin https://app.example",
        "idle": "give the seconds to wait: --idle 120",
    }


async def test_nobody_else_sees_what_it_publishes() -> None:
    with live_hub() as hub, hub.connect() as reader:
        reader.sendall(b"GET /events?last=1000 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await examine(hub.url)
        hub.ask(b"POST /broadcast HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nConnection: close\r\n\r\nours")
        received = b""
        while b"data: ours" not in received:
            received += reader.recv(65536)
    assert re.findall(rb"data: (?!\{)(.*)", received) == [b"ours"]


async def test_without_the_publish_key_the_checks_that_need_it_are_left_out() -> None:
    with live_hub(publish_key=KEY) as hub:
        without = by_check(await examine(hub.url))
        with_it = by_check(await examine(hub.url, publish_key=KEY))
    left_out = {check for check, finding in without.items() if "--publish-key" in finding.measured}
    assert left_out == {"log", "buffering", "resume", "body"}
    assert {without[check].verdict for check in left_out} == {Verdict.NOT_CHECKED}
    assert {with_it[check].verdict for check in left_out} == {Verdict.OK}


async def test_a_hub_that_asks_for_a_token_gets_it_with_every_request() -> None:
    refused: set[str] = set()

    async def refuse(scope: Scope, message: Message, on: Pass) -> None:
        sent = dict(scope["headers"]).get(b"authorization")
        is_meant = sent == b"Bearer this-is-no-token" or b"ticket=" in scope["query_string"]
        if sent != f"Bearer {KEY}".encode() and not is_meant:
            refused.add(scope["path"])
        await on(message)

    with live(behind(refuse, paths=".*")) as server:
        with_it = by_check(await examine(server.url, token=KEY, origin=server.url))
        assert refused == set()
        await examine(server.url)
    assert refused == {"/events", "/broadcast", "/stats", "/healthz"}
    left_out = {check for check, finding in with_it.items() if finding.verdict == Verdict.NOT_CHECKED}
    assert left_out == {"preflight", "idle"}
    assert Verdict.PROBLEM not in {finding.verdict for finding in with_it.values()}


async def test_a_page_of_an_origin_that_the_hub_does_not_know() -> None:
    with live_hub(cors_origins=("https://other.example",)) as hub:
        finding = await checked("cors", hub.url, origin=ORIGIN)
    assert finding.verdict == Verdict.PROBLEM
    assert finding.measured == f"the hub does not know {ORIGIN} (403 bad_origin)"
    assert "--cors-origins" in finding.advice["hub"]


async def test_a_page_of_the_hubs_own_origin_needs_no_header() -> None:
    with live_hub() as hub:
        finding = await checked("cors", hub.url, origin=hub.url)
    assert finding.verdict == Verdict.OK


async def test_a_full_hub_says_so() -> None:
    with live_hub(max_subscribers=1) as hub, hub.connect() as reader:
        reader.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        read_until(reader, b"event: welcome")
        findings = await examine(hub.url)
    assert found(findings) == [("reach", Verdict.PROBLEM)]
    assert "full or stopping" in findings[0].measured
    assert "--max-subscribers" in findings[0].advice["hub"]


async def test_heartbeats_are_counted() -> None:
    with live_hub(heartbeat=0.1) as hub:
        finding = await checked("idle", hub.url, idle=3)
    assert finding.verdict == Verdict.OK
    assert finding.figures["heartbeats"] >= 1
    assert "heartbeats, at most" in finding.measured


async def test_a_hub_that_takes_smaller_bodies_is_no_proxys_fault() -> None:
    with live_hub(body_max=100 * 1024) as hub:
        finding = await checked("body", hub.url)
    assert finding.verdict == Verdict.OK
    assert "body_max" in finding.measured


async def test_events_that_come_in_clumps() -> None:
    async def collect(scope: Scope, message: Message, send: Pass) -> None:
        """Hold events back until the fifth and the tenth, as a proxy does that flushes by size."""
        if message["type"] == "http.response.start":
            kept.clear()
            await send(message)
            return
        kept.append(message["body"])
        if re.search(rb"event: welcome|data: [49]\n", message["body"]):
            body = b"".join(kept)
            kept.clear()
            await send({**message, "body": body})

    kept: list[bytes] = []

    with live(behind(collect)) as server:
        finding = await checked("buffering", server.url)
    assert finding.verdict == Verdict.PROBLEM
    assert finding.figures["arrived"] == finding.figures["events"] == 10
    assert finding.figures["pieces"] == 2


async def test_a_welcome_that_is_held_back_behind_its_head() -> None:
    async def head_only(scope: Scope, message: Message, send: Pass) -> None:
        if message["type"] == "http.response.start":
            await send(message)

    with live(behind(head_only)) as server:
        findings = await examine(server.url, origin=ORIGIN, idle=1)
    assert found(findings) == [("http", Verdict.WARNING), ("buffering", Verdict.PROBLEM)]
    assert by_check(findings)["welcome"].verdict == Verdict.NOT_CHECKED


async def test_a_stream_that_the_hub_keeps_whatever_is_sent_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifetime, "LEAVE_SECONDS", 0.2)  # seconds; the stream never ends

    async def everyone(scope: Scope, message: Message, send: Pass) -> None:
        """Answer with statistics that still count closed streams."""
        if message["type"] == "http.response.body":
            seen.update(re.findall(rb'"(sse-app/doctor/[0-9a-f]+/end)"', message["body"]))
            filters = b",".join(b'{"topics":["%b"]}' % topic for topic in seen)
            message = {**message, "body": b'{"filters":[%b]}' % filters}
        else:
            message = {**message, "headers": [(b"content-type", b"application/json")]}
        await send(message)

    seen = set[bytes]()
    with live(behind(everyone, paths="/stats")) as server:
        finding = await checked("end", server.url)
    assert (finding.verdict, "though events were sent on it" in finding.measured) == (Verdict.PROBLEM, True)


async def test_stats_out_of_reach_leave_the_end_unchecked() -> None:
    async def hide(scope: Scope, message: Message, send: Pass) -> None:
        await send({**message, "status": 403} if message["type"] == "http.response.start" else message)

    with live(behind(hide, paths="/stats")) as server, pytest.raises(NotChecked, match="/stats does not come"):
        await checked("end", server.url)


@pytest.mark.parametrize(
    ("header", "verdict", "words"),
    [
        ((b"age", b"7"), Verdict.PROBLEM, "cache"),
        ((b"x-cache", b"Hit from cloudfront"), Verdict.PROBLEM, "cache"),
        ((b"cf-cache-status", b"HIT"), Verdict.PROBLEM, "cache"),
        ((b"cf-cache-status", b"DYNAMIC"), Verdict.OK, "as the hub sent it"),
        ((b"x-accel-buffering", b"yes"), Verdict.OK, "as the hub sent it"),
        ((b"cache-control", b"private"), Verdict.OK, "as the hub sent it"),
    ],
)
async def test_what_became_of_the_head(header: tuple[bytes, bytes], verdict: Verdict, words: str) -> None:
    async def add(scope: Scope, message: Message, send: Pass) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], header]}
        await send(message)

    with live(behind(add)) as server:
        finding = await checked("headers", server.url)
    assert (finding.verdict, words in finding.measured) == (verdict, True), finding.measured


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        ([b"data: hello\n\n"], "its first event is no welcome"),
        ([b"event: welcome\ndata: hello\n\n"], "its first event is no welcome"),
        ([b"event: welcome\ndata: {}\n\n"], "its first event is no welcome"),
        ([b": nothing\n\n"], "no welcome came"),
    ],
)
async def test_another_servers_event_stream(pieces: list[bytes], words: str) -> None:
    async def other(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            stream = scope["path"] == "/events"
            headers = [(b"content-type", b"text/event-stream")] if stream else []
            await send({"type": "http.response.start", "status": 200 if stream else 404, "headers": headers})
            for piece in pieces:
                await send({"type": "http.response.body", "body": piece, "more_body": stream})
            while stream and (await receive())["type"] != "http.disconnect":
                pass

    with live(other, lifespan="off") as server:
        findings = await examine(server.url)
    assert found(findings) == [("reach", Verdict.PROBLEM)]
    assert words in findings[0].measured


async def test_where_nothing_answers_nothing_is_checked() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and not listening
        port = taken.getsockname()[1]
        with pytest.raises(DoctorFailed, match=f"http://127.0.0.1:{port} does not answer"):
            await examine(f"http://user:secret@127.0.0.1:{port}/")


async def test_what_does_not_speak_http_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "WELCOME_SECONDS", 0.2)  # seconds; the welcome never comes

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n")
        await reader.read()

    async with listening(greet) as port:
        with pytest.raises(DoctorFailed, match=r"nothing came within 0\.2 s"):
            await examine(f"http://127.0.0.1:{port}")


@pytest.mark.parametrize(
    "url",
    ["", "events.example.com", "ftp://events.example.com", "https://", "http://a/?x=1", "http://a/#x", "http://["],
)
async def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(DoctorRefused, match="public address"):
        await examine(url)


@pytest.mark.parametrize("origin", ["app.example", "https://app.example/", "https://app.example/page", "null", ""])
async def test_what_is_no_origin_is_refused(origin: str) -> None:
    with pytest.raises(DoctorRefused, match="no path"):
        await examine("http://127.0.0.1:1", origin=origin)


@pytest.mark.parametrize("name", ["token", "publish_key"])
@pytest.mark.parametrize("secret", ["S3CRET\nX: y", "S3CRET x", "S3CRETé"])
async def test_a_secret_that_no_header_can_have_is_refused_and_not_repeated(name: str, secret: str) -> None:
    given: dict[str, Any] = {name: secret}
    with pytest.raises(DoctorRefused, match=f"^{name} is visible ASCII") as refusal:
        await examine("http://localhost:1", **given)
    assert "S3CRET" not in "".join(traceback.format_exception(refusal.value))


async def test_white_space_around_a_secret_is_none_of_it() -> None:
    async with Visit("http://localhost:1", token=" a-token\n") as visit:
        assert visit._bearer == visit._publisher == {"Authorization": "Bearer a-token"}
