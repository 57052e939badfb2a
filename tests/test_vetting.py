"""The app's word on what is published: before_publish."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import anyio
import pytest

from sse_app.errors import ConfigError, HubNotStarted, InvalidTopic, TopicRequired, Unavailable, Vetoed
from sse_app.events import Event
from sse_app.grants import OPEN, Grant
from sse_app.hub import Hub
from sse_app.publication import Draft, Publication
from sse_app.topics import TopicFilter
from sse_app.vetting import WINDOW, BeforePublish, Vetting
from sse_app.web.endpoints.body import LARGE
from tests.support.endpoints import JSON
from tests.support.web import code_of, web

FAILING: dict[str, Any] = {"raise_app_exceptions": False}  # of a transport that answers 500, as a server does


def hook(change: Callable[[Draft], Any]) -> BeforePublish:
    async def before_publish(draft: Draft, grant: Grant) -> Draft:
        changed: Draft = change(draft)
        return changed

    return before_publish


def raising(error: Exception) -> BeforePublish:
    async def before_publish(draft: Draft, grant: Grant) -> Draft:
        raise error

    return before_publish


async def log_of(hub: Hub) -> list[Publication]:
    return list(await hub.broker.newest(100, TopicFilter(), None))


async def test_it_sees_what_comes_through_every_door_with_the_grant_of_its_publisher() -> None:
    seen = list[tuple[str, Grant]]()

    async def before_publish(draft: Draft, grant: Grant) -> Draft:
        seen.append((draft.event.data, grant))
        return draft

    user = replace(Grant.of(publish=["news"], user="42"), source="authorize", issued=1.0)  # else these are filled in
    async with web(Hub(before_publish=before_publish, authorize=lambda request: user)) as hub_web:
        hub = hub_web.hub
        assert (await hub_web.post("over HTTP", topic="news")).status_code == 200
        await hub.publish("in process")
        await anyio.to_thread.run_sync(hub.publish_threadsafe, "from a thread")
        assert [item.event.data for item in await log_of(hub)] == ["over HTTP", "in process", "from a thread"]
    assert seen == [("over HTTP", user), ("in process", OPEN), ("from a thread", OPEN)]


async def test_what_it_returns_is_published() -> None:
    async def sign(draft: Draft, grant: Grant) -> Draft:
        signed = draft.with_data({**json.loads(draft.event.data), "by": grant.user})
        return replace(signed, topics=("signed", *draft.topics), to=frozenset(["a", "@42"]))

    user = Grant.of(publish=["news"], user="42")
    async with web(Hub(before_publish=sign, authorize=lambda request: user)) as hub_web:
        await hub_web.client.post("/broadcast", content='{"n": 1}', params={"topic": "news"}, headers=JSON)
        (found,) = await log_of(hub_web.hub)
    assert (json.loads(found.event.data), found.is_json) == ({"n": 1, "by": "42"}, True)
    assert (found.topics, found.to) == (("signed", "news"), frozenset(["a", "@42"]))


async def test_a_large_body_is_what_it_returns_too() -> None:
    async with web(Hub(before_publish=hook(lambda draft: draft.with_data("short")), body_max=10**6)) as hub_web:
        await hub_web.post("x" * (LARGE + 1))
        assert [item.event.data for item in await log_of(hub_web.hub)] == ["short"]


async def test_a_veto_is_told_in_its_own_words() -> None:
    async with web(Hub(before_publish=raising(Vetoed("Not on Sundays.")))) as hub_web:
        answer = await hub_web.post("x")
        assert code_of(answer) == (422, "vetoed")
        assert answer.json()["detail"] == "Not on Sundays."
        with pytest.raises(Vetoed, match=r"Not on Sundays\."):
            await hub_web.hub.publish("x")
        assert await log_of(hub_web.hub) == []


@pytest.mark.parametrize("error", [KeyError("s3cret"), InvalidTopic("s3cret"), Unavailable("s3cret"), TimeoutError()])
async def test_what_else_it_raises_is_a_mistake_of_the_apps_and_nothing_is_published(error: Exception) -> None:
    async with web(Hub(before_publish=raising(error)), transport=FAILING) as hub_web:
        answer = await hub_web.post("x")
        assert code_of(answer) == (500, "internal_error")
        assert "s3cret" not in answer.text
        with pytest.raises(RuntimeError, match=type(error).__name__) as caught:
            await hub_web.hub.publish("x")
        assert caught.value.__cause__ is error
        assert await log_of(hub_web.hub) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda draft: None,
        lambda draft: draft.event,
        lambda draft: replace(draft, topics=("a\nb",)),
        lambda draft: replace(draft, topics=("*",)),
        lambda draft: replace(draft, topics=tuple(map(str, range(17)))),
        lambda draft: replace(draft, event=Event("x", "welcome")),
        lambda draft: replace(draft, event=Event("x", "$revoke")),
        lambda draft: replace(draft, to=frozenset(["/"])),
        lambda draft: replace(draft, exclude=frozenset(["two words"])),
        lambda draft: draft.with_data("x" * 101),
        lambda draft: draft.with_data(object()),
        lambda draft: replace(draft, event=Event("{")),  # said to be JSON
        lambda draft: replace(draft, event=Event({"n": 1})),  # type: ignore[arg-type]
        lambda draft: replace(draft, topics=()),  # a limit is changed, but not taken away
        lambda draft: replace(draft, to=frozenset()),
    ],
)
async def test_what_could_not_be_published_is_not_because_it_says_so(change: Callable[[Draft], Any]) -> None:
    async with web(Hub(before_publish=hook(change), body_max=100), transport=FAILING) as hub_web:
        params = {"topic": "t", "to": "a"}
        answer = await hub_web.client.post("/broadcast", content="{}", params=params, headers=JSON)
        assert code_of(answer) == (500, "internal_error")
        assert await log_of(hub_web.hub) == []


async def test_every_part_of_a_draft_may_be_replaced() -> None:
    event = Event("b", "tick", "dropped", 3)
    new = replace(Draft(event), topics=("t", "u", "t"), exclude=frozenset(["b"]), idempotency_key="k")
    async with Hub(before_publish=hook(lambda draft: new)) as hub:
        first, second = await hub.publish("a"), await hub.publish("a")
        (found,) = await log_of(hub)
    assert first.position == second.position
    assert (found.event, found.topics) == (Event("b", "tick", str(first.position)), ("t", "u"))
    assert found.exclude == {"b"}


async def test_it_may_give_a_publication_the_topic_that_it_needs() -> None:
    async with Hub(before_publish=hook(lambda draft: replace(draft, topics=("t",))), require_topic=True) as hub:
        await hub.publish("x")
    async with Hub(before_publish=hook(lambda draft: draft), require_topic=True) as hub:
        with pytest.raises(TopicRequired):
            await hub.publish("x")


@pytest.mark.virtual_time
async def test_one_that_takes_too_long_is_an_outage_and_holds_up_nobody_else() -> None:
    async def before_publish(draft: Draft, grant: Grant) -> Draft:
        if draft.event.data == "slow":
            await asyncio.sleep(WINDOW + 1)
        return draft

    async with web(Hub(before_publish=before_publish)) as hub_web:
        slow = asyncio.create_task(hub_web.post("slow"))
        await asyncio.sleep(WINDOW - 1)
        assert (await hub_web.post("quick")).status_code == 200
        answer = await slow
        assert code_of(answer) == (503, "unavailable")
        assert "before_publish" in answer.json()["detail"]
        assert [item.event.data for item in await log_of(hub_web.hub)] == ["quick"]


async def test_nothing_is_published_on_a_hub_that_stopped_meanwhile() -> None:
    asked, stopped = asyncio.Event(), asyncio.Event()

    async def before_publish(draft: Draft, grant: Grant) -> Draft:
        asked.set()
        await stopped.wait()
        return draft

    async with Hub(before_publish=before_publish) as hub:
        late = asyncio.create_task(hub.publish("x"))
        await asked.wait()
    stopped.set()
    with pytest.raises(HubNotStarted):
        await late


@pytest.mark.virtual_time
async def test_who_no_longer_waits_is_cancelled() -> None:
    async def before_publish(draft: Draft, grant: Grant) -> Draft:
        await asyncio.sleep(WINDOW)
        return draft

    vetting = Vetting(before_publish)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await vetting.ask(Draft(Event("x")), OPEN)


def test_it_is_a_function() -> None:
    wrong: Any = "stamp"
    with pytest.raises(ConfigError, match=r"^before_publish is an async function"):
        Hub(before_publish=wrong)


async def test_one_that_is_not_async_is_told_so() -> None:
    wrong: Any = lambda draft, grant: draft  # noqa: E731
    async with Hub(before_publish=wrong) as hub:
        with pytest.raises(RuntimeError, match="TypeError"):
            await hub.publish("x")
