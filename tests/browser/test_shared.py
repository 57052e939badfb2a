"""static/sse-app.js in real tabs: one connection for all, and each event once and in order, whichever tab ends."""

import asyncio
import random
import runpy
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect
from starlette.applications import Starlette
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from sse_app import Client, Hub
from sse_app.pytest_plugin import HubServer
from sse_app.testing import live, run_virtual
from sse_app.web.app import static_directory
from tests.browser.conftest import Tabs
from tests.support import whatwg
from tests.support.peers import PATIENCE
from tests.support.web import until_open

pytestmark = pytest.mark.browser

BLANK = '<!doctype html><link rel="icon" href="data:,"><title>A page</title>'
EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"

LISTEN = """async ([url, options, module]) => {
    const { connect } = await import(module);
    window.seen = [];
    window.states = [];
    window.stream = connect(url, options);
    stream.onevent = event => seen.push([event.type, event.data, event.lastEventId]);
    for (const type of ["open", "error"]) stream.addEventListener(type, () => states.push(stream.state));
}"""


@dataclass
class Site:
    """A page, and beside it a hub below /hub, whose streams can be refused."""

    hub: Hub
    url: str = ""
    refusal: Response | None = None
    asked: list[QueryParams] = field(default_factory=list)

    def app(self) -> ASGIApp:
        async def blank(request: Request) -> Response:
            return HTMLResponse(BLANK)

        app = Starlette(routes=[Route("/", blank), Mount("/hub", self.hub.app)], lifespan=self.hub.lifespan)

        async def gate(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http" and scope["path"] == "/hub/events":
                self.asked.append(QueryParams(scope["query_string"]))
                if self.refusal is not None:
                    await self.refusal(scope, receive, send)
                    return
            await app(scope, receive, send)

        return gate

    def publish(self, *data: str, **options: Any) -> list[str]:
        return [self.hub.publish_threadsafe(item, **options).id for item in data]


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site(Hub(drain=0.2, retry_min=0.02, retry_max=0.04))  # so that reconnects do not take seconds each
    with live(site.app()) as server:
        site.url = server.url
        yield site


@pytest.fixture(params=["worker", "locks"])
def shared(request: pytest.FixtureRequest) -> str:
    """The two ways in which tabs share a connection."""
    return str(request.param)


Open = Callable[..., Page]


@pytest.fixture
def open_tab(site: Site, tabs: Tabs) -> Open:
    """A tab that listens, and is connected unless ``wait`` is False. Keywords are the options of ``connect``."""

    def open_tab(url: str = "/hub/events", *, wait: bool = True, **options: Any) -> Page:
        page = tabs.open(site.url)
        listen(page, url, **options)
        if wait:
            page.wait_for_function("stream.state.name == 'open'")
        return page

    return open_tab


def listen(page: Page, url: str, module: str = "/hub/static/sse-app.js", **options: Any) -> None:
    page.evaluate(LISTEN, [url, options, module])


def ids(page: Page, last: str | None = None) -> list[str]:
    """The ids of the publications that a tab got, once the last one is there."""
    if last is not None:
        page.wait_for_function("last => seen.some(([type, , id]) => type == 'message' && id == last)", arg=last)
    found: list[str] = page.evaluate("seen.filter(([type]) => type == 'message').map(([, , id]) => id)")
    return found


def data(page: Page, last: str) -> list[str]:
    """The data of the events that a tab got, of every type but welcome, once the last one is there."""
    page.wait_for_function("last => seen.some(([, data]) => data == last)", arg=last)
    found: list[str] = page.evaluate("seen.filter(([type]) => type != 'welcome').map(([, data]) => data)")
    return found


def types(page: Page) -> list[str]:
    found: list[str] = page.evaluate("seen.map(([type]) => type)")
    return found


def until_error(page: Page) -> dict[str, Any]:
    """Wait for an error, and return the state that came with the newest one."""
    page.wait_for_function("states.some(state => state.name == 'waiting')")
    state: dict[str, Any] = page.evaluate("states.findLast(state => state.name == 'waiting')")
    return state


class Publisher:
    """Publishes without a pause, in a thread, until it is stopped."""

    def __init__(self, site: Site, **options: Any) -> None:
        self.published: list[str] = []
        self._site, self._options = site, options
        self._stopped = threading.Event()
        self._grown = threading.Condition()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stopped.wait(0.001):
            with self._grown:
                self.published += self._site.publish("x", **self._options)
                self._grown.notify_all()

    def more(self, number: int = 50) -> None:
        """Return when so many more are published."""
        with self._grown:
            goal = len(self.published) + number
            assert self._grown.wait_for(lambda: len(self.published) >= goal, PATIENCE)

    def __enter__(self) -> "Publisher":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopped.set()
        self._thread.join(PATIENCE)


def test_ten_tabs_are_one_connection_and_each_gets_every_event_once(site: Site, shared: str, open_tab: Open) -> None:
    pages = [open_tab(shared=shared) for _ in range(10)]
    assert {page.evaluate("stream.shared") for page in pages} == {shared}
    published = site.publish(*map(str, range(100)))
    for page in pages:
        assert ids(page, published[-1]) == published
        assert types(page)[0] == "welcome"
    assert (len(site.hub), site.hub.node.totals.connected) == (1, 1)


def test_whichever_tab_is_closed_nothing_is_lost_or_doubled(site: Site, shared: str, open_tab: Open) -> None:
    pages = [open_tab(shared=shared) for _ in range(4)]
    with Publisher(site) as publisher:
        publisher.more()
        for page in pages[:3]:  # each of these leads in turn
            page.close()
            publisher.more()
    assert ids(pages[3], publisher.published[-1]) == publisher.published
    until_open(site.hub, 1)


def test_tabs_that_come_and_go_hear_everything_from_when_they_came(site: Site, shared: str, open_tab: Open) -> None:
    pages: list[Page] = []
    with Publisher(site) as publisher:
        for _ in range(6):
            pages.append(open_tab(shared=shared))
            publisher.more(20)
            if len(pages) > 3:
                pages.pop(0).close()
    for page in pages:
        got = ids(page, publisher.published[-1])
        assert got == publisher.published[-len(got) :]
        assert len(got) >= 20
    until_open(site.hub, 1)


def test_a_later_tab_is_welcomed_and_hears_what_comes_from_then_on(site: Site, shared: str, open_tab: Open) -> None:
    first = open_tab(shared=shared)
    before = site.publish("before")
    ids(first, before[0])
    second = open_tab(shared=shared)
    after = site.publish("after")
    assert ids(second, after[0]) == after
    assert types(second) == ["welcome", "message"]
    assert site.hub.node.totals.connected == 1


def test_a_tab_gets_the_history_that_it_asks_for_and_the_others_do_not(site: Site, shared: str, open_tab: Open) -> None:
    site.publish("1", "2", "3")
    first = open_tab(shared=shared, last=1)
    assert data(first, "3") == ["3"]
    cursor = first.evaluate("stream.lastEventId")
    site.publish("4")
    data(first, "4")
    late = [open_tab("/hub/events?last=3", shared=shared), open_tab(shared=shared, lastEventId=cursor)]
    late += [open_tab(shared=shared, since="1h"), open_tab(shared=shared)]
    until_open(site.hub, 1)  # tabs that fetched something by themselves share again
    site.publish("5")
    assert data(first, "5") == ["3", "4", "5"]
    assert [data(page, "5") for page in late] == [["2", "3", "4", "5"], ["4", "5"], ["1", "2", "3", "4", "5"], ["5"]]
    assert all(types(page).count("welcome") == 1 for page in late)


def test_a_tab_does_not_get_the_history_of_one_that_it_waits_with(
    site: Site, tabs: Tabs, shared: str, open_tab: Open
) -> None:
    tabs.expected.append("status of")
    site.publish("1", "2")
    site.refusal = Response(status_code=500)
    first = open_tab(shared=shared, last=2, wait=False)
    until_error(first)
    second = open_tab(shared=shared, wait=False)
    until_error(second)
    site.refusal = None
    for page in (first, second):
        page.wait_for_function("stream.state.name == 'open'")
    site.publish("3")
    assert [data(page, "3") for page in (first, second)] == [["1", "2", "3"], ["3"]]
    until_open(site.hub, 1)


def test_a_tab_of_a_quiet_topic_joins_the_others_without_waiting_for_an_event(
    site: Site, shared: str, open_tab: Open
) -> None:
    site.publish("1", topic="quiet")
    site.publish("2", topic="else")
    open_tab(shared=shared, topics=["quiet"])
    late = open_tab(shared=shared, topics=["quiet"], last=1)
    assert data(late, "1") == ["1"]
    until_open(site.hub, 1)


def test_tabs_with_the_same_topics_share_and_nobody_gets_what_it_did_not_ask_for(
    site: Site, shared: str, open_tab: Open
) -> None:
    orders = [open_tab(shared=shared, topics=["orders/*", "all"]) for _ in range(2)]
    orders.append(open_tab("/hub/events?topic=orders/*", shared=shared, topics=["all", "all"]))
    news = open_tab(shared=shared, topics=["news/**"])
    assert len(site.hub) == 2
    site.publish("order", topic="orders/1")
    site.publish("news", topic="news/of/today")
    site.publish("neither", topic="else")
    site.publish("end")
    assert [data(page, "end") for page in orders] == [["order", "end"]] * 3
    assert data(news, "end") == ["news", "end"]


def test_other_topics_from_the_same_position_on_lose_nothing(site: Site, shared: str, open_tab: Open) -> None:
    page = open_tab(shared=shared, topics=["a"])
    with Publisher(site) as publisher:
        publisher.more()
        page.evaluate(
            """async () => {
                const { connect } = await import("/hub/static/sse-app.js");
                const { lastEventId, shared, onevent } = stream;
                stream.close();
                window.stream = connect("/hub/events", { topics: ["b"], lastEventId, shared });
                stream.onevent = onevent;
            }"""
        )
        publisher.more()
    assert ids(page, publisher.published[-1]) == publisher.published


def test_a_closed_stream_is_silent_and_the_last_one_ends_the_connection(
    site: Site, shared: str, open_tab: Open
) -> None:
    first, second = open_tab(shared=shared), open_tab(shared=shared)
    first.evaluate("stream.close()")
    assert first.evaluate("[stream.state.name, stream.readyState]") == ["closed", 2]
    published = site.publish("after")
    assert ids(second, published[0]) == published
    assert ids(first) == []
    second.evaluate("stream.close()")
    until_open(site.hub, 0)
    listen(first, "/hub/events", shared=shared)  # the worker is still there, and connects anew
    first.wait_for_function("stream.state.name == 'open'")
    assert len(site.hub) == 1


@pytest.mark.parametrize("shared", ["worker", "locks", "none"])
def test_a_page_that_was_put_away_comes_back_for_what_it_missed(site: Site, shared: str, open_tab: Open) -> None:
    """Pages go into the cache for the back button, which is off in the tests' browser, or are frozen."""
    leader, other = open_tab(shared=shared), open_tab(shared=shared)
    for away, back, target in [("pagehide", "pageshow", "window"), ("freeze", "resume", "document")]:
        leader.evaluate(f"{target}.dispatchEvent(new Event('{away}'))")
        until_open(site.hub, 1)
        missed = site.publish("missed")[0]
        ids(other, missed)
        assert missed not in ids(leader)
        leader.evaluate(f"{target}.dispatchEvent(new Event('{back}'))")
        ids(leader, missed)
        until_open(site.hub, 2 if shared == "none" else 1)
    published = site.publish("end")
    assert ids(leader, published[0]) == ids(other, published[0])


@pytest.mark.parametrize("type", ["welcome", "message"])
def test_a_stream_that_a_handler_closes_is_silent_from_then_on(
    site: Site, tabs: Tabs, shared: str, open_tab: Open, type: str
) -> None:
    tabs.expected.append("status of")
    site.refusal = Response(status_code=503)
    page = open_tab(shared=shared, wait=False)
    until_error(page)  # so that nothing comes before the handler is there
    page.evaluate("type => stream.addEventListener(type, () => stream.close())", type)
    site.refusal = Response(f"{WELCOME}data: 1\n\ndata: 2\n\n", media_type="text/event-stream")
    page.evaluate("stream.reconnect()")
    page.wait_for_function("stream.readyState == 2")
    assert types(page)[-1] == type
    assert types(page).count("message") <= 1


def test_a_frozen_leader_makes_room(site: Site, open_tab: Open) -> None:
    leader, other = open_tab(shared="locks"), open_tab(shared="locks")
    browser = leader.context.new_cdp_session(leader)
    browser.send("Page.setWebLifecycleState", {"state": "frozen"})
    published = site.publish("1", "2")
    assert ids(other, published[-1]) == published
    browser.send("Page.setWebLifecycleState", {"state": "active"})
    assert ids(leader, published[-1]) == published
    until_open(site.hub, 1)


def test_a_tab_that_goes_without_a_word_is_noticed(site: Site, tabs: Tabs, shared: str, open_tab: Open) -> None:
    """A tab that crashes gets no event at its end; here the module does not get it."""
    tabs.context.add_init_script("addEventListener('pagehide', event => event.stopImmediatePropagation())")
    going, other = open_tab(shared=shared), open_tab(shared=shared)
    going.close()
    published = site.publish("after")
    assert ids(other, published[0]) == published
    other.evaluate("stream.close()")
    until_open(site.hub, 0)


# With window.cutOff a tab gets no messages of the other tabs, and sends none.
CUT_OFF = """
    window.held = [];
    const { onmessage } = Object.getOwnPropertyDescriptors(BroadcastChannel.prototype);
    const { postMessage } = BroadcastChannel.prototype;
    Object.defineProperty(BroadcastChannel.prototype, "onmessage", {
        set(handler) { onmessage.set.call(this, event => window.cutOff ? held.push(event.data) : handler(event)); }
    });
    BroadcastChannel.prototype.postMessage = function (message) { window.cutOff || postMessage.call(this, message); };
"""


def until_sent_to(page: Page, last: str) -> None:
    """Wait until an event was sent to a tab that is cut off: one sent later would reach it."""
    page.wait_for_function("last => held.some(({ batch }) => batch?.cursor == last)", arg=last)


def test_a_tab_that_missed_messages_of_the_others_fetches_them(site: Site, tabs: Tabs, open_tab: Open) -> None:
    tabs.context.add_init_script(CUT_OFF)
    leader, other = open_tab(shared="locks"), open_tab(shared="locks")
    published = site.publish("1")
    ids(other, published[-1])
    other.evaluate("window.cutOff = true")
    published += site.publish("2", "3")
    until_sent_to(other, published[-1])
    other.evaluate("window.cutOff = false")
    published += site.publish("4")
    assert ids(other, published[-1]) == ids(leader, published[-1]) == published
    until_open(site.hub, 1)
    assert site.asked[-1]["last_event_id"] == published[0]


def test_a_leader_that_has_to_catch_up_doubles_nothing_for_the_others(site: Site, tabs: Tabs, open_tab: Open) -> None:
    tabs.context.add_init_script(CUT_OFF)
    leader, heir, other = (open_tab(shared="locks") for _ in range(3))
    heir.evaluate("window.cutOff = true")
    published = site.publish("1", "2")
    ids(other, published[-1])
    until_sent_to(heir, published[-1])
    heir.evaluate("window.cutOff = false")
    leader.close()
    published += site.publish("3")
    assert ids(heir, published[-1]) == ids(other, published[-1]) == published
    until_open(site.hub, 1)


def test_a_leader_that_does_not_answer_is_replaced(site: Site, tabs: Tabs, open_tab: Open) -> None:
    tabs.context.add_init_script(CUT_OFF)
    leader = open_tab(shared="locks")
    other = tabs.context.new_page()
    other.clock.install()
    other.goto(site.url)
    listen(other, "/hub/events", shared="locks")
    other.wait_for_function("stream.state.name == 'open'")
    before = site.publish("before")
    assert ids(other, before[0]) == before
    leader.evaluate("window.cutOff = true")
    published = before + site.publish("only the leader", "hears this")
    ids(leader, published[-1])
    assert ids(other) == before
    while len(site.asked) < 2:
        other.clock.run_for(1_000)
    assert ids(other, published[-1]) == published
    leader.evaluate("window.cutOff = false")  # from here on it follows the other tab
    published += site.publish("all hear this")
    assert ids(leader, published[-1]) == ids(other, published[-1]) == published
    until_open(site.hub, 1)


def test_a_worker_that_died_is_replaced(site: Site, tabs: Tabs) -> None:
    page = tabs.context.new_page()
    page.clock.install()
    page.goto(site.url)
    # The first worker is a port that nothing answers, and the second one real.
    page.evaluate(
        """() => {
            const Real = window.SharedWorker;
            window.made = 0;
            window.SharedWorker = class {
                constructor(...all) { return made++ ? new Real(...all) : { port: new MessageChannel().port1 }; }
            };
        }"""
    )
    listen(page, "/hub/events", shared="worker")
    while page.evaluate("made") < 2:
        page.clock.run_for(1_000)
    page.wait_for_function("stream.state.name == 'open'")
    assert len(site.hub) == 1


PROBLEM = "application/problem+json"
PASSING = {
    "408": Response("late", 408),
    "425": Response("early", 425),
    "429": Response('{"code":"too_bad","detail":"That is too bad."}', 429, media_type=PROBLEM),
    "500": Response("oh", 500),
    "501": Response("{", 501, media_type=PROBLEM),
    "503": Response("null", 503, media_type=PROBLEM),
    "a page": Response(BLANK, media_type="text/html"),
}


@pytest.mark.parametrize("refusal", PASSING)
def test_what_may_pass_is_tried_again(site: Site, tabs: Tabs, shared: str, open_tab: Open, refusal: str) -> None:
    tabs.expected.append("status of|net::ERR_")
    page = open_tab(shared=shared)
    published = site.publish("1")
    ids(page, published[0])
    site.refusal = PASSING[refusal]
    end_streams(site)
    while len(site.asked) < 4:
        page.wait_for_function(
            "n => states.filter(state => state.name == 'waiting').length > n", arg=len(site.asked) - 1
        )
    state = page.evaluate("states.findLast(state => state.status)")
    assert state["status"] == site.refusal.status_code
    if refusal == "429":
        assert (state["code"], state["detail"]) == ("too_bad", "That is too bad.")
    else:
        assert state["detail"] == f"The answer was no stream (status {site.refusal.status_code})."
    published += site.publish("2")
    site.refusal = None
    assert ids(page, published[-1]) == published
    assert site.asked[-1]["last_event_id"] == published[0]
    assert page.evaluate("stream.readyState") == 1


FINAL = [204, 400, 401, 403, 404, 421]


def until_stopped(page: Page) -> dict[str, Any]:
    page.wait_for_function("stream.state.name == 'stopped'")
    state: dict[str, Any] = page.evaluate("stream.state")
    return state


@pytest.mark.parametrize("status", FINAL)
def test_what_another_try_cannot_change_stops_all_tabs_until_one_tries_again(
    site: Site, tabs: Tabs, shared: str, open_tab: Open, status: int
) -> None:
    tabs.expected.append("status of")
    pages = [open_tab(shared=shared) for _ in range(2)]
    published = site.publish("1")
    for page in pages:
        ids(page, published[0])
    problem = b"" if status == 204 else b'{"code":"too_bad","detail":"That is too bad."}'
    site.refusal = Response(problem, status, media_type=None if status == 204 else PROBLEM)
    end_streams(site)
    for page in pages:
        state = until_stopped(page)
        assert state["status"] == status
        if status != 204:
            assert (state["code"], state["detail"]) == ("too_bad", "That is too bad.")
        page.wait_for_function("states.at(-1).name == 'stopped'")  # the event is an error
        assert page.evaluate("[stream.readyState, stream.state.until ?? null]") == [2, None]
        page.evaluate("dispatchEvent(new Event('online'))")  # starts the next attempt of a stream that waits
    published += site.publish("2")
    site.refusal = None
    pages[1].evaluate("stream.reconnect()")
    for page in pages:
        assert ids(page, published[-1]) == published
        assert page.evaluate("states.filter(({ name }) => name == 'stopped').length") == 1
    if status != 421:  # after a 421 Chromium itself repeats the request
        assert [query.get("last_event_id") for query in site.asked] == [None, *[published[0]] * 2]  # none in between


def test_a_tab_that_comes_tries_again_for_those_that_have_stopped(
    site: Site, tabs: Tabs, shared: str, open_tab: Open
) -> None:
    """The user has logged in, in whichever tab."""
    tabs.expected.append("status of")
    page = open_tab(shared=shared)
    published = site.publish("1")
    ids(page, published[0])
    site.refusal = Response("who?", 401)
    end_streams(site)
    until_stopped(page)
    until_stopped(open_tab(shared=shared, wait=False))
    page.wait_for_function(
        "states.filter(({ name }) => name == 'stopped').length == 2"
    )  # the new attempt was refused as well
    site.refusal = None
    published += site.publish("2")
    other = open_tab(shared=shared)
    published += site.publish("3")
    assert ids(page, published[-1]) == published
    assert ids(other, published[-1]) == published[1:]  # the new tab begins where the others are
    until_open(site.hub, 1)


def test_a_tab_that_asks_for_nonsense_stops_no_other(site: Site, tabs: Tabs, shared: str, open_tab: Open) -> None:
    tabs.expected.append("status of 400")
    published = site.publish("1")
    wrong = open_tab(shared=shared, since="yesterday", wait=False)
    assert until_stopped(wrong)["code"] == "invalid_since"
    others = [open_tab(shared=shared, last=1) for _ in range(2)]
    published += site.publish("2")
    for page in others:
        assert ids(page, published[-1]) == published
    assert until_stopped(wrong)["code"] == "invalid_since"
    assert ids(wrong) == []
    until_open(site.hub, 1)


def test_a_handler_may_reconnect_at_once(site: Site, tabs: Tabs, open_tab: Open) -> None:
    tabs.expected.append("status of")
    page = open_tab(shared="none")
    site.refusal = Response("who?", 401)
    page.evaluate("window.tries = 0; stream.onerror = () => { tries += 1; stream.reconnect(); }")
    end_streams(site)
    page.wait_for_function("tries > 3")
    site.refusal = None
    page.wait_for_function("stream.state.name == 'open'")


# Every wait is recorded and ends at once, except that for the end of a silence.
NO_WAITS = """() => {
    window.waits = [];
    const real = setTimeout;
    window.setTimeout = (work, ms) => {
        if (ms == 45_000) return real(work, ms);
        waits.push(ms);
        return real(work, 0);
    };
}"""


WELCOME = 'id: e-1\nevent: welcome\ndata: {"client":"c-1","top":"e-1","last":null}\n\n'


@pytest.mark.parametrize(
    ("retry", "wait"), [("0", 100), ("99", 100), ("5000", 5000), ("2147483648", 3_600_000), ("9" * 400, 3_600_000)]
)
def test_a_reconnection_time_is_kept_within_reason(site: Site, open_tab: Open, retry: str, wait: int) -> None:
    page = open_tab(shared="none")
    page.evaluate(NO_WAITS)
    site.refusal = Response(f"retry: {retry}\n\n{WELCOME}", media_type="text/event-stream")
    end_streams(site)
    page.wait_for_function("waits.length >= 5")  # the first ones may still be what the hub has asked for
    assert page.evaluate("waits.slice(3, 5)") == [wait] * 2
    page.evaluate("stream.close()")


def test_a_hub_that_welcomes_nobody_is_asked_less_and_less(site: Site, open_tab: Open) -> None:
    """A full or draining hub answers a browser 200, with a reconnection time and nothing else."""
    page = open_tab(shared="none")
    page.evaluate(NO_WAITS)
    page.evaluate("Math.random = () => 1")
    site.refusal = Response("retry: 2000\n\n", media_type="text/event-stream")
    end_streams(site)
    page.wait_for_function("waits.length >= 7")
    assert page.evaluate("waits.slice(2, 7)") == [8_000, 16_000, 30_000, 30_000, 30_000]
    page.evaluate("stream.close()")


NOON = "Mon, 02 Jan 2040 12:00:00 GMT"


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({"Retry-After": "120"}, 120_000),
        ({"Retry-After": "1000000"}, 3_600_000),
        ({"Retry-After": "0"}, 3000),
        ({"Retry-After": "soon"}, 3000),
        ({"Retry-After": "-5"}, 3000),
        ({"Retry-After": "Mon, 02 Jan 2040 12:02:00 GMT", "Date": NOON}, 120_000),
        ({"Retry-After": "Mon, 02 Jan 2040 11:58:00 GMT", "Date": NOON}, 3000),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
def test_it_does_not_come_before_retry_after(
    site: Site, tabs: Tabs, status: int, headers: dict[str, str], wait: int
) -> None:
    page = tabs.open(site.url)
    page.evaluate("Math.random = () => 1 / 3")  # of the time until a hub has named one: 3 s
    page.evaluate(
        "answer => { window.fetch = async () => new Response('', answer); }", {"status": status, "headers": headers}
    )
    page.evaluate(NO_WAITS)
    listen(page, "/hub/events", shared="none")
    page.wait_for_function("waits.length >= 1")
    assert page.evaluate("waits[0]") == wait
    page.evaluate("stream.close()")


def end_streams(site: Site) -> None:
    """Cut every open stream, as a server or proxy may."""
    assert site.hub.node.life._loop is not None
    for subscriber in list(site.hub.node._delivery):
        site.hub.node.life._loop.call_soon_threadsafe(subscriber.cut)


def test_it_waits_longer_each_time_and_never_less_than_the_hub_asked_for(
    site: Site, tabs: Tabs, open_tab: Open
) -> None:
    tabs.expected.append("net::ERR_")
    page = open_tab(shared="none")
    page.evaluate(NO_WAITS)
    page.route("**/hub/events*", lambda route: route.abort())
    end_streams(site)
    page.wait_for_function("waits.length >= 14")
    first, *later = page.evaluate("waits.slice(0, 14)")
    assert first == 100  # this hub asks for less than the least
    for number, wait in enumerate(later, 1):
        most = min(30_000, 500 * 2**number)
        assert most / 2 <= wait <= most
    assert len(set(later)) == len(later)  # at random
    page.unroute_all()
    page.wait_for_function("stream.state.name == 'open'")


FAILURES: list[dict[str, str]] = [{}, {}, {}, {"Retry-After": "20"}, {}, {}, {}, {}, {}]  # headers of answers 503


async def waits_in_python(welcome: str) -> list[float]:
    """The seconds that ``Client`` waits after a stream with this welcome, and then after each of FAILURES."""
    answers = iter(
        [httpx.Response(200, headers={"Content-Type": "text/event-stream"}, text=welcome)]
        + [httpx.Response(503, headers=headers) for headers in FAILURES]
    )
    times: list[float] = []

    def answer(request: httpx.Request) -> httpx.Response:
        times.append(asyncio.get_running_loop().time())
        return next(answers, httpx.Response(204))

    async with (
        httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http,
        Client("http://hub", http=http) as client,
    ):
        assert [event async for event in client.listen()] == []
    return [later - earlier for earlier, later in pairwise(times)]


@pytest.mark.parametrize("chance", [0, 0.25, 0.999])
@pytest.mark.parametrize("retry", [0.1, 0.7, 5, 50])
def test_it_waits_as_the_client_for_python_does(
    site: Site, tabs: Tabs, open_tab: Open, monkeypatch: pytest.MonkeyPatch, retry: float, chance: float
) -> None:
    """With the same reconnection time, in seconds, the same failures and the same chance: the same waits."""
    tabs.expected.append("status of")
    page = open_tab(shared="none")
    page.evaluate(NO_WAITS)
    page.evaluate("chance => { Math.random = () => chance; }", chance)
    welcome = f"retry: {retry * 1000:g}\n\n{WELCOME}"
    page.evaluate(
        """([welcome, ...failures]) => {
            let tries = 0;
            const refusal = () => new Response("", { status: 503, headers: failures[tries - 2] });
            const stream = { headers: { "Content-Type": "text/event-stream" } };
            window.fetch = async () => tries++ ? refusal() : new Response(welcome, stream);
        }""",
        [welcome, *FAILURES],
    )
    end_streams(site)
    page.wait_for_function("waits.length >= 11")
    came = page.evaluate("waits.slice(1, 11)")
    page.evaluate("stream.close()")

    monkeypatch.setattr(random, "uniform", lambda low, high: low + (high - low) * chance)
    with ThreadPoolExecutor(1) as pool:  # this thread has Playwright's event loop
        expected = pool.submit(lambda: run_virtual(waits_in_python(welcome)))
        assert [wait / 1000 for wait in came] == pytest.approx(expected.result())


def test_reconnect_does_not_wait(site: Site, tabs: Tabs, shared: str, open_tab: Open) -> None:
    tabs.expected.append("status of")
    pages = [open_tab(shared=shared) for _ in range(2)]
    site.refusal = Response("retry: 600000\n\n", media_type="text/event-stream")
    end_streams(site)
    for page in pages:
        page.wait_for_function("stream.state.until > Date.now() + 500_000")
    site.refusal = None
    pages[1].evaluate("stream.reconnect()")
    for page in pages:
        page.wait_for_function("stream.state.name == 'open'")


def test_a_gap_is_told_to_every_tab_once(site: Site, tabs: Tabs, shared: str, open_tab: Open) -> None:
    pages = [open_tab(shared=shared) for _ in range(3)]
    published = site.publish("1")
    for page in pages:
        ids(page, published[0])
    site.refusal = Response("", media_type="text/event-stream")
    end_streams(site)
    for page in pages:
        until_error(page)
    while site.hub.node.totals.published < 10_100:
        published += site.publish("x")
    site.publish("end")  # before the tabs read: later it would push one more out of the log, which is another gap
    site.refusal = None
    pages[0].wait_for_function(
        "stream.state.name == 'open' || void stream.reconnect()"
    )  # with a long wait after a failure
    for page in pages:
        got = data(page, "end")
        assert types(page).count("gap") == 1
        assert len(got) == 1 + 1 + 10_000  # the publication before the gap, the gap, all that the log holds


def test_a_position_that_is_gone_is_a_gap_for_that_tab_alone(site: Site, shared: str, open_tab: Open) -> None:
    first = open_tab(shared=shared)
    epoch = site.publish("1", "2")[0].partition("-")[0]
    for cursor, follows in [("foreign-7", ["1", "2"]), (f"{epoch}-1000", []), ("junk", [])]:
        page = open_tab(shared=shared, lastEventId=cursor)
        until_open(site.hub, 1)
        end = f"end of {cursor}"
        site.publish(end)
        gap, *rest = data(page, end)
        assert types(page).count("gap") == 1
        assert "reason" in gap
        assert [text for text in rest if not text.startswith("end")] == follows
        page.close()
    assert data(first, end) == ["1", "2", "end of foreign-7", f"end of {epoch}-1000", "end of junk"]


def test_a_position_is_sent_once_under_whatever_names_it_was_given(site: Site, shared: str, open_tab: Open) -> None:
    first, *rest = site.publish("1", "2", "3")
    url = f"/hub/events?last_event_id=junk&lastEventId={first}&lastEventId=junk"
    for number, page in enumerate([open_tab(url, shared=shared), open_tab(url, shared=shared, lastEventId=first)]):
        assert ids(page, rest[-1]) == rest
        assert "gap" not in types(page)
        asked = [value for name, value in site.asked[number].multi_items() if name in ("last_event_id", "lastEventId")]
        assert asked == [first]


@contextmanager
def silent_server(tabs: Tabs, welcome: str | None) -> Iterator[tuple[Page, list[str]]]:
    """A tab whose time stands still, and a server that sends nothing after a welcome, or not even an answer, as in a
    broken network, or after the sleep of a laptop. The list has an item for each stream that is asked for.
    """
    asked: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] != "/events":
            html = scope["path"] == "/"
            body = BLANK if html else (static_directory() / "sse-app.js").read_text()
            await Response(body, media_type="text/html" if html else "text/javascript")(scope, receive, send)
            return
        asked.append(scope["path"])
        if welcome is not None:
            headers = [(b"content-type", b"text/event-stream")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": welcome.encode(), "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass

    with live(app, lifespan="off") as server:
        page = tabs.context.new_page()
        page.clock.install(time=0)
        page.goto(server.url)
        page.clock.pause_at(3600)
        with page.expect_request("**/events*"):
            listen(page, "/events", module="/sse-app.js", shared="none")
        yield page, asked
        page.close()


def until_given_up(page: Page, asked: list[str]) -> None:
    """Wait until a silent connection is given up, and the next one begins."""
    assert until_error(page)["detail"] == "Nothing has come from the hub for too long."
    while len(asked) < 2:
        page.clock.run_for(1000)


@pytest.mark.parametrize(
    ("heartbeat", "silence"), [("15.0", 45), ("0.1", 45), ("120", 360), ("null", 45), ("1e300", None)]
)
def test_a_silent_connection_is_given_up_after_three_heartbeats(
    tabs: Tabs, heartbeat: str, silence: int | None
) -> None:
    """The silence is in seconds."""
    welcome = f'id: e-1\nevent: welcome\ndata: {{"client":"c","top":"e-1","heartbeat":{heartbeat}}}\n\n'
    with silent_server(tabs, welcome) as (page, asked):
        page.wait_for_function("stream.state.name == 'open'")
        page.clock.run_for((silence or 100_000) * 1000 - 1)
        assert page.evaluate("states.map(({ name }) => name)") == ["open"]
        if silence is not None:
            page.clock.run_for(1)
            until_given_up(page, asked)


def test_a_connection_that_is_not_answered_is_given_up_as_a_silent_one(tabs: Tabs) -> None:
    with silent_server(tabs, welcome=None) as (page, asked):
        page.clock.run_for(44_999)
        assert page.evaluate("[stream.state.name, states.length]") == ["connecting", 0]
        page.clock.run_for(1)
        until_given_up(page, asked)


CUTS = random.Random(7)
TEXTS = [
    "data: one\n\ndata: two\r\n\r\ndata: three\r\rdata: four\n\r\n",
    ":a comment\n\n:\ndata\n\ndata:\n\ndata: \n\ndata:  x\ndata:y\n\n",
    "id: 1\nevent: a\ndata: x\n\nevent: b\n\ndata: y\n\nid\ndata: z\n\nid: \0\ndata: w\n\n",
    "\ufeffdata: bom\n\nretry: 12\ndata: é – 日本語 👩‍👩‍👧‍👦\n\nnothing: of\ndata : ours\nDATA: neither\n\n",
    "event: type\rdata: a\r\ndata: b\n\nid: last\n\ndata: after the id\n\ndata: unfinished\n",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_stream_is_read_as_the_standard_says_wherever_it_is_cut(text: str, site: Site, tabs: Tabs) -> None:
    page = tabs.open(site.url)
    stream = text.encode()
    wanted = [[event.type, event.data, event.last_event_id] for event in whatwg.parse(stream).events]
    for pieces in (1, 3, len(stream)):
        ends = sorted(CUTS.sample(range(1, len(stream)), pieces - 1)) if pieces > 1 else []
        chunks = [list(stream[a:b]) for a, b in zip([0, *ends], [*ends, len(stream)], strict=True)]
        page.evaluate(
            """chunks => {
                const body = new ReadableStream({
                    start(stream) {
                        for (const chunk of chunks) stream.enqueue(new Uint8Array(chunk));
                        stream.close();
                    }
                });
                const answers = [new Response(body, { headers: { "Content-Type": "text/event-stream" } })];
                window.fetch = async () => answers.pop() ?? new Promise(() => {});
            }""",
            chunks,
        )
        listen(page, "/hub/events", shared="none")
        until_error(page)
        assert page.evaluate("seen") == wanted
        page.evaluate("stream.close()")


@contextmanager
def foreign_page() -> Iterator[str]:
    """The URL of a page of another origin."""

    async def page(request: Request) -> Response:
        return HTMLResponse(BLANK)

    with live(Starlette(routes=[Route("/", page)])) as server:
        yield server.url


def test_a_page_of_another_origin_shares_over_locks(tabs: Tabs) -> None:
    with foreign_page() as origin:
        hub = Hub(cors_origins=(origin,))
        app = Starlette(routes=[Mount("/hub", hub.app)], lifespan=hub.lifespan)
        with live(app) as server:
            pages = [tabs.open(origin) for _ in range(2)]
            for page in pages:
                listen(page, f"{server.url}/hub/events", module=f"{server.url}/hub/static/sse-app.js")
                page.wait_for_function("stream.state.name == 'open'")
                assert page.evaluate("stream.shared") == "locks"
            published = [hub.publish_threadsafe("hello").id]
            assert [ids(page, published[0]) for page in pages] == [published] * 2
            assert hub.node.totals.connected == 1
            for page in pages:
                page.close()


def test_the_consoles_own_policy_lets_the_worker_in(sse_server: HubServer, tabs: Tabs) -> None:
    page = tabs.open(sse_server.url)
    listen(page, "events", module="/static/sse-app.js")
    # Waiting in the page itself would take what the policy forbids: eval.
    page.evaluate("stream.state.name == 'open' || new Promise(open => stream.onopen = () => open())")
    assert page.evaluate("stream.shared") == "worker"


def test_without_workers_and_locks_each_tab_has_a_connection(site: Site, tabs: Tabs, open_tab: Open) -> None:
    tabs.context.add_init_script("delete window.SharedWorker; delete Navigator.prototype.locks;")
    pages = [open_tab() for _ in range(2)]
    assert [page.evaluate("stream.shared") for page in pages] == ["none", "none"]
    assert len(site.hub) == 2
    published = site.publish("x")
    assert [ids(page, published[0]) for page in pages] == [published] * 2


def test_tabs_with_names_of_their_own_do_not_share(site: Site, shared: str, open_tab: Open) -> None:
    me, other = open_tab(shared=shared, client="me"), open_tab(shared=shared, client="other")
    site.publish("not for me", exclude="me")
    site.publish("end")
    assert data(me, "end") == ["end"]
    assert data(other, "end") == ["not for me", "end"]


def test_a_name_that_the_hub_made_is_kept_over_reconnects(site: Site, shared: str, open_tab: Open) -> None:
    page, leaver = open_tab(shared=shared), open_tab(shared=shared)
    name = leaver.evaluate("JSON.parse(seen[0][1]).client")
    end_streams(site)
    until_error(page)
    page.wait_for_function("stream.state.name == 'open'")
    page.close()
    until_open(site.hub, 1)
    site.publish("for you", to=name)
    assert data(leaver, "for you") == ["for you"]


def test_a_handler_that_fails_does_not_end_the_stream(site: Site, tabs: Tabs, open_tab: Open) -> None:
    tabs.expected.append("the page's mistake")
    page = open_tab(shared="none")
    page.evaluate(
        """() => {
            stream.onmessage = () => { throw new Error("the page's mistake"); };
            stream.addEventListener("message", () => { throw new Error("the page's mistake"); });
        }"""
    )
    published = site.publish("1", "2")
    assert ids(page, published[-1]) == published


def test_the_example_of_the_docs_works(tabs: Tabs) -> None:
    with live(runpy.run_path(str(EXAMPLES / "app.py"))["app"]) as server:
        pages = [tabs.open(server.url) for _ in range(2)]
        for page in pages:
            expect(page.locator("#state")).to_have_text("open")
        answer = httpx.post(f"{server.url}/hub/broadcast?topic=orders/42&event=order", json={"number": 42})
        assert answer.json()["subscribers"] == 1
        httpx.post(f"{server.url}/hub/broadcast?topic=orders/42/items&event=order", json={"number": 43})
        pages.append(tabs.open(server.url))
        for page in pages:
            expect(page.locator("#orders li")).to_have_text(["order 42"])
            page.close()


def test_the_module_is_served_as_a_script(sse_server: HubServer) -> None:
    answer = httpx.get(f"{sse_server.url}/static/sse-app.js")
    type, _, charset = answer.headers["content-type"].partition("; ")
    assert type in (
        "text/javascript",
        "application/javascript",
    )  # as Python's table of types has it, which changed in 3.12
    assert charset == "charset=utf-8"
    assert b"import " not in answer.content.replace(b"*     import ", b"")  # the module imports no other file
