import hmac
import json
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote_from_bytes

import anyio
import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message

from sse_app import Config, Event, Hub
from sse_app.brokers.memory import MemoryBroker
from sse_app.events import RESERVED_PREFIX, RESERVED_TYPES
from sse_app.joining import LAST_MAX
from sse_app.pytest_plugin import HubServer
from sse_app.server.protocol import TARGET_MAX
from sse_app.testing import run_virtual
from sse_app.web.endpoints.broadcast import BROADCAST_PARAMETERS
from sse_app.web.endpoints.pages import CONTENT_SECURITY_POLICY
from tests.support.peers import PATIENCE
from tests.support.web import Web, call, code_of, live_hub, web

JSON = {"Content-Type": "application/json"}
HOST = (b"host", b"localhost")
KEY = "k3y-0123456789-abcdef"


@pytest.fixture
async def hub_web() -> AsyncIterator[Web]:
    async with web() as opened:
        yield opened


def payload(event: Event) -> Any:
    return msgspec.json.decode(event.data)


def url_of(path: str, query: dict[str, Any] | bytes) -> httpx.URL:
    """Bytes are a query as it is."""
    return httpx.URL(path, query=query) if isinstance(query, bytes) else httpx.URL(path, params=query)


# Broadcast


async def test_what_is_broadcast_reaches_the_subscriber_as_it_is(hub_web: Web) -> None:
    async with hub_web.stream() as events:
        await anext(events)
        answer = await hub_web.post("héllo\n{not json", event="note")
        event = await anext(events)
    assert (event.data, event.type, event.id) == ("héllo\n{not json", "note", answer.json()["id"])


@pytest.mark.parametrize("name", ["می\u200cخواهم", "👩\u200d👩\u200d👧", "10\xa0kg", "東\u3000京"], ids=ascii)
async def test_topics_and_types_of_any_script_arrive_as_they_are(hub_web: Web, name: str) -> None:
    async with hub_web.stream("/events", params={"topic": f"{name}/*"}) as events:
        assert payload(await anext(events))["topics"] == [f"{name}/*"]
        assert (await hub_web.post("x", topic=f"{name}/1", event=name)).json()["subscribers"] == 1
        assert (await anext(events)).type == name
    assert (await hub_web.client.get("/stats")).json()["last"]["topics"] == [f"{name}/1"]


async def test_the_answer_names_the_position_the_subscribers_and_how_durable_it_is(hub_web: Web) -> None:
    async with hub_web.stream("/events?topic=a"), hub_web.stream("/events?topic=b"), hub_web.stream():
        top = await hub_web.hub.broker.top()
        answer = await hub_web.post("x", topic=["a", "c"])
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.json() == {"id": str(top.next()), "subscribers": 2, "durable": "none"}


async def test_to_and_exclude_choose_the_clients(hub_web: Web) -> None:
    async with hub_web.stream("/events?client=one") as one, hub_web.stream("/events?client=two") as two:
        await anext(one), await anext(two)
        assert (await hub_web.post("for one", to="one")).json()["subscribers"] == 1
        assert (await hub_web.post("not for one", exclude=["one", "other"])).json()["subscribers"] == 1
        await hub_web.post("for all")
        assert [(await anext(one)).data for _ in range(2)] == ["for one", "for all"]
        assert [(await anext(two)).data for _ in range(2)] == ["not for one", "for all"]


@pytest.mark.parametrize("type", [*sorted(RESERVED_TYPES), f"{RESERVED_PREFIX}new"])
async def test_a_publisher_may_not_use_a_type_of_the_hub(hub_web: Web, type: str) -> None:
    assert code_of(await hub_web.post(event=type)) == (400, "reserved_event")
    assert hub_web.hub.totals.published == 0


@pytest.mark.parametrize(
    ("content", "headers", "data"),
    [
        (b'""', JSON, '""'),
        (b"null", JSON, "null"),
        (b"null", {}, "null"),
        (b"\n", {}, "\n"),
        (b"a\r\nb\rc", {}, "a\nb\nc"),
        (b" ", {}, " "),
    ],
)
async def test_data_that_is_nearly_nothing_arrives_and_moves_the_cursor(
    hub_web: Web, content: bytes, headers: dict[str, str], data: str
) -> None:
    async with hub_web.stream() as events:
        welcome = await anext(events)
        answer = await hub_web.client.post("/broadcast", content=content, headers=headers)
        event = await anext(events)
    assert event.data == data
    assert event.id == answer.json()["id"] != welcome.id


async def test_a_body_of_exactly_the_limit_arrives_and_one_byte_more_does_not(hub_web: Web) -> None:
    data = "x" * hub_web.hub.config.body_max
    async with hub_web.stream() as events:
        await anext(events)
        assert code_of(await hub_web.post(data + "x")) == (413, "too_large")
        assert (await hub_web.post(data)).status_code == 200
        assert (await anext(events)).data == data
    assert hub_web.hub.totals.published == 1


async def test_a_thousand_lines_are_a_thousand_data_fields(hub_web: Web) -> None:
    lines = [f"line {number}" for number in range(1000)]
    async with hub_web.client.stream("GET", "/events") as response:
        chunks = response.aiter_raw()
        await anext(chunks)
        await hub_web.post("\n".join(lines))
        frame = await anext(chunks)
    assert frame.count(b"\ndata: ") == 1000
    assert frame.endswith(b"data: line 999\n\n")


async def test_a_chunked_body_that_is_too_large_is_refused_before_it_is_read_to_its_end(hub_web: Web) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1
            yield bytes(64 * 1024)

    answer = await hub_web.client.post("/broadcast", content=endless())
    assert code_of(answer) == (413, "too_large")
    assert sent < 20


@pytest.mark.virtual_time
async def test_a_body_that_stops_coming_is_a_408_after_ten_seconds() -> None:
    async def stalled() -> AsyncIterator[bytes]:
        yield b"the beginning"
        await anyio.sleep_forever()

    async with web() as hub_web:
        begun = anyio.current_time()
        answer = await hub_web.client.post("/broadcast", content=stalled(), timeout=60)
        assert code_of(answer) == (408, "too_slow")
        assert 9.9 < anyio.current_time() - begun < 10.5  # virtual seconds
        assert hub_web.hub.totals.published == 0


async def test_a_publisher_that_leaves_in_the_middle_of_its_body_publishes_nothing(hub_web: Web) -> None:
    begun: Message = {"type": "http.request", "body": b"hel", "more_body": True}
    messages: list[Message] = [begun, {"type": "http.disconnect"}]
    answer = await call(hub_web.hub.app, "POST", "/broadcast", [HOST], messages)
    assert code_of(answer) == (400, "invalid_body")
    assert hub_web.hub.totals.published == 0


@pytest.mark.parametrize("length", ["abc", "-1", "+5", "0x5", "", "²", "5, 5", "9" * 5000])
async def test_a_content_length_that_a_server_let_through_is_a_400(hub_web: Web, length: str) -> None:
    headers = [HOST, (b"content-length", length.encode("latin-1"))]
    messages = [{"type": "http.request", "body": b"hello", "more_body": False}]
    answer = await call(hub_web.hub.app, "POST", "/broadcast", headers, messages)
    assert code_of(answer) == (400, "invalid_body")
    assert hub_web.hub.totals.published == 0


# The malformed table of HTTP requests. What a server must refuse before there is a request stands in test_server.py.

DEEP = b"[" * 65 + b"]" * 65
MALFORMED = [
    ("an empty body", {}, {}, b"", 400, "empty_body"),
    ("an empty JSON body", {}, JSON, b"", 400, "empty_body"),
    ("no JSON", {}, JSON, b"{'a': 1}", 400, "invalid_json"),
    ("JSON with trailing junk", {}, JSON, b"[1] x", 400, "invalid_json"),
    ("NaN", {}, JSON, b"NaN", 400, "invalid_json"),
    ("infinity", {}, JSON, b"[-Infinity]", 400, "invalid_json"),
    ("a byte order mark", {}, JSON, b"\xef\xbb\xbf1", 400, "invalid_json"),
    ("only blanks", {}, JSON, b" \n", 400, "invalid_json"),
    ("half a surrogate pair in bytes", {}, JSON, b'"\xed\xa0\x80"', 400, "invalid_utf8"),
    ("JSON by suffix", {}, {"Content-Type": "application/ld+json"}, b"{", 400, "invalid_json"),
    ("JSON in capitals", {}, {"Content-Type": "APPLICATION/JSON; charset=UTF-8"}, b"{", 400, "invalid_json"),
    ("text that is not UTF-8", {}, {}, b"caf\xe9", 400, "invalid_utf8"),
    ("JSON 65 deep", {}, JSON, DEEP, 400, "too_deep"),
    ("JSON 65 deep in objects", {}, JSON, b'{"a":' * 65 + b"1" + b"}" * 65, 400, "too_deep"),
    ("JSON 65 deep under a name that comes twice", {}, JSON, b'{"a":' + DEEP[1:-1] + b',"a":1}', 400, "too_deep"),
    ("JSON 65 deep between strings", {}, JSON, b'["]\\"]",' * 65 + b"1" + b"]" * 65, 400, "too_deep"),
    ("JSON 65 deep and a lone surrogate", {}, JSON, b'["\\ud800",' + DEEP[1:-1] + b"]", 400, "too_deep"),
    ("JSON 20,000 deep and a lone surrogate", {}, JSON, b'["\\ud800",' + b"[" * 20_000, 400, "too_deep"),
    ("JSON 20,000 deep", {}, JSON, b"[" * 20_000 + b"]" * 20_000, 400, "too_deep"),
    ("an empty topic", {"topic": ""}, {}, b"x", 400, "invalid_topic"),
    ("a topic of 2,049 characters", {"topic": "t" * 2_049}, {}, b"x", 400, "invalid_topic"),
    ("a topic with a line break", {"topic": "a\nb"}, {}, b"x", 400, "invalid_topic"),
    ("a topic with NUL", {"topic": "a\0"}, {}, b"x", 400, "invalid_topic"),
    ("a topic with DEL", {"topic": "a\x7f"}, {}, b"x", 400, "invalid_topic"),
    ("a topic with C1", {"topic": "a\x85"}, {}, b"x", 400, "invalid_topic"),
    ("a topic with an override", {"topic": "a\u202e"}, {}, b"x", 400, "invalid_topic"),
    ("a topic with a line separator", {"topic": "a\u2028"}, {}, b"x", 400, "invalid_topic"),
    ("a topic with an isolate", {"topic": "a\u2066"}, {}, b"x", 400, "invalid_topic"),
    ("a topic of 33 segments", {"topic": "/" * 32}, {}, b"x", 400, "invalid_topic"),
    ("a topic with a wildcard", {"topic": "a/*"}, {}, b"x", 400, "invalid_topic"),
    ("a topic with a wild rest", {"topic": "**"}, {}, b"x", 400, "invalid_topic"),
    ("a topic that is not UTF-8", b"topic=%ff", {}, b"x", 400, "invalid_utf8"),
    ("17 topics", {"topic": [f"t{n}" for n in range(17)]}, {}, b"x", 400, "too_many_topics"),
    ("an event type of 129", {"event": "e" * 129}, {}, b"x", 400, "invalid_event"),
    ("an empty event type", {"event": ""}, {}, b"x", 400, "invalid_event"),
    ("an event type with CR", {"event": "a\rdata: x"}, {}, b"x", 400, "invalid_event"),
    ("an event type with LF", {"event": "a\n\ndata: x"}, {}, b"x", 400, "invalid_event"),
    ("an event type with NUL", {"event": "a\0"}, {}, b"x", 400, "invalid_event"),
    ("an event type with C1", {"event": "a\x85"}, {}, b"x", 400, "invalid_event"),
    ("an event type with an override", {"event": "a\u202d"}, {}, b"x", 400, "invalid_event"),
    ("two event types", {"event": ["a", "b"]}, {}, b"x", 400, "invalid_event"),
    ("a reserved event type", {"event": "welcome"}, {}, b"x", 400, "reserved_event"),
    ("to somebody with a blank", {"to": "a b"}, {}, b"x", 400, "invalid_client"),
    ("to nobody", {"to": ""}, {}, b"x", 400, "invalid_client"),
    ("to a name of 65", {"to": "c" * 65}, {}, b"x", 400, "invalid_client"),
    ("without somebody with an umlaut", {"exclude": "ä"}, {}, b"x", 400, "invalid_client"),
    ("to 1,001 clients", {"to": [f"c{n}" for n in range(1001)]}, {}, b"x", 400, "invalid_client"),
    ("a misspelt parameter", {"topics": "a"}, {}, b"x", 400, "unknown_parameter"),
    ("an unknown parameter", {"utm_source": "a"}, {}, b"x", 400, "unknown_parameter"),
    ("a parameter without a name", b"=a", {}, b"x", 400, "unknown_parameter"),
    ("a multipart body", {}, {"Content-Type": "multipart/form-data; boundary=b"}, b"--b--", 415, "unsupported_type"),
    ("another charset", {}, {"Content-Type": "text/plain; charset=latin-1"}, b"x", 415, "unsupported_type"),
    ("a charset of mail", {}, {"Content-Type": "a/b; charset*=utf-8''x; charset*0=y"}, b"x", 415, "unsupported_type"),
    ("a charset of NULs", {}, {"Content-Type": "text/plain; charset*=%00'%00'%00"}, b"x", 415, "unsupported_type"),
    ("a part of a charset", {}, {"Content-Type": f"text/plain; charset*{'9' * 5000}=x"}, b"x", 415, "unsupported_type"),
    ("a charset with an accent", {}, {"Content-Type": b"text/plain; charset=\xc3\xa9"}, b"x", 415, "unsupported_type"),
    ("no media type", {}, {"Content-Type": "json"}, b"x", 415, "unsupported_type"),
    ("two media types", {}, {"Content-Type": "application/json, application/json"}, b"1", 415, "unsupported_type"),
    ("a gzip bomb", {}, {"Content-Encoding": "gzip"}, b"\x1f\x8b\x08", 415, "unsupported_encoding"),
    ("an unknown encoding", {}, {"Content-Encoding": "identity, br"}, b"x", 415, "unsupported_encoding"),
    ("an empty key", {}, {"Idempotency-Key": ""}, b"x", 400, "invalid_idempotency_key"),
    ("a key of 129", {}, {"Idempotency-Key": "k" * 129}, b"x", 400, "invalid_idempotency_key"),
    ("a key with a tab", {}, {"Idempotency-Key": "a\tb"}, b"x", 400, "invalid_idempotency_key"),
    ("a key with C1", {}, {"Idempotency-Key": b"a\x85"}, b"x", 400, "invalid_idempotency_key"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("params", "headers", "content", "status", "code"),
    [row[1:] for row in MALFORMED],
    ids=[row[0] for row in MALFORMED],
)
async def test_a_malformed_broadcast_has_its_code_and_reaches_nobody(
    hub_web: Web, params: Any, headers: dict[str, str], content: bytes, status: int, code: str
) -> None:
    answer = await hub_web.client.post(url_of("/broadcast", params), headers=headers, content=content)
    assert code_of(answer) == (status, code)
    assert hub_web.hub.totals.published == 0


MALFORMED_EVENTS = [
    ("an empty topic filter", {"topic": ""}, "invalid_topic"),
    ("a filter of 2,049 characters", {"topic": "t" * 2_049}, "invalid_topic"),
    ("a filter with a control character", {"topic": "a\r"}, "invalid_topic"),
    ("two wild rests", {"topic": "a/**/**"}, "invalid_topic"),
    ("a wild rest in the middle", {"topic": "a/**/b"}, "invalid_topic"),
    ("a filter of 33 segments", {"topic": "a/" * 32 + "*"}, "invalid_topic"),
    ("101 filters", {"topic": [f"t{n}" for n in range(101)]}, "too_many_topics"),
    ("a query that is not UTF-8", b"topic=%C3%28", "invalid_utf8"),
    ("a client with a slash", {"client": "a/b"}, "invalid_client"),
    ("an empty client", {"client": ""}, "invalid_client"),
    ("two clients", {"client": ["a", "b"]}, "invalid_client"),
    *[(f"last={last!r}", {"last": last}, "invalid_since")
      for last in ("", "-1", "1.5", "1e3", "٣", "x", str(LAST_MAX + 1), "9" * 5000, ["1", "2"])],
    *[(f"since={since!r}", {"since": since}, "invalid_since")
      for since in ("", "15", "m", "-5m", "5 m", "1w", "yesterday", "2026-01-31", "2026-01-31T08:00:00",
                    "2026-13-31T08:00:00Z", "2026-02-30T08:00:00Z", "2026-01-31T25:00:00Z", "٢m", "9999999999s",
                    "2026-01-31T08:00:00+24:00", "1700000000", ["1m", "2m"])],
    ("last and since", {"last": "1", "since": "1m"}, "invalid_since"),
    *[(name, {name: "a"}, "unknown_parameter")
      for name in ("topc", "topics", "Topic", "tpoic", "lastt", "sinse", "clientt", "last-event-id", "lastEventID")],
]  # fmt: skip


@pytest.mark.parametrize(
    ("params", "code"), [row[1:] for row in MALFORMED_EVENTS], ids=[row[0][:40] for row in MALFORMED_EVENTS]
)
async def test_a_malformed_subscription_has_its_code_and_leaves_nobody(hub_web: Web, params: Any, code: str) -> None:
    answer = await hub_web.client.get(url_of("/events", params), headers={"Accept": "text/event-stream"})
    assert code_of(answer) == (400, code)
    assert (await hub_web.client.head(url_of("/events", params))).headers == answer.headers
    assert len(hub_web.hub) == hub_web.hub.totals.connected == 0


@pytest.mark.parametrize("query", ["_=1769846400", "t=1&cb=x", "utm_source=a&debug", "x=%F0%9F%98%80"])
async def test_a_cache_buster_is_ignored_by_a_subscription(hub_web: Web, query: str) -> None:
    async with hub_web.stream(f"/events?{query}") as events:
        assert (await anext(events)).type == "welcome"


@pytest.mark.parametrize(("given", "meant"), [("topics", "topic"), ("EVENT", "event"), ("exclud", "exclude")])
async def test_a_near_miss_is_named_by_what_was_meant(hub_web: Web, given: str, meant: str) -> None:
    answer = await hub_web.client.post("/broadcast", content="x", params={given: "a"})
    assert answer.json()["detail"].endswith(f"did you mean {meant}?")


async def test_a_parameter_like_no_other_is_told_which_there_are(hub_web: Web) -> None:
    detail = (await hub_web.client.post("/broadcast", content="x", params={"zzz": "a"})).json()["detail"]
    assert detail.endswith(f"known are {', '.join(BROADCAST_PARAMETERS)}.")


@given(
    query=st.binary(max_size=60).map(lambda raw: quote_from_bytes(raw, safe="=&+;%").encode()),
    type=st.text(st.characters(codec="latin-1", exclude_characters="\r\n\0"), max_size=60),
    body=st.binary(max_size=40),
)
def test_no_query_type_or_body_is_a_server_error(query: bytes, type: str, body: bytes) -> None:
    async def check() -> int:
        async with web() as hub_web:
            headers = {b"content-type": type.encode("latin-1")}
            answer = await hub_web.client.post(url_of("/broadcast", query), content=body, headers=headers)
            return answer.status_code

    assert run_virtual(check()) in (200, 400, 413, 415)


# Poison

POISON = [
    ("a lone surrogate escape", JSON, b'{"a": "\\ud800"}', 200),
    ("half a pair at the end", JSON, b'"\\ud83d"', 200),
    ("a surrogate in the wrong order", JSON, b'"\\udc00\\ud800"', 200),
    ("a lone surrogate in bytes", {}, b"\xed\xa0\x80", 400),
    ("NaN as JSON", JSON, b"[NaN]", 400),
    ("NaN as text", {}, b"NaN", 200),
    ("a huge integer", JSON, b"9" * 10_000, 200),
    ("a huge exponent", JSON, b"-1e999999", 200),
    ("the smallest exponent too large for a double", JSON, b"[1e309]", 200),
    ("a huge integer and NaN", JSON, b"[" + b"9" * 5000 + b", NaN]", 400),
    ("a huge exponent and trailing junk", JSON, b"1e309 x", 400),
    ("invalid UTF-8", {}, b"\xff\xfe\x00", 400),
    ("an overlong NUL", {}, b"\xc0\x80", 400),
    ("NUL in text", {}, b"a\0b", 200),
    ("NUL escaped in JSON", JSON, b'"\\u0000"', 200),
    ("fields and a block end", {}, b"x\n\nevent: bye\ndata: gone\n\n", 200),
    ("line separators", {}, "a\u2028b\u2029c\u0085d".encode(), 200),
    ("a byte order mark", {}, "\ufeffx".encode(), 200),
    ("a body that is cut short", JSON, b'{"a":', 400),
]  # fmt: skip


async def test_no_poison_hurts_a_subscriber_and_the_next_event_reaches_all_100(hub_web: Web) -> None:
    async with AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(hub_web.stream()) for _ in range(100)]
        for events in streams:
            await anext(events)
        taken = await post_poison(hub_web)
        assert (await hub_web.post("next")).json()["subscribers"] == 100
        for events in streams:
            assert [(await anext(events)).data for _ in range(len(taken) + 1)] == [*taken, "next"]
    assert set(hub_web.hub.totals.closed) <= {"gone"}


@pytest.mark.parametrize("deep", ["[" * 64 + "]" * 64, '{"[":' * 64 + '"\\"]]"' + "}" * 64, "[" + "[]," * 200 + "{}]"])
async def test_json_64_deep_is_passed_on(hub_web: Web, deep: str) -> None:
    assert (await hub_web.client.post("/broadcast", content=deep, headers=JSON)).status_code == 200


# What RFC 8259 does not allow, some of which a lenient parser takes.
NO_JSON = [
    "NaN", "Infinity", "-Infinity", "1.", ".5", "+1", "01", "-", "1e", "0x1", "1_0", "٣", "'a'", "nul", "True", "[1,]",
    "[1 2]", "{1:2}", '{"a":1,}', '{"a"}', "//c\n1", "1 2", "\f1", "\xa01", "\ufeff1", '"\t"', '"\n"', '"\x00"',
    '"\\x"', '"\\u12"', '"\\u12g4"', '"\\u+123"', '"\\U00000041"', '"a',
]  # fmt: skip


@pytest.mark.parametrize("beside", ["{}", '["\\ud800", {}]', "[1e309, {}]"], ids=["alone", "half a pair", "no double"])
@pytest.mark.parametrize("text", NO_JSON, ids=ascii)
async def test_what_is_no_json_is_refused_also_beside_what_needs_a_second_look(
    hub_web: Web, beside: str, text: str
) -> None:
    answer = await hub_web.client.post("/broadcast", content=beside.format(text), headers=JSON)
    assert code_of(answer) == (400, "invalid_json")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(10**400), 10**400) | st.text(st.characters(), max_size=9),
        lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=4), children, max_size=4),
    ),
    st.sampled_from(["%s", "[%s, 1e400]", '["\\udead", %s]', " %s\r\n\t", "[-0.0e-999, %s]"]),
)
def test_any_json_is_passed_on_as_it_is(value: Any, around: str) -> None:
    async def check() -> tuple[str, Event]:
        text = around % json.dumps(value)
        async with web() as hub_web, hub_web.stream("/events") as events:
            await anext(events)
            assert (await hub_web.client.post("/broadcast", content=text, headers=JSON)).status_code == 200
            return text, await anext(events)

    text, event = run_virtual(check())
    assert event.data == text.replace("\r\n", "\n")


async def post_poison(hub_web: Web) -> list[str]:
    """What of it was taken."""
    taken = []
    for name, headers, content, expected in POISON:
        answer = await hub_web.client.post("/broadcast", content=content, headers=headers)
        assert answer.status_code == expected, name
        if expected == 200:
            taken.append(content.decode())
    return taken


@pytest.mark.parametrize(
    "headers",
    [{"Content-Type": ""}, {"Content-Type": "text/plain; charset="}, {"Content-Encoding": ""},
     {"Content-Encoding": "Identity"}, {"Content-Type": "text/plain; charset=utf8"}],
    ids=repr,
)  # fmt: skip
async def test_what_says_no_more_than_the_body_does_is_let_in(hub_web: Web, headers: dict[str, str]) -> None:
    answer = await hub_web.client.post("/broadcast", content="{né", headers=headers)
    assert answer.status_code == 200


# Idempotency


async def test_the_same_key_and_body_publish_once_and_get_the_same_answer(hub_web: Web) -> None:
    async def post() -> httpx.Response:
        return await hub_web.client.post("/broadcast", content="x", headers={"Idempotency-Key": "order-42"})

    async with hub_web.stream() as events:
        await anext(events)
        answers = [(await post()).json() for _ in range(3)]
        assert answers == [answers[0]] * 3
        assert answers[0]["subscribers"] == 1
        await hub_web.post("the end")
        assert [(await anext(events)).data for _ in range(2)] == ["x", "the end"]


async def test_a_hundred_at_once_with_the_same_key_are_one_publication(hub_web: Web) -> None:
    ids = set()

    async def post() -> None:
        answer = await hub_web.client.post("/broadcast", content="x", headers={"Idempotency-Key": "k"})
        ids.add(answer.json()["id"])

    async with anyio.create_task_group() as tasks:
        for _ in range(100):
            tasks.start_soon(post)
    assert len(ids) == hub_web.hub.totals.published == 1


@pytest.mark.parametrize("change", [{"topic": "a"}, {"event": "other"}, {"to": "me"}, {"exclude": "me"}, {}])
async def test_the_same_key_with_another_publication_is_a_409(hub_web: Web, change: dict[str, str]) -> None:
    headers = {"Idempotency-Key": "k"}
    await hub_web.client.post("/broadcast", content="x", headers=headers)
    other = "x" if change else "y"
    answer = await hub_web.client.post("/broadcast", content=other, params=change, headers=headers)
    assert code_of(answer) == (409, "key_reused")
    assert hub_web.hub.totals.published == 1


async def test_a_key_is_forgotten_after_its_window() -> None:
    now = 0.0
    async with web(Hub(MemoryBroker(clock=lambda: now))) as hub_web:
        headers = {"Idempotency-Key": "k"}
        first = await hub_web.client.post("/broadcast", content="x", headers=headers)
        now = 301.0
        second = await hub_web.client.post("/broadcast", content="y", headers=headers)
    assert first.json()["id"] != second.json()["id"]


# The publish key


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        f"Bearer {KEY}x",
        f"Bearer {KEY[:-1]}",
        f"Basic {KEY}",
        KEY,
        f"Bearer {KEY.upper()}",
        f"Bearer {KEY} {KEY}",
        b"Bearer k\xe9y",
    ],
)
async def test_without_the_right_publish_key_it_is_a_401_with_its_challenge(authorization: str | bytes | None) -> None:
    headers = {} if authorization is None else {b"authorization": _raw(authorization)}
    async with web(publish_key=KEY) as hub_web:
        answer = await hub_web.client.post("/broadcast", content="x", headers=headers)
        assert code_of(answer) == (401, "unauthorized")
        assert answer.headers["www-authenticate"] == "Bearer"
        assert hub_web.hub.totals.published == 0


@pytest.mark.parametrize("authorization", [f"Bearer {KEY}", f"bearer {KEY}", f"BEARER   {KEY}"])
async def test_with_the_publish_key_it_is_published(authorization: str) -> None:
    async with web(publish_key=KEY) as hub_web:
        answer = await hub_web.client.post("/broadcast", content="x", headers={"Authorization": authorization})
        assert answer.status_code == 200


async def test_whoever_has_no_key_learns_nothing_else_about_its_request() -> None:
    async with web(publish_key=KEY, body_max=1) as hub_web:
        answer = await hub_web.client.post("/broadcast?zzz=1", content="too large", headers={"Idempotency-Key": ""})
        assert code_of(answer) == (401, "unauthorized")


async def test_subscribing_takes_no_key() -> None:
    async with web(publish_key=KEY) as hub_web, hub_web.stream() as events:
        assert (await anext(events)).type == "welcome"


@pytest.mark.parametrize("given", [KEY, "wrong", "k" + KEY[1:-1] + "x"])
async def test_keys_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(left: bytes, right: bytes) -> bool:
        compared.append((left, right))
        return left == right

    monkeypatch.setattr(hmac, "compare_digest", compare)
    async with web(publish_key=KEY) as hub_web:
        await hub_web.client.post("/broadcast", content="x", headers={"Authorization": f"Bearer {given}"})
    assert compared == [(given.encode(), KEY.encode())]


async def test_the_publish_key_is_in_no_answer_no_metric_and_no_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    seen = []
    async with web(publish_key=KEY) as hub_web, hub_web.stream("/events?last=9") as events:
        for given in (KEY, KEY + "x"):
            headers = {"Authorization": f"Bearer {given}"}
            for url in ("/broadcast", "/broadcast?zzz=1", "/broadcast?event=bye", "/nothing", "/events"):
                seen.append(await hub_web.client.post(url, content="x", headers=headers))
        for url in ("/", "/stats", "/metrics", "/healthz", "/readyz", "/openapi.json"):
            seen.append(await hub_web.client.get(url, headers={"Authorization": f"Bearer {KEY}"}))
        streamed = [await anext(events), await anext(events)]
        text = "".join(f"{answer.headers}{answer.text}" for answer in seen) + repr(streamed) + caplog.text
        assert KEY not in text + repr(hub_web.hub.config) + repr(hub_web.hub)


def _raw(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode()


# Nothing that came in goes out with an error

MARKER = "m4rk3r"


async def test_no_error_repeats_what_was_sent(hub_web: Web, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    post, get = hub_web.client.post, hub_web.client.get
    answers = [
        *[await post("/broadcast", content=MARKER, params={name: f"{MARKER}\n"}) for name in BROADCAST_PARAMETERS],
        *[await post("/broadcast", content="x", params={f"{MARKER}{name}": MARKER}) for name in ("", "topic")],
        *[await get("/events", params={name: f"{MARKER}\n" * 9}) for name in ("topic", "last", "since", "client")],
        await get("/events", params={f"topic{MARKER[0]}": MARKER}),
        await post("/broadcast", content=f"{{{MARKER}", headers=JSON),
        await post("/broadcast", content=MARKER, headers={"Content-Type": f"multipart/{MARKER}"}),
        await post("/broadcast", content=MARKER, headers={"Content-Type": f"text/plain; charset={MARKER}"}),
        await post("/broadcast", content=MARKER, headers={"Content-Encoding": MARKER}),
        await post("/broadcast", content="x", headers={"Idempotency-Key": f"{MARKER} {MARKER}"}),
        await get(f"/{MARKER}?{MARKER}", headers={"X-Request-Id": MARKER}),
        await post(f"/static/{MARKER}"),
        await hub_web.client.request(MARKER.upper(), "/events", headers={"Referer": MARKER}),
        await get("/stats", headers={"Host": f"{MARKER}/"}),
        await get("/stats", headers={"Origin": f"https://{MARKER}.example"}),
    ]
    for answer in answers:
        assert 400 <= code_of(answer)[0] < 500
        assert MARKER not in f"{answer.headers}{answer.text}".lower()
    assert MARKER not in "".join(record.getMessage() for record in caplog.records if record.name.startswith("sse_app"))


async def test_a_bad_cursor_is_not_repeated_on_the_stream(hub_web: Web) -> None:
    async with hub_web.stream(headers={"Last-Event-ID": f"{MARKER}\t"}) as events:
        assert MARKER not in repr([await anext(events), await anext(events)])


# Subscribe: where it starts


async def publish_numbers(hub_web: Web, count: int) -> list[str]:
    """Their ids."""
    return [(await hub_web.hub.publish(str(number))).id for number in range(count)]


async def read(hub_web: Web, count: int, url: str = "/events", **options: Any) -> list[Event]:
    async with hub_web.stream(url, **options) as events:
        return [await anext(events) for _ in range(count)]


@pytest.mark.parametrize("name", ["last_event_id", "lastEventId"])
async def test_the_cursor_may_come_as_a_parameter(hub_web: Web, name: str) -> None:
    ids = await publish_numbers(hub_web, 3)
    welcome, *rest = await read(hub_web, 3, f"/events?{name}={ids[0]}")
    assert welcome.id == ids[0]
    assert payload(welcome)["recovered"] is True
    assert [event.id for event in rest] == ids[1:]


async def test_the_header_wins_over_the_parameter(hub_web: Web) -> None:
    ids = await publish_numbers(hub_web, 3)
    events = await read(hub_web, 2, f"/events?last_event_id={ids[0]}", headers={"Last-Event-ID": ids[1]})
    assert [event.id for event in events] == [ids[1], ids[2]]


async def test_what_a_polyfill_adds_wins_over_what_the_url_held(hub_web: Web) -> None:
    """event-source-polyfill keeps the URL it was given, and adds lastEventId on each reconnect."""
    ids = await publish_numbers(hub_web, 3)
    for query in (f"last_event_id={ids[0]}&lastEventId={ids[1]}", f"lastEventId={ids[1]}&last_event_id={ids[0]}"):
        welcome, event = await read(hub_web, 2, f"/events?{query}")
        assert (payload(welcome)["recovered"], event.id) == (True, ids[2])
    events = await read(hub_web, 2, f"/events?last_event_id=x&lastEventId={ids[0]}", headers={"Last-Event-ID": ids[1]})
    assert events[1].id == ids[2]


@pytest.mark.parametrize("name", ["last_event_id", "lastEventId"])
async def test_two_of_a_kind_are_none_and_so_a_gap_though_a_weaker_one_is_right(hub_web: Web, name: str) -> None:
    ids = await publish_numbers(hub_web, 2)
    _, gap = await read(hub_web, 2, f"/events?{name}={ids[0]}&{name}={ids[0]}")
    assert payload(gap)["reason"] == "malformed"
    headers = [("Last-Event-ID", ids[0]), ("Last-Event-ID", ids[0])]
    _, gap = await read(hub_web, 2, f"/events?{name}={ids[0]}", headers=headers)
    assert payload(gap)["reason"] == "malformed"


@pytest.mark.parametrize("stronger", ["lastEventId=", "lastEventId=&lastEventId="])
async def test_an_empty_parameter_leaves_the_word_to_the_weaker_one(hub_web: Web, stronger: str) -> None:
    ids = await publish_numbers(hub_web, 2)
    events = await read(hub_web, 2, f"/events?{stronger}&last_event_id={ids[0]}")
    assert [event.id for event in events] == ids


@pytest.mark.parametrize("headers", [{}, {"Last-Event-ID": ""}])
async def test_an_empty_cursor_is_none(hub_web: Web, headers: dict[str, str]) -> None:
    await publish_numbers(hub_web, 1)
    (welcome,) = await read(hub_web, 1, "/events?last_event_id=", headers=headers)
    assert welcome.id == str(await hub_web.hub.broker.top())
    assert payload(welcome)["recovered"] is False


async def test_an_empty_header_leaves_the_word_to_the_parameter(hub_web: Web) -> None:
    ids = await publish_numbers(hub_web, 2)
    events = await read(hub_web, 2, f"/events?last_event_id={ids[0]}", headers={"Last-Event-ID": ""})
    assert [event.id for event in events] == ids


JUNK = [
    "x" * 257, "-1", "1", "1.2.3", "1' OR 1=1--", "../..", "%00", "abc-", "abc-01", "ABC-1", "abc--1", "abc-1-1",
    f"abc-{10**40}", "null", "é".encode(), "é".encode("latin-1"), b"\xff\xfe", "٣-٣".encode(), "a" * 33 + "-1",
]  # fmt: skip


@pytest.mark.parametrize("cursor", JUNK, ids=repr)
async def test_a_cursor_that_is_none_is_a_gap_and_never_an_http_error(hub_web: Web, cursor: str | bytes) -> None:
    await publish_numbers(hub_web, 2)
    welcome, gap = await read(hub_web, 2, headers=[(b"last-event-id", _raw(cursor))])
    assert (welcome.type, welcome.id, payload(welcome)["recovered"]) == ("welcome", None, False)
    top = str(await hub_web.hub.broker.top())
    assert (gap.type, gap.id) == ("gap", top)
    oldest = top.replace("-2", "-1")
    assert payload(gap) == {"requested": None, "oldest": oldest, "top": top, "reason": "malformed"}


async def test_two_cursor_headers_are_none_and_so_a_gap(hub_web: Web) -> None:
    ids = await publish_numbers(hub_web, 2)
    headers = [("Last-Event-ID", ids[0]), ("Last-Event-ID", ids[1])]
    _, gap = await read(hub_web, 2, headers=headers)
    assert payload(gap)["reason"] == "malformed"


@pytest.mark.parametrize(
    ("offset", "reason", "replayed"), [("other-1", "epoch", 2), ("{epoch}-3", "ahead", 0), ("{epoch}-999", "ahead", 0)]
)
async def test_a_cursor_of_elsewhere_is_a_gap_with_its_reason(
    hub_web: Web, offset: str, reason: str, replayed: int
) -> None:
    await publish_numbers(hub_web, 2)
    cursor = offset.format(epoch=(await hub_web.hub.broker.top()).epoch)
    _, gap, *rest = await read(hub_web, 2 + replayed, headers={"Last-Event-ID": cursor})
    assert (payload(gap)["reason"], payload(gap)["requested"]) == (reason, cursor)
    assert [event.data for event in rest] == ["0", "1"][:replayed]


async def test_a_cursor_that_was_trimmed_is_a_gap_with_what_the_log_still_holds() -> None:
    async with web(history=2) as hub_web:
        ids = await publish_numbers(hub_web, 5)
        _, gap, *rest = await read(hub_web, 4, headers={"Last-Event-ID": ids[0]})
        wanted = {"requested": ids[0], "oldest": ids[3], "top": ids[4], "reason": "trimmed"}
        assert (payload(gap), gap.id) == (wanted, ids[2])
        assert [event.id for event in rest] == ids[3:]


@pytest.mark.parametrize(
    ("last", "expected"), [("0", ""), ("1", "2"), ("2", "12"), ("007", "012"), (str(LAST_MAX), "012")]
)
async def test_last_first_gives_the_newest_so_many(hub_web: Web, last: str, expected: str) -> None:
    await publish_numbers(hub_web, 3)
    async with hub_web.stream(f"/events?last={last}") as events:
        await anext(events)
        await hub_web.post("live")
        assert [(await anext(events)).data for _ in range(len(expected) + 1)] == [*expected, "live"]


def spelt(moment: datetime) -> Sequence[str]:
    utc = moment.astimezone(UTC)
    return [
        utc.isoformat().replace("+00:00", "Z"),
        utc.isoformat(timespec="seconds").replace("+00:00", "z").replace("T", "t"),
        utc.isoformat(),
        utc.astimezone(datetime.now().astimezone().tzinfo).isoformat(),
        (utc + timedelta(hours=5)).isoformat(timespec="milliseconds").replace("+00:00", "+05:00"),
        (utc - timedelta(hours=5)).isoformat().replace("+00:00", "-05:00"),
        utc.isoformat(timespec="microseconds").replace("+00:00", "000Z"),
    ]


PAST, FUTURE = datetime.now(UTC) - timedelta(hours=1), datetime.now(UTC) + timedelta(days=1)


@pytest.mark.parametrize("since", ["1m", "30s", "2h", "1d", "999999999d", *spelt(PAST), "0001-01-01T00:00:00Z"])
async def test_since_first_gives_what_was_published_since_then(hub_web: Web, since: str) -> None:
    await publish_numbers(hub_web, 2)
    _, *rest = await read(hub_web, 3, "/events", params={"since": since})
    assert [event.data for event in rest] == ["0", "1"]


@pytest.mark.parametrize("since", [*spelt(FUTURE), "9999-12-31T23:59:59Z"])
async def test_since_a_later_time_gives_only_what_comes(hub_web: Web, since: str) -> None:
    await publish_numbers(hub_web, 2)
    async with hub_web.stream("/events", params={"since": since}) as events:
        await anext(events)
        await hub_web.post("live")
        assert (await anext(events)).data == "live"


async def test_a_bare_plus_in_since_is_taken_for_the_blank_that_it_becomes(hub_web: Web) -> None:
    await publish_numbers(hub_web, 1)
    since = PAST.isoformat(timespec="seconds")
    assert "+00:00" in since
    _, event = await read(hub_web, 2, f"/events?since={since}")
    assert event.data == "0"


async def test_a_cursor_wins_over_last(hub_web: Web) -> None:
    ids = await publish_numbers(hub_web, 3)
    events = await read(hub_web, 2, "/events?last=3", headers={"Last-Event-ID": ids[1]})
    assert [event.id for event in events] == [ids[1], ids[2]]


async def test_the_client_keeps_the_name_it_gave_and_else_gets_one(hub_web: Web) -> None:
    (named,) = await read(hub_web, 1, "/events?client=tab-1")
    (other,) = await read(hub_web, 1)
    (another,) = await read(hub_web, 1)
    assert payload(named)["client"] == "tab-1"
    assert payload(other)["client"] != payload(another)["client"]


# Looking in


async def test_stats_tell_who_is_connected_and_what_was_published(hub_web: Web) -> None:
    async with (
        hub_web.stream("/events?topic=a/*&topic=b"),
        hub_web.stream("/events?topic=b&topic=a/*"),
        hub_web.stream(),
    ):
        id = (await hub_web.post("x" * 2000, topic="a/1", event="note")).json()["id"]
        stats = (await hub_web.client.get("/stats")).json()
    assert stats["subscribers"] == 3
    assert stats["filters"] == [{"topics": ["a/*", "b"], "subscribers": 2}, {"topics": [], "subscribers": 1}]
    last = stats["last"]
    assert (last["id"], last["topics"], last["event"]) == (id, ["a/1"], "note")
    assert (last["data"], last["truncated"]) == ("x" * 1024, True)
    assert [item["id"] for item in stats["recent"]] == [id]
    assert (stats["totals"]["published"], stats["totals"]["connected"], stats["top"]) == (1, 3, id)
    assert stats["versions"].keys() == {"sse-app", "starlette", "sse-starlette", "uvicorn"}


async def test_what_is_for_named_clients_is_in_no_stats(hub_web: Web) -> None:
    await hub_web.post("private", to="me")
    answer = await hub_web.client.get("/stats")
    assert answer.json()["last"] is None
    assert "private" not in answer.text


async def test_metrics_are_what_prometheus_reads(hub_web: Web) -> None:
    async with hub_web.stream() as events, hub_web.stream(headers={"Last-Event-ID": "junk"}):
        await hub_web.post("x")
        await anext(events), await anext(events)
        answer = await hub_web.client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    lines = answer.text.splitlines()
    assert {"sse_app_published_total 1.0", "sse_app_subscribers 2.0", "sse_app_connected_total 2.0"} <= set(lines)
    assert 'sse_app_gaps_total{reason="malformed"} 1.0' in lines
    assert "# TYPE sse_app_delivered_total counter" in lines


async def test_metrics_have_no_label_that_a_client_could_multiply(hub_web: Web) -> None:
    before = (await hub_web.client.get("/metrics")).text.count("\n")
    for number in range(50):
        await hub_web.post("x", topic=f"topic/{number}", event=f"type-{number}")
    async with AsyncExitStack() as stack:
        for number in range(50):
            await stack.enter_async_context(hub_web.stream(f"/events?topic=topic/{number}&client=c{number}"))
        assert (await hub_web.client.get("/metrics")).text.count("\n") == before


async def test_healthz_answers_as_long_as_the_process_does(hub_web: Web) -> None:
    assert (await hub_web.client.get("/healthz")).json() == {"status": "ok"}
    hub_web.hub.stop_accepting()
    assert (await hub_web.client.get("/healthz")).status_code == 200


async def test_readyz_ends_when_the_hub_is_told_to_stop(hub_web: Web) -> None:
    assert (await hub_web.client.get("/readyz")).json() == {"status": "ready"}
    hub_web.hub.stop_accepting()
    answer = await hub_web.client.get("/readyz")
    assert code_of(answer) == (503, "draining")
    assert int(answer.headers["retry-after"]) > 0


@pytest.mark.parametrize("accept", [["text/event-stream"], ["text/html", "Text/Event-Stream;q=0.9"], ["*/*"], []])
async def test_a_stopping_hub_keeps_whoever_accepts_a_stream(hub_web: Web, accept: list[str]) -> None:
    """Accept is a list, which may come in several headers."""
    hub_web.hub.stop_accepting()
    headers = [HOST, *((b"accept", value.encode()) for value in accept)]
    answer = await call(hub_web.hub.app, "GET", "/events", headers)
    assert answer.status_code == (200 if "stream" in "".join(accept).lower() else 503)


async def test_a_draining_hub_takes_no_publication(hub_web: Web) -> None:
    hub_web.hub.stop_accepting()
    answer = await hub_web.post("x")
    assert code_of(answer) == (503, "draining")
    assert int(answer.headers["retry-after"]) > 0
    assert hub_web.hub.totals.published == 0


# Pages


async def test_the_console_comes_with_a_policy_that_lets_in_nothing_foreign(hub_web: Web) -> None:
    answer = await hub_web.client.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    assert answer.headers["x-content-type-options"] == "nosniff"
    policy = dict(rule.split(" ", 1) for rule in CONTENT_SECURITY_POLICY.split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["script-src"] == policy["connect-src"] == "'self'"
    assert "unsafe" not in CONTENT_SECURITY_POLICY


@pytest.mark.parametrize("path", ["app.js", "style.css", "icon.svg"])
async def test_the_console_gets_its_files_from_the_hub_itself(hub_web: Web, path: str) -> None:
    page = await hub_web.client.get("/")
    assert f'"static/{path}"' in page.text
    assert (await hub_web.client.get(f"/static/{path}")).status_code == 200


@pytest.mark.parametrize("path", ["..%2fsse_app%2fapp.py", "%2e%2e/pyproject.toml", "%00", "a" * 5000, "nothing.js"])
async def test_what_is_no_file_of_the_console_is_a_404(hub_web: Web, path: str) -> None:
    assert code_of(await hub_web.client.get(f"/static/{path}")) == (404, "not_found")


def test_limits_that_are_for_the_head_are_reached_with_a_larger_one_and_else_told() -> None:
    """The figures stand in docs/http-api.md."""
    names = "".join(f"&to={number:064}" for number in range(1_000))
    filters = "".join(f"&topic={number:0256}" for number in range(100))
    assert (len(names), len(filters)) == (68_000, 26_300)
    head = b" HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx"
    with live_hub(drain=0, head_max=1024**2) as server:
        assert server.answer(f"HEAD /events?{filters}".encode() + head).status_code == 200
        shorter = names.replace("to=0000", "to=")
        assert len(shorter) < TARGET_MAX < len(names)
        assert server.answer(f"POST /broadcast?{shorter}".encode() + head).status_code == 200
        assert code_of(server.answer(f"POST /broadcast?{names}".encode() + head)) == (431, "head_too_large")
    with live_hub(drain=0) as server:
        answer = server.answer(f"POST /broadcast?{names[: Config().head_max]}".encode() + head)
        assert code_of(answer) == (431, "head_too_large")
        assert b"Name fewer topics or clients, or raise it." in answer.content


def test_every_endpoint_answers_over_a_real_socket_too(sse_server: HubServer) -> None:
    with httpx.Client(base_url=sse_server.url, timeout=PATIENCE) as client:
        for path in ("/", "/stats", "/metrics", "/healthz", "/readyz", "/openapi.json"):
            assert client.get(path).status_code == client.head(path).status_code == 200
        assert client.post("/broadcast", content="x").json()["durable"] == "none"
