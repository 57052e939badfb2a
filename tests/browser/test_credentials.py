"""static/sse-app.js with a token or a ticket: who shares, what is asked for anew, what ends a stream, and where no
secret may turn up.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from playwright.sync_api import Error, Page
from starlette.datastructures import Headers, QueryParams
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from sse_app import Hub, notices
from sse_app.subscriber import CloseReason
from sse_app.testing import live
from tests.browser.conftest import Tabs
from tests.browser.test_shared import (
    PROBLEM,
    Publisher,
    Site,
    data,
    end_streams,
    ids,
    types,
    until_error,
    until_stopped,
)
from tests.support.web import until_open

pytestmark = pytest.mark.browser

# The page has `secret`, and gets `fresh` when it asks for a new one. `fail` has what happens instead, as a function.
LISTEN = """async ([url, options, kind, secret, fresh, module]) => {
    const { connect } = await import(module);
    Object.assign(window, { seen: [], states: [], asked: [], secret, fresh, fail: null });
    const give = async ({ refresh }) => {
        asked.push(refresh);
        if (fail) return fail();
        return refresh ? (window.secret = window.fresh) : window.secret;
    };
    window.stream = connect(url, kind ? { ...options, [kind]: give } : options);
    stream.onevent = event => seen.push([event.type, event.data, event.lastEventId]);
    for (const type of ["open", "error"]) stream.addEventListener(type, () => states.push(stream.state));
}"""

INVALID = {"code": "invalid_token", "detail": "The token is not valid."}


@dataclass
class Door(Site):
    """A site whose hub lets in who has a secret that is valid, and shows it one topic."""

    valid: dict[str, str] = field(default_factory=dict)  # secret: topic
    requests: list[tuple[str, int]] = field(default_factory=list)  # the secret and the status, of requests for a stream

    def app(self) -> ASGIApp:
        app = super().app()
        refused = JSONResponse(INVALID, 401, media_type=PROBLEM)

        async def door(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http" or scope["path"] != "/hub/events":
                await app(scope, receive, send)
                return
            secret = secret_of(scope)
            topic = self.valid.get(secret)
            status = 401 if topic is None else self.refusal.status_code if self.refusal else 200
            self.requests.append((secret, status))
            await (refused if topic is None else app)(without_secret(scope, topic), receive, send)

        return door

    def end(self, reason: str, retry: int = 20, topic: str | None = None) -> None:
        """End the open streams, or those of one topic, as the hub does for this reason. ``retry`` is in ms."""
        loop = self.hub.node.life._loop
        assert loop is not None
        for subscriber in list(self.hub.node._delivery):
            if topic in (None, *subscriber.filter.patterns):
                loop.call_soon_threadsafe(subscriber.close, CloseReason.DRAIN, notices.bye(reason, retry))


def secret_of(scope: Scope) -> str:
    header = Headers(scope=scope).get("authorization", "")
    ticket = QueryParams(scope["query_string"]).get("ticket", "")
    assert not (header and ticket)
    assert header[:7] in ("", "Bearer ")
    return header[7:] or ticket


def without_secret(scope: Scope, topic: str | None) -> Scope:
    query = [(name, value) for name, value in QueryParams(scope["query_string"]).multi_items() if name != "ticket"]
    headers = [(name, value) for name, value in scope["headers"] if name != b"authorization"]
    text = str(QueryParams([*query, ("topic", topic or "")]))
    return {**scope, "query_string": text.encode(), "headers": headers}


@pytest.fixture
def site() -> Iterator[Door]:
    hub = Hub(drain=0.2, retry_min=0.02, retry_max=0.04)  # so that reconnects do not take seconds each
    site = Door(hub, valid={"good": "news", "fresh": "news"})
    with live(site.app()) as server:
        site.url = server.url
        yield site


@pytest.fixture(params=["worker", "locks", "none"])
def shared(request: pytest.FixtureRequest) -> str:
    return str(request.param)


Open = Callable[..., Page]


@pytest.fixture
def open_tab(site: Door, tabs: Tabs) -> Open:
    """A tab of user 1 that listens with a secret, and is connected unless ``wait`` is False."""
    tabs.expected.append("status of")

    def open_tab(
        kind: str = "token", secret: str = "good", fresh: str = "fresh", *, wait: bool = True, **options: Any
    ) -> Page:
        page = tabs.open(site.url)
        listen(page, kind, secret, fresh, **options)
        if wait:
            page.wait_for_function("stream.state.name == 'open'")
        return page

    return open_tab


def listen(
    page: Page,
    kind: str,
    secret: str = "good",
    fresh: str = "fresh",
    *,
    url: str = "/hub/events",
    module: str = "/hub/static/sse-app.js",
    **options: Any,
) -> None:
    page.evaluate(LISTEN, [url, {"user": 1, **options}, kind, secret, fresh, module])


def asked(page: Page) -> list[bool]:
    """What the page's function was asked for: False for a secret, True for a new one."""
    answers: list[bool] = page.evaluate("asked")
    return answers


def publish(site: Door, *texts: str) -> list[str]:
    return site.publish(*texts, topic="news")


def stopped_clock(site: Door, tabs: Tabs) -> Page:
    """A tab that is connected, and whose time passes only when it is told to."""
    page = tabs.context.new_page()
    page.clock.install(time=0)
    page.goto(site.url)
    page.clock.pause_at(3600)
    listen(page, "token", shared="none")
    page.wait_for_function("stream.state.name == 'open'")
    return page


def until_open_again(page: Page) -> None:
    page.wait_for_function("states.length > 1 && stream.state.name == 'open'")


def test_a_token_is_asked_for_before_each_connection_and_goes_in_a_header(
    site: Door, shared: str, open_tab: Open
) -> None:
    page = open_tab(shared=shared)
    published = publish(site, "1")
    ids(page, published[0])
    end_streams(site)
    published += publish(site, "2")
    assert ids(page, published[-1]) == published
    assert site.requests == [("good", 200)] * 2
    assert asked(page) == [False, False]
    assert "good" not in page.evaluate("stream.url")


def test_a_ticket_is_kept_until_it_is_refused(site: Door, shared: str, open_tab: Open) -> None:
    page = open_tab("ticket", shared=shared)
    published = publish(site, "1")
    ids(page, published[0])
    end_streams(site)
    published += publish(site, "2")
    ids(page, published[-1])
    assert asked(page) == [False]
    del site.valid["good"]
    end_streams(site)
    published += publish(site, "3")
    assert ids(page, published[-1]) == published
    assert site.requests == [("good", 200), ("good", 200), ("good", 401), ("fresh", 200)]
    assert asked(page) == [False, True]


@pytest.mark.parametrize("kind", ["token", "ticket"])
def test_a_secret_that_is_refused_is_replaced_once_without_an_error(
    site: Door, shared: str, open_tab: Open, kind: str
) -> None:
    page = open_tab(kind, "stale", shared=shared)
    assert site.requests == [("stale", 401), ("fresh", 200)]
    assert asked(page) == [False, True]
    assert page.evaluate("states.map(({ name }) => name)") == ["open"]


@pytest.mark.parametrize("kind", ["token", "ticket"])
def test_a_new_secret_that_is_refused_as_well_stops_all_tabs(
    site: Door, shared: str, open_tab: Open, kind: str
) -> None:
    page = open_tab(kind, "stale", "staler", shared=shared, wait=False)
    state = until_stopped(page)
    assert (state["status"], state["code"], state["detail"]) == (401, *INVALID.values())
    assert page.evaluate("[stream.readyState, states.at(-1).code]") == [2, "invalid_token"]
    page.evaluate("dispatchEvent(new Event('online'))")  # starts the next attempt of a stream that waits
    page.evaluate("window.secret = 'good'; stream.reconnect()")  # the user has logged in
    page.wait_for_function("stream.state.name == 'open'")
    assert site.requests == [("stale", 401), ("staler", 401), ("good", 200)]


@pytest.mark.parametrize("kind", ["token", "ticket"])
def test_a_secret_that_is_the_same_again_is_not_tried_again(site: Door, shared: str, open_tab: Open, kind: str) -> None:
    page = open_tab(kind, "stale", "stale", shared=shared, wait=False)
    assert until_stopped(page)["code"] == "invalid_token"
    assert site.requests == [("stale", 401)]
    page.evaluate("window.secret = 'good'; stream.reconnect()")
    page.wait_for_function("stream.state.name == 'open'")
    assert site.requests == [("stale", 401), ("good", 200)]


@pytest.mark.parametrize("status", [400, 403, 404, 405])
def test_a_refusal_that_no_other_token_changes_asks_for_none(site: Door, open_tab: Open, status: int) -> None:
    site.refusal = JSONResponse({"code": "too_bad"}, status, media_type=PROBLEM)
    page = open_tab(shared="none", wait=False)
    assert until_stopped(page)["code"] == "too_bad"
    assert (site.requests, asked(page)) == ([("good", status)], [False])


@pytest.mark.parametrize("kind", ["token", "ticket"])
def test_a_stream_whose_permission_expired_goes_on_with_a_new_one(
    site: Door, shared: str, open_tab: Open, kind: str
) -> None:
    page = open_tab(kind, shared=shared)
    with Publisher(site, topic="news") as publisher:
        publisher.more()
        del site.valid["good"]
        site.end("expired")
        until_open_again(page)
        publisher.more()
    assert ids(page, publisher.published[-1]) == publisher.published
    assert site.requests == [("good", 200), ("fresh", 200)]
    assert asked(page) == [False, True]


def test_a_new_token_is_asked_for_at_once_unless_the_last_one_was_new_itself(site: Door, tabs: Tabs) -> None:
    page = stopped_clock(site, tabs)
    page.clock.run_for(5_000)
    site.end("expired", retry=5_000)
    page.wait_for_function("asked.length == 2 && stream.state.name == 'open'")
    site.end("expired", retry=5_000)
    assert until_error(page)["reason"] == "expired"
    page.clock.run_for(5_000)
    page.wait_for_function("asked.length == 3 && stream.state.name == 'open'")
    assert asked(page) == [False, True, True]
    page.close()


@pytest.mark.parametrize("kind", ["token", "ticket"])
def test_a_stream_that_was_revoked_asks_once_more(site: Door, shared: str, open_tab: Open, kind: str) -> None:
    page = open_tab(kind, shared=shared)
    site.valid.clear()
    site.end("revoked")
    assert until_error(page)["reason"] == "revoked"
    state = until_stopped(page)
    assert (state["code"], state["reason"]) == ("invalid_token", "revoked")
    assert site.requests == [("good", 200), ("fresh", 401)]


def test_a_stream_that_was_revoked_goes_on_after_a_new_login(site: Door, shared: str, open_tab: Open) -> None:
    page = open_tab(shared=shared)
    del site.valid["good"]
    site.end("revoked")
    until_open_again(page)
    assert site.requests == [("good", 200), ("fresh", 200)]
    assert page.evaluate("stream.state") == {"name": "open"}


def test_a_stream_that_was_kicked_waits_as_long_as_it_is_blocked(site: Door, shared: str, open_tab: Open) -> None:
    page = open_tab(shared=shared)
    site.end("kicked", retry=600_000)
    state = until_error(page)
    assert state["reason"] == "kicked"
    assert page.evaluate("stream.state.until > Date.now() + 500_000")
    assert asked(page) == [False]


def test_a_stream_whose_grant_changed_goes_on_with_the_same_token(site: Door, shared: str, open_tab: Open) -> None:
    page = open_tab(shared=shared)
    site.end("changed")
    until_open_again(page)
    published = publish(site, "narrower")
    assert ids(page, published[0]) == published
    assert asked(page) == [False, False]
    assert site.requests == [("good", 200)] * 2


@pytest.mark.parametrize("reason", ["replaced", "contested"])
def test_a_ticket_that_another_stream_has_is_replaced(site: Door, shared: str, open_tab: Open, reason: str) -> None:
    page = open_tab("ticket", shared=shared)
    site.end(reason)
    until_open_again(page)
    assert site.requests == [("good", 200), ("fresh", 200)]


def test_a_limit_is_waited_for_and_named(site: Door, shared: str, open_tab: Open) -> None:
    site.refusal = Response(notices.bye("limit", 600_000), media_type="text/event-stream")
    page = open_tab(shared=shared, wait=False)
    state = until_error(page)
    assert (state["reason"], "too many" in state["detail"]) == ("limit", True)
    assert page.evaluate("stream.state.until > Date.now() + 500_000")


@pytest.mark.parametrize("text", ["event: bye\ndata: so long\n\n", "event: bye\ndata: null\n\n"])
def test_a_bye_without_a_reason_ends_a_stream_all_the_same(site: Door, open_tab: Open, text: str) -> None:
    site.refusal = Response(f"data: last words\n\n{text}", media_type="text/event-stream")
    page = open_tab(shared="none", wait=False)
    assert until_error(page)["detail"] == "The hub ended the stream."
    assert data(page, "last words")[0] == "last words"


FAILURES = {
    "throws": "() => { throw new Error('no network') }",
    "rejects": "() => Promise.reject(undefined)",
    "nothing": "() => undefined",
    "no string": "() => ({ token: 'good' })",
    "no token": "() => 'good\\r\\nX-Other: 1'",
}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES.keys())
def test_a_function_that_fails_is_asked_again_without_a_request(
    site: Door, tabs: Tabs, shared: str, open_tab: Open, failure: str
) -> None:
    tabs.expected += ["no network", "undefined", "token returned no token"]
    page = open_tab(shared=shared)
    page.evaluate(f"() => {{ window.fail = {failure}; }}")
    end_streams(site)
    page.wait_for_function("states.filter(({ reason }) => reason == 'token_failed').length > 1")
    assert until_error(page)["detail"] == "The page got no token for the hub."
    assert len(site.requests) == 1
    page.evaluate("window.fail = null")
    published = publish(site, "missed")
    assert ids(page, published[0]) == published
    assert page.evaluate("stream.state") == {"name": "open"}


def test_a_function_that_hangs_has_failed_after_a_while(site: Door, tabs: Tabs) -> None:
    tabs.expected.append("no answer within 30 s")
    page = stopped_clock(site, tabs)
    page.evaluate("() => { window.fail = () => new Promise(() => {}); }")
    end_streams(site)
    page.wait_for_function("stream.state.name == 'waiting'")
    page.clock.run_for(1_000)  # more than this hub has asked for
    page.wait_for_function("asked.length == 2")
    page.clock.run_for(30_000)
    page.wait_for_function("states.some(({ reason }) => reason == 'token_failed')")
    page.close()


# Sharing


def test_two_users_of_one_browser_have_a_stream_each(site: Door, open_tab: Open) -> None:
    """Over a worker, and over locks: the tabs of a user share, and get no event of the other user."""
    for shared in ("worker", "locks"):
        site.valid.update(first="users/1", second="users/2")
        site.requests.clear()
        tabs = {
            user: [open_tab(secret=secret, fresh=secret, user=user, shared=shared) for _ in range(2)]
            for user, secret in [(1, "first"), (2, "second")]
        }
        until_open(site.hub, 2)
        texts = {user: f"for {user} over {shared}" for user in tabs}
        for user, text in texts.items():
            site.publish(text, topic=f"users/{user}")
        for user, pages in tabs.items():
            assert [data(page, texts[user]) for page in pages] == [[texts[user]]] * 2
        del site.valid["first"]  # the first user logs out
        site.end("revoked", topic="users/1")
        assert [until_stopped(page)["reason"] for page in tabs[1]] == ["revoked"] * 2
        assert site.requests == [("first", 200), ("second", 200), ("first", 401)]
        site.publish("still", topic="users/2")
        assert [data(page, "still") for page in tabs[2]] == [[texts[2], "still"]] * 2
        for page in [*tabs[1], *tabs[2]]:
            page.close()


def test_tabs_that_name_no_user_do_not_share(site: Door, open_tab: Open) -> None:
    pages = [open_tab(kind, user=None) for kind in ("token", "ticket")]
    assert [page.evaluate("stream.shared") for page in pages] == ["none", "none"]
    assert len(site.hub) == 2


def test_users_with_a_cookie_do_not_share_either(site: Door, open_tab: Open) -> None:
    site.valid[""] = "news"
    for user in (1, 1, "two"):
        assert open_tab("", user=user).evaluate("stream.shared") == "worker"
    assert len(site.hub) == 2


def welcome_of(user: str | None, text: str) -> Response:
    """A stream of one event that ends, for this user."""
    data = json.dumps({"client": "c-1", "top": "e-1", "last": None, "user": user})
    stream = f"retry: 100\nid: e-1\nevent: welcome\ndata: {data}\n\ndata: {text}\n\n"
    return Response(stream, media_type="text/event-stream")


def test_a_stream_does_not_go_on_as_another_user(site: Door, shared: str, open_tab: Open) -> None:
    """One user logs out and another one in, in another tab: the page of the first one has the other's token."""
    site.refusal = welcome_of("1", "mine")
    pages = [open_tab(shared=shared) for _ in range(2)]
    for page in pages:
        until_error(page)
        page.wait_for_function("states.filter(({ name }) => name == 'open').length > 1")  # as the same user it goes on
    site.refusal = welcome_of("2", "not mine")
    for page in pages:
        page.wait_for_function("stream.readyState == 2")
        state = page.evaluate("stream.state")
        assert (state["name"], state["reason"]) == ("closed", "user_changed")
        assert page.evaluate("states.at(-1).reason") == "user_changed"  # the event is an error
        assert "not mine" not in page.evaluate("seen.map(([, data]) => data)")
        assert '"2"' not in page.evaluate("seen.map(([, data]) => data).join()")


def test_a_user_of_whom_the_hub_has_said_nothing_is_no_other(site: Door, open_tab: Open) -> None:
    site.refusal = welcome_of(None, "x")
    page = open_tab(shared="none")
    for user in ("1", None, "1"):
        site.refusal = welcome_of(user, f"for {user}")
        page.evaluate("seen.length = 0")
        data(page, f"for {user}")


@pytest.mark.parametrize("shared", ["worker", "locks"])
def test_a_tab_that_has_to_catch_up_asks_its_own_page(site: Door, shared: str, open_tab: Open) -> None:
    published = publish(site, "1", "2")
    leader, late = open_tab(shared=shared), open_tab(secret="fresh", shared=shared, last=2)
    assert ids(late, published[-1]) == published
    assert (asked(leader), asked(late)) == ([False], [False])
    until_open(site.hub, 1)
    assert site.requests == [("good", 200), ("fresh", 200)]


@pytest.mark.parametrize("shared", ["worker", "locks"])
def test_when_the_tab_whose_token_it_is_goes_another_one_is_asked(site: Door, shared: str, open_tab: Open) -> None:
    first, second = open_tab(shared=shared), open_tab(secret="fresh", shared=shared)
    published = publish(site, "1")
    assert ids(second, published[0]) == ids(first, published[0]) == published
    first.close()
    until_open(site.hub, 1)
    end_streams(site)
    published += publish(site, "2")
    assert ids(second, published[-1]) == published
    assert site.requests[-1] == ("fresh", 200)


def test_a_worker_asks_the_other_tabs_when_one_has_no_token(site: Door, tabs: Tabs, open_tab: Open) -> None:
    tabs.expected.append("no network")
    pages = [open_tab(shared="worker") for _ in range(3)]
    for page in pages[1:]:
        page.evaluate("() => { window.fail = () => { throw new Error('no network') }; }")
    end_streams(site)
    published = publish(site, "1")
    assert [ids(page, published[0]) for page in pages] == [published] * 3
    assert [len(asked(page)) for page in pages] == [2, 1, 1]
    end_streams(site)
    published += publish(site, "2")
    assert ids(pages[1], published[-1]) == published
    assert [len(asked(page)) for page in pages] == [3, 1, 1]  # the one that had a token is asked first


def test_a_worker_does_not_wait_for_a_tab_that_goes(site: Door, open_tab: Open) -> None:
    stays, goes = open_tab(shared="worker"), open_tab(shared="worker")
    goes.evaluate("() => { window.fail = () => new Promise(() => {}); }")
    end_streams(site)
    goes.wait_for_function("asked.length == 1")
    goes.close()
    published = publish(site, "1")
    assert ids(stays, published[0]) == published


@pytest.mark.parametrize("shared", ["worker", "locks"])
def test_a_tab_that_comes_with_a_good_token_connects_those_that_were_refused(
    site: Door, shared: str, open_tab: Open
) -> None:
    page = open_tab(fresh="stale", shared=shared)
    published = publish(site, "1")
    ids(page, published[0])
    del site.valid["good"]
    site.end("revoked")
    until_stopped(page)
    published += publish(site, "2")
    other = open_tab(secret="fresh", shared=shared)
    assert ids(page, published[-1]) == published
    until_open(site.hub, 1)
    assert ids(other) in ([], published[1:])


@pytest.mark.parametrize("shared", ["worker", "locks"])
def test_a_tab_that_comes_with_a_token_connects_those_that_got_none(
    site: Door, tabs: Tabs, shared: str, open_tab: Open
) -> None:
    tabs.expected.append("no network")
    page = open_tab(shared=shared)
    published = publish(site, "1")
    ids(page, published[0])
    page.evaluate("() => { window.fail = () => { throw new Error('no network') }; }")
    end_streams(site)
    page.wait_for_function("stream.state.reason == 'token_failed'")
    published += publish(site, "2")
    open_tab(shared=shared)
    page.wait_for_function("stream.state.name == 'open' || void stream.reconnect()")
    assert ids(page, published[-1]) == published


@pytest.mark.parametrize("shared", ["worker", "locks"])
def test_reconnect_asks_the_tab_that_called_it(site: Door, shared: str, open_tab: Open) -> None:
    """Each tab has its own token, and only the user of the first one has logged in again."""
    pages = [open_tab(fresh="stale", shared=shared) for _ in range(3)]
    del site.valid["good"]
    site.end("revoked")
    for page in pages:
        until_stopped(page)
    for page in (pages[1], pages[0]):
        site.valid = {"new": "news"}
        page.evaluate("window.secret = 'new'; stream.reconnect()")
        for other in pages:
            other.wait_for_function("stream.state.name == 'open'")
        site.valid = {}
        page.evaluate("window.fresh = window.secret = 'stale'")
        site.end("revoked")
        for other in pages:
            until_stopped(other)


# Where no secret may turn up

WATCH = """
    window.shown = [];
    const show = what => shown.push(typeof what == "string" ? what : JSON.stringify(what) ?? "");
    const watched = [[BroadcastChannel, "postMessage"], [window.LockManager, "request"]];
    for (const [{ prototype } = {}, method] of watched) {
        if (!prototype) continue; // as in the empty page that comes before
        const real = prototype[method];
        prototype[method] = function (...all) { show(all[0]); return real.apply(this, all); };
    }
    for (const name of ["BroadcastChannel", "SharedWorker"]) {
        const Real = window[name];
        window[name] = class extends Real { constructor(...all) { super(...all); show(all); } };
    }
"""


@pytest.mark.parametrize("kind", ["token", "ticket"])
def test_no_secret_in_names_messages_states_storage_or_the_console(
    site: Door, tabs: Tabs, shared: str, open_tab: Open, kind: str
) -> None:
    said: list[str] = []
    tabs.context.on("console", lambda message: said.append(message.text))
    tabs.context.add_init_script(WATCH)
    site.valid = {"S3CRET-1": "news", "S3CRET-2": "news"}
    pages = [open_tab(kind, "S3CRET-0", f"S3CRET-{number}", shared=shared) for number in (1, 2)]
    site.valid.clear()
    site.end("expired")
    for page in pages:
        until_stopped(page)
        shown = page.evaluate(
            "JSON.stringify([shown, states, stream, stream.url, { ...localStorage }, { ...sessionStorage }])"
        )
        assert ("sse-app" in shown) == (shared != "none")
        assert "S3CRET" not in shown
    assert "S3CRET" not in "".join(said)


BAD = {
    "both": "{ token: give, ticket: give }",
    "no function": "{ token: 'S3CRET' }",
    "a token in the URL": "{}, '?access_token=S3CRET'",
    "a token and a ticket": "{ token: give }, '?ticket=S3CRET'",
    "credentials": "{ credentials: 'S3CRET' }",
}


@pytest.mark.parametrize("options", BAD.values(), ids=BAD.keys())
def test_options_that_cannot_be_honoured_are_refused_without_the_secret(site: Door, tabs: Tabs, options: str) -> None:
    page = tabs.open(site.url)
    with pytest.raises(Error, match="TypeError: ") as refusal:
        page.evaluate(
            f"""async () => {{
                const {{ connect }} = await import("/hub/static/sse-app.js");
                const give = () => "S3CRET";
                ((options, query = "") => connect("/hub/events" + query, options))({options});
            }}"""
        )
    assert "S3CRET" not in refusal.value.message.replace(options, "")
    assert site.requests == []


def test_a_ticket_in_the_url_is_the_first_one(site: Door, shared: str, open_tab: Open) -> None:
    page = open_tab("ticket", url="/hub/events?ticket=good&topic=news", shared=shared)
    assert (site.requests, asked(page)) == ([("good", 200)], [])
    assert page.evaluate("stream.url") == f"{site.url}/hub/events?topic=news"
    del site.valid["good"]
    end_streams(site)
    until_open_again(page)
    assert site.requests[1:] == [("good", 401), ("fresh", 200)]


def test_a_ticket_in_the_url_and_no_function_is_tried_until_it_is_refused(site: Door, open_tab: Open) -> None:
    page = open_tab("", url="/hub/events?ticket=good", user=None)
    assert page.evaluate("stream.shared") == "none"
    del site.valid["good"]
    end_streams(site)
    assert until_stopped(page)["code"] == "invalid_token"
    assert site.requests == [("good", 200), ("good", 401)]


@pytest.mark.parametrize("credentials", ["include", "omit", None])
def test_cookies_go_where_the_page_says(site: Door, tabs: Tabs, credentials: str | None) -> None:
    page = tabs.open(site.url)
    page.evaluate(
        """() => {
            window.sent = [];
            const { fetch } = window;
            window.fetch = (url, options) => { sent.push(options.credentials); return fetch(url, options); };
        }"""
    )
    listen(page, "token", shared="none", **({"credentials": credentials} if credentials else {}))
    page.wait_for_function("stream.state.name == 'open'")
    assert page.evaluate("sent") == [credentials or "same-origin"]
    assert types(page) == ["welcome"]
