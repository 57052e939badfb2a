"""``POST /broadcast``: the body and its headers, idempotency, the publish key."""

import hmac
import json
import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import quote_from_bytes

import anyio
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message

from sse_app import Event, Hub
from sse_app.brokers.memory import MemoryBroker
from sse_app.errors import TopicRequired
from sse_app.events import RESERVED_PREFIX, RESERVED_TYPES, encode
from sse_app.payload import check_json
from sse_app.testing import run_virtual
from sse_app.web.endpoints.body import LARGE
from tests.support.endpoints import HOST, JSON, KEY, payload, raw, url_of
from tests.support.web import Web, call, code_of, web


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
    assert hub_web.hub.node.totals.published == 0


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
    assert hub_web.hub.node.totals.published == 1


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
        assert hub_web.hub.node.totals.published == 0


async def test_a_publisher_that_leaves_in_the_middle_of_its_body_publishes_nothing(hub_web: Web) -> None:
    begun: Message = {"type": "http.request", "body": b"hel", "more_body": True}
    messages: list[Message] = [begun, {"type": "http.disconnect"}]
    answer = await call(hub_web.hub.app, "POST", "/broadcast", [HOST], messages)
    assert code_of(answer) == (400, "invalid_body")
    assert hub_web.hub.node.totals.published == 0


@pytest.mark.parametrize("length", ["abc", "-1", "+5", "0x5", "", "²", "5, 5", "9" * 5000])
async def test_a_content_length_that_a_server_let_through_is_a_400(hub_web: Web, length: str) -> None:
    headers = [HOST, (b"content-length", length.encode("latin-1"))]
    messages = [{"type": "http.request", "body": b"hello", "more_body": False}]
    answer = await call(hub_web.hub.app, "POST", "/broadcast", headers, messages)
    assert code_of(answer) == (400, "invalid_body")
    assert hub_web.hub.node.totals.published == 0


# The table of malformed HTTP requests; test_server.py has those that a server refuses before there is a request.

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
    ("the type of a revocation", {"event": "$revoke"}, {}, b"x", 400, "reserved_event"),
    ("the type of a revocation, to nobody", {"event": "$revoke", "to": "/"}, {}, b"x", 400, "reserved_event"),
    ("to somebody with a blank", {"to": "a b"}, {}, b"x", 400, "invalid_client"),
    ("to nobody", {"to": ""}, {}, b"x", 400, "invalid_client"),
    ("to whom a revocation is", {"to": "/"}, {}, b"x", 400, "invalid_client"),
    ("without whom a revocation is", {"exclude": "/"}, {}, b"x", 400, "invalid_client"),
    ("to no user", {"to": "@"}, {}, b"x", 400, "invalid_client"),
    ("to a client of no user", {"to": "tab-7@"}, {}, b"x", 400, "invalid_client"),
    ("to a user with a blank", {"to": "@a b"}, {}, b"x", 400, "invalid_client"),
    ("to a user of 256", {"to": "@" + "u" * 256}, {}, b"x", 400, "invalid_client"),
    ("to a user with an override", {"to": "@a\u202e"}, {}, b"x", 400, "invalid_client"),
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
    assert hub_web.hub.node.totals.published == 0


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
    assert set(hub_web.hub.node.totals.closed) <= {"gone"}


@pytest.mark.parametrize("deep", ["[" * 64 + "]" * 64, '{"[":' * 64 + '"\\"]]"' + "}" * 64, "[" + "[]," * 200 + "{}]"])
async def test_json_64_deep_is_passed_on(hub_web: Web, deep: str) -> None:
    assert (await hub_web.client.post("/broadcast", content=deep, headers=JSON)).status_code == 200


# Texts that RFC 8259 does not allow, though lenient parsers accept some.
NO_JSON = [
    "NaN", "Infinity", "-Infinity", "1.", ".5", "+1", "01", "-", "1e", "0x1", "1_0", "٣", "'a'", "nul", "True", "[1,]",
    "[1 2]", "{1:2}", '{"a":1,}', '{"a"}', "//c\n1", "1 2", "\f1", "\xa01", "\ufeff1", '"\t"', '"\n"', '"\x00"',
    '"\\x"', '"\\u12"', '"\\u12g4"', '"\\u+123"', '"\\U00000041"', '"a',
]  # fmt: skip


@pytest.mark.parametrize("beside", ["{}", '["\\ud800", {}]', "[1e309, {}]"], ids=["alone", "half a pair", "no double"])
@pytest.mark.parametrize("text", NO_JSON, ids=ascii)
async def test_what_is_no_json_is_refused_also_beside_valid_json_that_msgspec_refuses(
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
    """Post the poison. Return the data that was published of it."""
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
    assert len(ids) == hub_web.hub.node.totals.published == 1


@pytest.mark.parametrize("change", [{"topic": "a"}, {"event": "other"}, {"to": "me"}, {"exclude": "me"}, {}])
async def test_the_same_key_with_another_publication_is_a_409(hub_web: Web, change: dict[str, str]) -> None:
    headers = {"Idempotency-Key": "k"}
    await hub_web.client.post("/broadcast", content="x", headers=headers)
    other = "x" if change else "y"
    answer = await hub_web.client.post("/broadcast", content=other, params=change, headers=headers)
    assert code_of(answer) == (409, "key_reused")
    assert hub_web.hub.node.totals.published == 1


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
    headers = {} if authorization is None else {b"authorization": raw(authorization)}
    async with web(publish_key=KEY) as hub_web:
        answer = await hub_web.client.post("/broadcast", content="x", headers=headers)
        assert code_of(answer) == (401, "unauthorized")
        assert answer.headers["www-authenticate"] == "Bearer"
        assert hub_web.hub.node.totals.published == 0


@pytest.mark.parametrize("authorization", [f"Bearer {KEY}", f"bearer {KEY}", f"BEARER   {KEY}"])
async def test_with_the_publish_key_it_is_published(authorization: str) -> None:
    async with web(publish_key=KEY) as hub_web:
        answer = await hub_web.client.post("/broadcast", content="x", headers={"Authorization": authorization})
        assert answer.status_code == 200


async def test_whoever_has_no_key_learns_nothing_else_about_its_request() -> None:
    async with web(publish_key=KEY, body_max=1) as hub_web:
        answer = await hub_web.client.post("/broadcast?zzz=1", content="too large", headers={"Idempotency-Key": ""})
        assert code_of(answer) == (401, "unauthorized")


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


async def test_a_draining_hub_takes_no_publication(hub_web: Web) -> None:
    hub_web.hub.node.stop_accepting()
    answer = await hub_web.post("x")
    assert code_of(answer) == (503, "draining")
    assert int(answer.headers["retry-after"]) > 0
    assert hub_web.hub.node.totals.published == 0


# --- without a topic ---


async def test_where_every_publication_has_a_topic_one_without_is_refused_at_every_door() -> None:
    async with web(require_topic=True) as hub_web:
        for params in ({}, {"to": "a"}, {"exclude": "a"}):
            assert code_of(await hub_web.post("x", **params)) == (400, "topic_required")
        with pytest.raises(TopicRequired, match="require_topic"):
            await hub_web.hub.publish("x")
        assert hub_web.hub.node.totals.published == 0
        assert (await hub_web.post("x", topic="t")).status_code == 200
        assert (await hub_web.hub.publish("x", topic="t")).position.offset == 2


# --- large bodies ---


async def test_a_large_body_is_checked_and_encoded_outside_of_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = list[bool]()

    def noted(work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            threads.append(threading.current_thread() is threading.main_thread())
            return work(*arguments)

        return call

    monkeypatch.setattr("sse_app.web.endpoints.broadcast.check_json", noted(check_json))
    monkeypatch.setattr("sse_app.publication.encode", noted(encode))
    async with web(body_max=8 * 1024**2) as hub_web, hub_web.stream() as events:
        await anext(events)
        for size, in_loop in ((LARGE, True), (LARGE + 1, False), (5_000_000, False)):
            threads.clear()
            body = b'"' + b"x" * (size - 2) + b'"'
            answer = await hub_web.client.post("/broadcast", content=body, headers={"Content-Type": "application/json"})
            event = await anext(events)
            assert (event.id, event.data) == (answer.json()["id"], body.decode())
            assert threads == [in_loop, in_loop]


@pytest.mark.parametrize(
    ("body", "media_type", "code"),
    [
        (b"\xff" * (LARGE + 1), "text/plain", "invalid_utf8"),
        (b"[" * (LARGE + 1), "application/json", "too_deep"),
        (b"x" * (LARGE + 1), "application/json", "invalid_json"),
    ],
    ids=["no UTF-8", "deep", "no JSON"],
)
async def test_a_large_body_is_refused_as_a_small_one(body: bytes, media_type: str, code: str) -> None:
    async with web(body_max=8 * 1024**2) as hub_web:
        answer = await hub_web.client.post("/broadcast", content=body, headers={"Content-Type": media_type})
        assert code_of(answer) == (400, code)
        assert hub_web.hub.node.totals.published == 0
