"""``POST /broadcast`` of several events: lines of JSON, and JSON arrays."""

import json
import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from sse_app import Event, Grant, Hub
from sse_app.publication import Publication
from sse_app.topics import TopicFilter
from sse_app.web.endpoints import batches
from sse_app.web.endpoints.body import LARGE
from tests.support.web import Web, code_of, web

NDJSON = {"Content-Type": "application/x-ndjson"}


async def lines(hub_web: Web, body: str | bytes, *, key: str | None = None, **params: Any) -> httpx.Response:
    headers = NDJSON if key is None else {**NDJSON, "Idempotency-Key": key}
    return await hub_web.client.post("/broadcast", content=body, params=params, headers=headers)


async def array(hub_web: Web, items: Any, *, key: str | None = None, **params: Any) -> httpx.Response:
    body = items if isinstance(items, str | bytes) else json.dumps(items)
    headers = {} if key is None else {"Idempotency-Key": key}
    return await hub_web.client.post("/broadcast", content=body, params={"batch": "1", **params}, headers=headers)


async def log_of(hub_web: Web) -> list[Publication]:
    return list(await hub_web.hub.broker.newest(10_000, TopicFilter(), None))


async def datas(hub_web: Web) -> list[str]:
    return [item.event.data for item in await log_of(hub_web)]


def detail(answer: httpx.Response) -> str:
    return str(answer.json()["detail"])


# --- what is published ---


async def test_each_line_is_an_event_as_it_stands(hub_web: Web) -> None:
    body = '{"a": 1}\n\n"text"\r\n  \t\n [1, 2] \n1e309\n"\\ud83d"\nnull'
    async with hub_web.stream("/events?topic=t") as events:
        await anext(events)
        answer = await lines(hub_web, body, topic="t", event="tick")
        found = [await anext(events) for _ in range(6)]
    assert answer.status_code == 200
    assert found == [
        Event(data, "tick", id)
        for data, id in zip(
            ['{"a": 1}', '"text"', " [1, 2] ", "1e309", '"\\ud83d"', "null"], answer.json()["ids"], strict=True
        )
    ]
    assert all((item.is_json, item.topics) == (True, ("t",)) for item in await log_of(hub_web))


async def test_the_answer_has_an_id_and_the_subscribers_of_each_line(hub_web: Web) -> None:
    async with hub_web.stream("/events?topic=a"), hub_web.stream("/events?topic=b"), hub_web.stream():
        top = await hub_web.hub.broker.top()
        answer = await lines(hub_web, "1\n2", topic="a")
        each = await array(hub_web, [{"data": 3, "topic": "b"}, {"data": 4, "topic": ["a", "b"]}, {"data": 5}])
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    ids = [f"{top.epoch}-{number}" for number in range(1, 6)]
    assert answer.json() == {"ids": ids[:2], "subscribers": [2, 2], "durable": "none"}
    assert each.json() == {"ids": ids[2:], "subscribers": [2, 3, 3], "durable": "none"}


async def test_the_query_holds_for_all_lines(hub_web: Web) -> None:
    async with hub_web.stream("/events?client=one&topic=t") as one, hub_web.stream("/events?client=two&topic=t") as two:
        await anext(one), await anext(two)
        await lines(hub_web, "1\n2", topic=["t", "u"], to=["one", "two"], exclude="two")
        await lines(hub_web, "3", topic="t")
        assert [(await anext(one)).data for _ in range(3)] == ["1", "2", "3"]
        assert (await anext(two)).data == "3"


async def test_an_item_says_its_data_and_where_it_goes_and_the_query_the_rest(hub_web: Web) -> None:
    items = [
        {"data": "text\nof lines"},
        {"data": {"n": 1}, "topic": ["b", "c"], "event": "order"},
        {"data": [1, "é"], "to": "@42", "exclude": ["me", "you"]},
        {"data": None, "topic": None, "event": None},
        {"data": ""},
        {"data": "caf\u00e9 😀"},
    ]
    assert (await array(hub_web, items, topic="a", event="tick", exclude="them")).status_code == 200
    found = [
        (item.event.data, item.is_json, item.topics, item.type, set(item.to), set(item.exclude))
        for item in await log_of(hub_web)
    ]
    assert found == [
        ("text\nof lines", False, ("a",), "tick", set(), {"them"}),
        ('{"n": 1}', True, ("b", "c"), "order", set(), {"them"}),
        ('[1, "\\u00e9"]', True, ("a",), "tick", {"@42"}, {"me", "you"}),
        ("null", True, ("a",), "tick", set(), {"them"}),
        ("", False, ("a",), "tick", set(), {"them"}),
        ("café 😀", False, ("a",), "tick", set(), {"them"}),
    ]


async def test_an_array_needs_no_type_and_other_names_of_ndjson_are_known(hub_web: Web) -> None:
    for headers in ({}, {"Content-Type": "application/json"}, {"Content-Type": "application/x-www-form-urlencoded"}):
        answer = await hub_web.client.post("/broadcast?batch=1", content=b'[{"data":1}]', headers=headers)
        assert answer.status_code == 200
    for content_type in ("application/ndjson", "Application/X-NDJSON; charset=utf-8", "application/x-ndjson ;"):
        headers = {"Content-Type": content_type}
        assert (await hub_web.client.post("/broadcast", content=b"2\n3", headers=headers)).status_code == 200
    assert await datas(hub_web) == ["1"] * 3 + ["2", "3"] * 3


async def test_without_either_a_body_is_one_event_as_before(hub_web: Web) -> None:
    await hub_web.client.post("/broadcast", content=b"1\n2", headers={"Content-Type": "text/plain"})
    body = b'[{"data":1}]'
    await hub_web.client.post("/broadcast", content=body, headers={"Content-Type": "application/json"})
    assert await datas(hub_web) == ["1\n2", body.decode()]


# --- what is refused ---


@pytest.mark.parametrize(
    ("body", "code", "text"),
    [
        ("", "empty_body", "The body is the events"),
        ("\n \r\n", "empty_body", "The body is the events"),
        ("1\n\n{'a': 1}\n2", "invalid_json", "line 3: "),
        ("1\n{\n}", "invalid_json", "line 2: "),
        ("1\n2 3", "invalid_json", "line 2: "),
        ("1\nNaN", "invalid_json", "line 2: "),
        (b"1\n\xef\xbb\xbf2", "invalid_json", "line 2: "),
        (b'1\n2\n"\xff"', "invalid_utf8", "line 3: "),
        (f"1\n{'[' * 65}{']' * 65}", "too_deep", "line 2: "),
        (f"1\n{'[' * 100_000}", "too_deep", "line 2: "),
        (f"\n1\n{'2' * 101}", "too_large", "line 3: The data of a publication has at most 100 bytes"),
        ("1\n" * 1_001, "too_large", "A batch has at most 1,000 events"),
        ("1" * 100 + "\n" + "2" * 100, "too_large", "The events of a batch have at most 200 bytes together"),
    ],
    ids=lambda value: None if len(value) > 60 else ascii(value),
)
async def test_lines_that_are_not_right_are_named_and_reach_nobody(body: str | bytes, code: str, text: str) -> None:
    batch_bytes = 200 if text.startswith("The events") else 1_000_000
    async with web(Hub(body_max=100 if "100" in text else 256 * 1024, batch_bytes=batch_bytes)) as hub_web:
        answer = await lines(hub_web, body)
        assert code_of(answer)[1] == code
        assert detail(answer).startswith(text)
        assert hub_web.hub.node.totals.published == 0
        assert await datas(hub_web) == []


@pytest.mark.parametrize(
    ("body", "code", "text"),
    [
        ("", "invalid_json", "The body is not valid JSON"),
        ("[]", "empty_body", "The body is the events"),
        ('[{"data":1}', "invalid_json", "The body is not valid JSON"),
        ("{}", "invalid_batch", "With batch=1 the body is a JSON array"),
        ("[1]", "invalid_batch", "events[0]: "),
        ('[{"data":1},{"topic":"t"}]', "invalid_batch", "events[1]: "),
        ('[{"data":1},{"data":1,"s3cret":2}]', "invalid_batch", "events[1]: "),
        ('[{"data":1,"event":5}]', "invalid_batch", "events[0]: "),
        ('[{"data":1},{"data":1,"topic":["s3cret/*"]}]', "invalid_topic", "events[1]: "),
        ('[{"data":1,"topic":[]}]', "invalid_topic", "events[0]: topic is empty"),
        ('[{"data":1,"to":[]}]', "invalid_client", "events[0]: to is empty"),
        ('[{"data":1,"event":"welcome"}]', "reserved_event", "events[0]: "),
        ('[{"data":1,"event":""}]', "invalid_event", "events[0]: "),
        ('[{"data":1},{"data":2,"key":"two words"}]', "invalid_idempotency_key", "events[1]: "),
        ('[{"data":"\\ud83d"}]', "invalid_json", "The body is not valid JSON, or text in it holds half"),
        (b'[{"data":"\xff"}]', "invalid_utf8", "The body is not valid UTF-8"),
        ('[{"data":' + "[" * 65 + "]" * 65 + "}]", "too_deep", "events[0]: "),
        ("[" * 100_000, "invalid_batch", "events[0]: "),
        (
            f'[{{"data":1}},{{"data":"{"x" * 101}"}}]',
            "too_large",
            "events[1]: The data of a publication has at most 100",
        ),
        ('[{"data":"' + "é" * 51 + '"}]', "too_large", "events[0]: The data of a publication has at most 100"),
        ("[" + '{"data":1},' * 1_000 + '{"data":1}]', "too_large", "A batch has at most 1,000 events"),
    ],
    ids=lambda value: None if len(value) > 60 else ascii(value),
)
async def test_an_array_that_is_not_right_is_named_and_reaches_nobody(body: str | bytes, code: str, text: str) -> None:
    async with web(Hub(body_max=100 if "100" in text else 256 * 1024)) as hub_web:
        answer = await array(hub_web, body)
        assert code_of(answer)[1] == code
        assert detail(answer).startswith(text)
        assert "s3cret" not in answer.text
        assert await datas(hub_web) == []


@pytest.mark.parametrize(
    ("query", "headers", "code"),
    [
        ("topc=t", NDJSON, (400, "unknown_parameter")),
        ("batch=1&topc=t", {}, (400, "unknown_parameter")),
        ("batch=1", NDJSON, (400, "invalid_parameter")),
        ("batch=2", {}, (400, "invalid_parameter")),
        ("batch=", {}, (400, "invalid_parameter")),
        ("batch=1&batch=1", {}, (400, "invalid_parameter")),
        ("b%61tch=0", {}, (400, "invalid_parameter")),
        ("event=a&event=b", NDJSON, (400, "invalid_event")),
        ("topic=a/*", NDJSON, (400, "invalid_topic")),
        ("access_token=x", NDJSON, (400, "token_in_url")),
        ("", {"Content-Type": "application/x-ndjson; charset=latin-1"}, (415, "unsupported_type")),
        ("", {**NDJSON, "Content-Encoding": "gzip"}, (415, "unsupported_encoding")),
        ("", {**NDJSON, "Idempotency-Key": "two words"}, (400, "invalid_idempotency_key")),
    ],
)
async def test_a_head_that_is_not_right_is_refused(
    hub_web: Web, query: str, headers: dict[str, str], code: tuple[int, str]
) -> None:
    answer = await hub_web.client.post(f"/broadcast?{query}", content=b'[{"data":1}]', headers=headers)
    assert code_of(answer) == code
    assert await datas(hub_web) == []


# --- keys ---


async def test_the_same_batch_with_the_same_key_has_the_same_answer(hub_web: Web) -> None:
    async with hub_web.stream():
        first = await lines(hub_web, "1\n2", key="k", topic="t")
    assert (await lines(hub_web, "1\n\n2\r\n", key="k", topic="t")).json() == first.json()
    for body, topic in (("1\n2\n3", "t"), ("1", "t"), ("2\n1", "t"), ("1\n2", "u")):
        assert code_of(await lines(hub_web, body, key="k", topic=topic)) == (409, "key_reused")
    assert code_of(await hub_web.client.post("/broadcast", content="1", headers={"Idempotency-Key": "k"}))[0] == 409
    assert await datas(hub_web) == ["1", "2"]


async def test_items_with_keys_of_their_own_are_published_once_each(hub_web: Web) -> None:
    single = await hub_web.client.post("/broadcast", content="b", headers={"Idempotency-Key": "kb"})
    items = [{"data": "a", "key": "ka"}, {"data": "b", "key": "kb"}, {"data": "x"}]
    first = await array(hub_web, items)
    assert first.json()["ids"][1] == single.json()["id"]
    again = await array(hub_web, [*items[:2], {"data": "c", "key": "kc"}])
    assert again.json()["ids"][:2] == first.json()["ids"][:2]
    assert await datas(hub_web) == ["b", "a", "x", "c"]
    assert code_of(await array(hub_web, [{"data": "d"}, {"data": "not a", "key": "ka"}])) == (409, "key_reused")
    assert code_of(await array(hub_web, items, key="all")) == (400, "invalid_idempotency_key")
    assert await datas(hub_web) == ["b", "a", "x", "c"]


# --- who may ---


def granting(*topics: str, user: str | None = None) -> Callable[[object], Grant]:
    return lambda request: Grant.of(publish=topics, user=user)


async def test_every_topic_of_every_event_has_to_be_granted() -> None:
    async with web(Hub(authorize=granting("a/*"))) as hub_web:
        assert (await lines(hub_web, "1\n2", topic="a/1")).status_code == 200
        assert code_of(await lines(hub_web, "1\n2", topic="b")) == (403, "insufficient_scope")
        assert code_of(await lines(hub_web, "1\n2")) == (403, "insufficient_scope")
        allowed, denied = {"data": 1, "topic": "a/2"}, {"data": 2, "topic": ["a/2", "b"]}
        assert (await array(hub_web, [allowed] * 2)).status_code == 200
        refused = await array(hub_web, [allowed, denied, allowed])
        assert code_of(refused) == (403, "insufficient_scope")
        assert detail(refused).startswith("events[1]: ")
        assert code_of(await array(hub_web, [{"data": 1}], topic="b")) == (403, "insufficient_scope")
        assert len(await datas(hub_web)) == 4
        assert hub_web.hub.node.totals.auth["scope"] == 4


async def test_keys_of_callers_are_apart() -> None:
    users = iter(["ann", "bob", "ann", "bob", "ann", "bob"])
    async with web(Hub(authorize=lambda request: Grant.of(publish=("**",), user=next(users)))) as hub_web:
        for body in ("1\n2", "3"):
            assert (await lines(hub_web, body, key="k")).status_code == 200
        for data in (4, 5):
            assert (await array(hub_web, [{"data": data, "key": "k"}])).status_code == 409
        for data in (6, 7):
            assert (await array(hub_web, [{"data": data, "key": "l"}])).status_code == 200
        assert await datas(hub_web) == ["1", "2", "3", "6", "7"]


async def test_a_publish_key_is_asked_for_before_the_body_is_read() -> None:
    async with web(Hub(publish_key="0123456789abcdef")) as hub_web:
        assert code_of(await lines(hub_web, "not even JSON")) == (401, "unauthorized")
        headers = {**NDJSON, "Authorization": "Bearer 0123456789abcdef"}
        assert (await hub_web.client.post("/broadcast", content=b"1", headers=headers)).status_code == 200


async def test_a_hub_that_requires_topics_names_the_item_without_one() -> None:
    async with web(Hub(require_topic=True)) as hub_web:
        refused = await array(hub_web, [{"data": 1, "topic": "t"}, {"data": 2}])
        assert code_of(refused) == (400, "topic_required")
        assert detail(refused).startswith("events[1]: ")
        assert (await lines(hub_web, "1", topic="t")).status_code == 200


# --- size ---


async def test_a_large_batch_is_checked_in_a_thread_and_is_no_other_than_a_small_one(
    hub_web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: set[bool] = set()
    compose = batches.Batches._compose

    def noting(*given: Any) -> Any:
        threads.add(threading.current_thread() is threading.main_thread())
        return compose(*given)

    monkeypatch.setattr(batches.Batches, "_compose", noting)
    text = "é" * 150
    body = "\n".join(f'{{"n":{number},"x":"{text}"}}' for number in range(1_000))
    assert len(body.encode()) > LARGE
    answer = await lines(hub_web, body, topic="t", event="tick")
    assert threads == {False}
    items = [json.loads(line) for line in body.split("\n")]
    assert (await array(hub_web, [{"data": item, "topic": "t", "event": "tick"} for item in items])).status_code == 200
    found = await log_of(hub_web)
    assert [item.event.data for item in found[:1_000]] == body.split("\n")
    assert [str(item.position) for item in found[:1_000]] == answer.json()["ids"]
    assert [json.loads(item.event.data) for item in found[1_000:]] == items
    assert {(item.topics, item.type, item.is_json) for item in found} == {(("t",), "tick", True)}
