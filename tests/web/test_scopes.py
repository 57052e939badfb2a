"""Who may publish and subscribe where, and what an answer tells of what lies outside a grant: by lists of topics."""

import unicodedata
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from starlette.requests import Request

from sse_app import Hub
from sse_app.grants import OPEN, Grant
from tests.support.endpoints import payload
from tests.support.visibility import fits_any
from tests.support.web import Web, code_of, web

# The forms of a topic that is granted, each with whether it is a topic to publish on, and a topic filter.
CAFE = unicodedata.normalize("NFC", "café/1")
FORMS: dict[str, tuple[bool, bool]] = {
    "orders/1": (True, True),
    "Orders/1": (True, True),
    "orders/1/": (True, True),
    "orders//1": (True, True),
    "orders/1/x": (True, True),
    "orders%2F1": (True, True),  # as it is: what was encoded once is decoded once
    "orders/%2e%2e/secret": (True, True),
    "orders/../secret": (True, True),
    CAFE: (True, True),
    unicodedata.normalize("NFD", CAFE): (True, True),
    "orders/***": (True, True),  # no wildcard
    "orders": (True, True),
    "secret": (True, True),
    "orders/*": (False, True),
    "orders/**": (False, True),
    "**": (False, True),
    "**/1": (False, False),
    "": (False, False),
}
TOPICS = [form for form, (is_topic, _) in FORMS.items() if is_topic]
GRANTS: dict[str, tuple[str, ...]] = {
    "nothing": (),
    "everything": ("**",),
    "one topic": ("orders/1",),
    "one level": ("orders/*", CAFE),
    "a tree": ("orders/**",),
    "another topic": ("secret",),
}


@pytest.mark.parametrize("form", FORMS, ids=ascii)
@pytest.mark.parametrize("name", GRANTS)
async def test_a_publication_is_refused_exactly_where_its_topic_is_not_granted(name: str, form: str) -> None:
    granted = GRANTS[name]
    async with web(authorize=lambda request: Grant.of(publish=granted)) as opened:
        for topics in ([form], [form, *granted[:1]], [*granted[:1], form]):
            top = await opened.hub.broker.top()
            answer = await opened.client.post("/broadcast", content="x", params={"topic": topics})
            if all(fits_any(granted, topic) for topic in topics):
                can_be_published = all(topic in TOPICS for topic in topics)
                assert answer.status_code == (200 if can_be_published else 400)
            elif all(topic in TOPICS for topic in topics):
                assert code_of(answer) == (403, "insufficient_scope")
            else:
                assert answer.status_code in (400, 403)
            assert (await opened.hub.broker.top() == top) is (answer.status_code != 200)


@pytest.mark.parametrize("form", FORMS, ids=ascii)
@pytest.mark.parametrize("name", GRANTS)
async def test_a_stream_is_refused_exactly_where_it_has_nothing_in_common_with_the_grant(name: str, form: str) -> None:
    granted = GRANTS[name]
    async with web(authorize=lambda request: Grant.of(subscribe=granted)) as opened:
        async with opened.client.stream("GET", "/events", params={"topic": form}) as answer:
            status = answer.status_code
        common = [topic for topic in TOPICS if fits_any((form,), topic) and fits_any(granted, topic)]
        if not FORMS[form][1]:
            assert status == 400
            return
        assert status == (200 if common else 403)
        if common:
            async with opened.stream("/events", params={"topic": form}) as stream:
                shown = payload(await anext(stream))["topics"] or ("**",)
                assert [topic for topic in TOPICS if fits_any(shown, topic)] == common
                for topic in TOPICS:
                    await opened.hub.publish(topic, topic=topic)
                await opened.hub.publish("the end")  # for everyone
                assert [(await anext(stream)).data for _ in range(len(common) + 1)] == [*common, "the end"]


# What lies outside

NO_HEADERS: Mapping[str, str] = {}
OUTSIDE = ("users/bob-topic", "bob-topic", "bob-user", "bob-tab", "bob-data", "bob-type", "bob-key", "secret-topic")
WHO = {
    "anonymous": Grant.of(subscribe=("news/*",), broadcasts=False),
    "reader": Grant.of(user="ann", subscribe=("news/*", "users/ann"), client="ann-*"),
    "observer": Grant.of(user="ann", subscribe=("news/*",), stats="own"),
    "publisher": Grant.of(publish=("news/*",), stats="own"),
    "both": Grant.of(user="ann", subscribe=("news/*",), publish=("news/*",), stats="own", mint=True),
    "operator": Grant.of(subscribe=("**",), publish=("**",), stats="all"),
}


def who(request: Request) -> Grant | None:
    return WHO.get(request.headers.get("x-who", ""))


@asynccontextmanager
async def busy() -> AsyncIterator[tuple[Web, str]]:
    """A hub where others publish and listen, and an id to resume behind."""
    hub = Hub(authorize=who)
    async with web(hub) as opened, AsyncExitStack() as stack:
        bob = Grant.of(user="bob-user", subscribe=("users/bob-topic", "secret-topic"), client="bob-tab")
        for grant in (bob, OPEN):
            await stack.enter_async_context(hub.subscribe("users/bob-topic", client="bob-tab", grant=grant))
        begin = await hub.publish("n1", topic="news/1")
        for options in (
            {"topic": ["news/1", "users/bob-topic"]},  # of which only the first topic is shown
            {"topic": "users/bob-topic", "event": "bob-type"},
            {"topic": "news/1", "to": ["@bob-user", "bob-tab"], "event": "bob-type"},
            {"topic": "secret-topic", "exclude": "bob-tab", "idempotency_key": "bob-key"},
        ):
            is_shown = isinstance(options["topic"], list)
            await hub.publish("n2" if is_shown else "bob-data", **options)
        yield opened, begin.id


async def everything_told(opened: Web, begin: str, name: str) -> str:
    """All that the hub answers to one caller, whatever it asks."""
    told = list[str]()

    async def ask(method: str, url: str, headers: Mapping[str, str] = NO_HEADERS, **options: Any) -> None:
        async with opened.client.stream(method, url, headers={"X-Who": name, **headers}, **options) as answer:
            told.append(f"{answer.headers}")
            if method != "GET" or not answer.headers["content-type"].startswith("text/event-stream"):
                told.append((await answer.aread()).decode())
                return
            last = await opened.hub.publish("for all who may listen", topic=["news/1", "users/ann"])
            async for text in answer.aiter_text():
                told.append(text)
                if f"id: {last.id}\n" in text:
                    return

    for query in ("", "topic=**", "topic=news/1", "last=1", "last=50", "since=1h", f"last_event_id={begin}"):
        await ask("GET", f"/events?{query}")
        await ask("HEAD", f"/events?{query}")
    for cursor in ("junk", "e-7", begin.replace("-1", "-0"), begin.replace("-1", "-999")):
        await ask("GET", "/events", {"Last-Event-ID": cursor})
    for query in ("topic=users/*", "client=bob", "topic=a/**/b", "last=x", "tpoic=x", "ticket=x", "token=x"):
        await ask("GET", f"/events?{query}")
    for path in ("/stats", "/metrics", "/grant", "/none", "/events/x"):
        await ask("GET", path)
    for query in ("topic=news/1", "", "topic=users/x", "topic=news/1&to=@nobody", "topic=news/1&exclude=nobody"):
        await ask("POST", f"/broadcast?{query}", {"Idempotency-Key": f"key-{len(query)}"}, content="mine")
    for body in ("{}", '{"user": "carl"}', '{"topics": ["**"]}', '{"topics": ["news/1"]}', "[]"):
        await ask("POST", "/tickets", content=body)
    for query in ("", "user=bob-user", "client=bob-tab", "topic=users/bob-topic", "limit=x", "user=nobody"):
        await ask("GET", f"/connections?{query}")
        await ask("DELETE", f"/connections?{query}")
    await ask("DELETE", "/connections/bob-tab")
    for body in (
        '{"user": "bob-user"}',
        '{"user": "ann", "topics": ["users/bob-topic"]}',
        '{"user": "bob-user", "x": 1}',
    ):
        await ask("POST", "/revoke", content=body)
    return "\n".join(told)


@pytest.mark.parametrize("name", [*WHO, "nobody"])
async def test_no_answer_has_a_name_that_lies_outside_the_grant(name: str) -> None:
    async with busy() as (opened, begin):
        told = await everything_told(opened, begin, name)
        found = [word for word in OUTSIDE if word in told]
        if name == "operator":
            assert set(found) == {"users/bob-topic", "bob-topic", "bob-data", "bob-type", "secret-topic"}
        else:
            assert found == []
            assert ("event: welcome" in told) is (WHO.get(name, Grant()).subscribe is not None)
