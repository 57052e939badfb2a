"""static/sse-app.js with a token or a ticket, at a hub that asks for one: who shares, what is asked for anew, what ends
a stream, and where no secret may turn up.
"""

import json
import secrets
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx
import pytest
from playwright.sync_api import Error, Page
from starlette.datastructures import Headers, QueryParams
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sse_app import Hub
from sse_app.errors import INVALID
from sse_app.testing import live
from sse_app.tickets import REFUSED, WINDOW
from sse_app.web.callers import IN_URL
from tests.browser.conftest import Tabs
from tests.browser.test_shared import (
    Publisher,
    Site,
    data,
    end_streams,
    ids,
    types,
    until_error,
    until_stopped,
)
from tests.support.peers import PATIENCE
from tests.support.tokens import SECRET, claims, pair, sign
from tests.support.web import until_open

pytestmark = pytest.mark.browser

# The page has `secret`, and gets `fresh` when it asks for a new one. `fail` has what happens instead, as a function.
LISTEN = """async ([url, options, kind, secret, fresh, module]) => {
    const { connect } = await import(module);
    Object.assign(window, { seen: [], states: [], asked: [], secret, fresh, fail: null, began: Date.now() });
    const give = async ({ refresh }) => {
        asked.push(refresh);
        if (fail) return fail();
        return refresh ? (window.secret = window.fresh) : window.secret;
    };
    window.stream = connect(url, kind ? { ...options, [kind]: give } : options);
    stream.onevent = event => seen.push([event.type, event.data, event.lastEventId]);
    for (const type of ["open", "error"]) stream.addEventListener(type, () => states.push(stream.state));
}"""

# The code and the text of the hub's answer to a secret that does not count.
NOT_VALID = {"token": ("invalid_token", INVALID), "ticket": ("invalid_ticket", REFUSED)}
EVENT_STREAM = "text/event-stream"
LASTS = {"fresh": 1_800.0, "newer": 3_600.0}  # seconds; other secrets are good for a shorter time
LASTS_ELSE = 600.0

T = TypeVar("T")


@dataclass
class ClosedSite(Site):
    """A site whose hub lets in who has a token or a ticket that is valid, on one topic.

    A secret has a name, which is that of its session too. It is made when it is first asked for, unless ``make`` has
    made it for another user or other topics; one whose name begins with "stale" does not count.
    """

    made: dict[tuple[str, str], str] = field(default_factory=dict)  # by kind and name
    requests: list[tuple[str, int]] = field(default_factory=list)  # the secret and the status, of requests for a stream
    heads: list[Headers] = field(default_factory=list)  # of the same
    passed: float = 0.0  # seconds by which the hub's clock is ahead

    def __post_init__(self) -> None:
        assert self.hub._credentials is not None
        # A hub itself takes no clock; a token that really expires soon would be refused on a busy machine.
        self.hub.node._expiry._wall = self.now
        self.hub.node.leases.tickets._clock = self.hub._credentials.tokens._clock = self.now

    def now(self) -> float:
        return time.time() + self.passed

    def app(self) -> ASGIApp:
        app = super().app()

        async def noting(scope: Scope, receive: Receive, send: Send) -> None:
            async def send_noted(message: Message) -> None:
                if message["type"] == "http.response.start":
                    self.requests.append((self._name(secret_of(scope)), message["status"]))
                    self.heads.append(Headers(scope=scope))
                await send(message)

            is_stream = scope["type"] == "http" and Headers(scope=scope).get("accept") == EVENT_STREAM
            await app(scope, receive, send_noted if is_stream else send)

        return noting

    def _name(self, secret: str) -> str:
        return next((name for (_, name), text in self.made.items() if text == secret), secret)

    def secret(self, kind: str, name: str) -> str:
        return self.made[kind, name] if (kind, name) in self.made else self.make(kind, name)

    def make(self, kind: str, name: str, *, user: str | None = "1", topics: tuple[str, ...] = ("news",)) -> str:
        """Make a secret, issued now, in place of an older one of the name."""
        is_stale, lasts = name.startswith("stale"), LASTS.get(name, LASTS_ELSE)
        made = claims(
            iss=None,
            aud=None,
            sub=user,
            sid=name,
            exp=self.now() + (-lasts if is_stale else lasts),
            sse={"subscribe": list(topics)},
        )
        token = sign(made, pair("secret"))
        if kind == "ticket":
            self.made[kind, name] = secrets.token_urlsafe(16) if is_stale else self._ticket(token)
        else:
            self.made[kind, name] = token
        return self.made[kind, name]

    def _ticket(self, token: str) -> str:
        """A ticket that the bearer of a token makes for itself: as good as the token, and for as long."""
        answer = httpx.post(
            f"{self.url}/hub/tickets",
            json={"ttl": 300},  # seconds until it must have been used
            headers={"Authorization": f"Bearer {token}"},
            timeout=PATIENCE,
        )
        return str(answer.raise_for_status().json()["ticket"])

    def run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Do something in the hub's loop, as an endpoint of the app would."""
        return self.hub.node.life.run_from_thread(work, PATIENCE)

    def log_out(self, name: str) -> None:
        """End the session that a secret is of."""
        self.run(lambda: self.hub.revoke(session=name))

    def log_out_unseen(self, name: str) -> None:
        """Cut every open stream, and end a session before the clients are back: nothing tells them of its end."""

        async def cut_and_revoke() -> None:
            for subscriber in list(self.hub.node._delivery):
                subscriber.cut()
            await self.hub.revoke(session=name)

        self.run(cut_and_revoke)

    def let_pass(self, seconds: float) -> None:
        """Let time pass for the hub."""
        self.passed += seconds


def secret_of(scope: Scope) -> str:
    header = Headers(scope=scope).get("authorization", "")
    ticket = QueryParams(scope["query_string"]).get("ticket", "")
    assert not (header and ticket)
    assert header[:7] in ("", "Bearer ")
    return header[7:] or ticket


@pytest.fixture
def settings() -> dict[str, Any]:
    """The settings of a test's hub, beside those of all."""
    return {}


@pytest.fixture
def site(settings: dict[str, Any]) -> Iterator[ClosedSite]:
    quickly = {"drain": 0.2, "retry_min": 0.02, "retry_max": 0.04}  # so that reconnects do not take seconds each
    site = ClosedSite(Hub(token_secret=SECRET.decode(), auth_cookies=("token",), **{**quickly, **settings}))
    with live(site.app()) as server:
        site.url = server.url
        yield site


@pytest.fixture(params=["worker", "locks", "none"])
def shared(request: pytest.FixtureRequest) -> str:
    return str(request.param)


Open = Callable[..., Page]


@pytest.fixture
def open_tab(site: ClosedSite, tabs: Tabs) -> Open:
    """A tab of user 1 that listens with the secret of a name, and is connected unless ``wait`` is False."""
    tabs.expected.append("status of")

    def open_tab(
        kind: str = "token", secret: str = "good", fresh: str = "fresh", *, wait: bool = True, **options: Any
    ) -> Page:
        page = tabs.open(site.url)
        texts = [site.secret(kind, name) for name in (secret, fresh)] if kind else ["", ""]
        listen(page, kind, *texts, **options)
        if wait:
            page.wait_for_function("stream.state.name == 'open'")
        return page

    return open_tab


def listen(
    page: Page,
    kind: str,
    secret: str,
    fresh: str,
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


def publish(site: ClosedSite, *texts: str) -> list[str]:
    return site.publish(*texts, topic="news")


def stopped_clock(site: ClosedSite, tabs: Tabs) -> Page:
    """A tab that is connected, and whose time passes only when it is told to."""
    page = tabs.context.new_page()
    page.clock.install(time=0)
    page.goto(site.url)
    page.clock.pause_at(3600)
    listen(page, "token", site.secret("token", "good"), site.secret("token", "fresh"), shared="none")
    page.wait_for_function("stream.state.name == 'open'")
    return page


def set_secret(page: Page, secret: str) -> None:
    """Let a page have this secret from now on, as after a login."""
    page.evaluate("secret => { window.secret = secret; }", secret)


def until_open_again(page: Page) -> None:
    page.wait_for_function("states.length > 1 && stream.state.name == 'open'")


def test_a_token_is_asked_for_before_each_connection_and_goes_in_a_header(
    site: ClosedSite, shared: str, open_tab: Open
) -> None:
    page = open_tab(shared=shared)
    published = publish(site, "1")
    ids(page, published[0])
    end_streams(site)
    published += publish(site, "2")
    assert ids(page, published[-1]) == published
    assert site.requests == [("good", 200)] * 2
    assert asked(page) == [False, False]
    assert site.secret("token", "good") not in page.evaluate("stream.url")


def test_a_ticket_is_kept_until_it_is_refused(site: ClosedSite, shared: str, open_tab: Open) -> None:
    page = open_tab("ticket", shared=shared)
    published = publish(site, "1")
    ids(page, published[0])
    end_streams(site)
    published += publish(site, "2")
    ids(page, published[-1])
    assert asked(page) == [False]
    site.log_out_unseen("good")
    published += publish(site, "3")
    assert ids(page, published[-1]) == published
    assert site.requests == [("good", 200), ("good", 200), ("good", 401), ("fresh", 200)]
    assert asked(page) == [False, True]


@pytest.mark.parametrize("kind", ["token", "ticket"])
def test_a_secret_that_is_refused_is_replaced_once_without_an_error(
    site: ClosedSite, shared: str, open_tab: Open, kind: str
) -> None:
    page = open_tab(kind, "stale", shared=shared)
    assert site.requests == [("stale", 401), ("fresh", 200)]
    assert asked(page) == [False, True]
    assert page.evaluate("states.map(({ name }) => name)") == ["open"]


@pytest.mark.parametrize("kind", ["token", "ticket"])
def test_a_new_secret_that_is_refused_as_well_stops_all_tabs(
    site: ClosedSite, shared: str, open_tab: Open, kind: str
) -> None:
    page = open_tab(kind, "stale", "stale too", shared=shared, wait=False)
    state = until_stopped(page)
    assert (state["status"], state["code"], state["detail"]) == (401, *NOT_VALID[kind])
    assert page.evaluate("[stream.readyState, states.at(-1).code]") == [2, NOT_VALID[kind][0]]
    page.evaluate("dispatchEvent(new Event('online'))")  # starts the next attempt of a stream that waits
    set_secret(page, site.secret(kind, "good"))
    page.evaluate("stream.reconnect()")  # the user has logged in
    page.wait_for_function("stream.state.name == 'open'")
    assert site.requests == [("stale", 401), ("stale too", 401), ("good", 200)]


@pytest.mark.parametrize("kind", ["token", "ticket"])
def test_a_secret_that_is_the_same_again_is_not_tried_again(
    site: ClosedSite, shared: str, open_tab: Open, kind: str
) -> None:
    page = open_tab(kind, "stale", "stale", shared=shared, wait=False)
    assert until_stopped(page)["code"] == NOT_VALID[kind][0]
    assert site.requests == [("stale", 401)]
    set_secret(page, site.secret(kind, "good"))
    page.evaluate("stream.reconnect()")
    page.wait_for_function("stream.state.name == 'open'")
    assert site.requests == [("stale", 401), ("good", 200)]


@pytest.mark.parametrize(
    ("url", "status", "code"),
    [
        ("/hub/events?since=yesterday", 400, "invalid_since"),
        ("/hub/events?topic=users/2", 403, "insufficient_scope"),
        ("/hub/event", 404, "not_found"),
        ("/hub/broadcast", 405, "method_not_allowed"),
    ],
)
def test_a_refusal_that_no_other_token_changes_asks_for_none(
    site: ClosedSite, open_tab: Open, url: str, status: int, code: str
) -> None:
    page = open_tab(shared="none", wait=False, url=url)
    state = until_stopped(page)
    assert (state["status"], state["code"]) == (status, code)
    assert (site.requests, asked(page)) == ([("good", status)], [False])


@pytest.mark.parametrize("kind", ["token", "ticket"])
def test_a_stream_whose_permission_expired_goes_on_with_a_new_one(
    site: ClosedSite, shared: str, open_tab: Open, kind: str
) -> None:
    page = open_tab(kind, shared=shared)
    with Publisher(site, topic="news") as publisher:
        publisher.more()
        site.let_pass(LASTS_ELSE)
        until_open_again(page)
        publisher.more()
    assert ids(page, publisher.published[-1]) == publisher.published
    assert site.requests == [("good", 200), ("fresh", 200)]
    assert asked(page) == [False, True]


@pytest.mark.parametrize("settings", [{"retry_min": 5, "retry_max": 5}])
def test_a_new_token_is_asked_for_at_once_unless_the_last_one_was_new_itself(site: ClosedSite, tabs: Tabs) -> None:
    page = stopped_clock(site, tabs)
    page.clock.run_for(5_000)
    site.let_pass(LASTS_ELSE)
    page.wait_for_function("asked.length == 2 && stream.state.name == 'open'")
    page.evaluate("token => { window.fresh = token; }", site.secret("token", "newer"))
    site.let_pass(LASTS["fresh"])
    assert until_error(page)["reason"] == "expired"
    page.clock.run_for(5_000)
    page.wait_for_function("asked.length == 3 && stream.state.name == 'open'")
    assert asked(page) == [False, True, True]
    page.close()


@pytest.mark.parametrize("kind", ["token", "ticket"])
def test_a_stream_that_was_revoked_asks_once_more(site: ClosedSite, shared: str, open_tab: Open, kind: str) -> None:
    page = open_tab(kind, shared=shared)
    site.run(lambda: site.hub.revoke(user="1"))
    assert until_error(page)["reason"] == "revoked"
    state = until_stopped(page)
    assert (state["code"], state["reason"]) == (NOT_VALID[kind][0], "revoked")
    assert site.requests == [("good", 200), ("fresh", 401)]


def test_a_stream_that_was_revoked_goes_on_after_a_new_login(site: ClosedSite, shared: str, open_tab: Open) -> None:
    page = open_tab(shared=shared)
    site.log_out("good")
    until_open_again(page)
    assert site.requests == [("good", 200), ("fresh", 200)]
    assert page.evaluate("stream.state") == {"name": "open"}


def test_a_stream_that_was_kicked_waits_as_long_as_it_is_blocked(site: ClosedSite, shared: str, open_tab: Open) -> None:
    page = open_tab(shared=shared)
    site.run(lambda: site.hub.kick(user="1", block=600))
    assert until_error(page)["reason"] == "kicked"
    assert page.evaluate("stream.state.until > Date.now() + 500_000")
    assert asked(page) == [False]
    page.evaluate("stream.reconnect()")
    page.wait_for_function("states.filter(({ name }) => name == 'waiting').length == 2")
    assert until_error(page)["reason"] == "kicked"
    assert page.evaluate("stream.state.until - began") >= 29_000  # ms; the hub said 30 s, and the clocks are rounded
    assert site.requests == [("good", 200)] * 2


def test_a_stream_whose_grant_changed_goes_on_with_the_same_token(
    site: ClosedSite, shared: str, open_tab: Open
) -> None:
    site.make("token", "good", topics=("news", "secrets"))
    page = open_tab(shared=shared)
    site.run(lambda: site.hub.revoke(user="1", topics=["secrets"]))
    until_open_again(page)
    assert page.evaluate("states.map(({ reason }) => reason ?? null)") == [None, "changed", None]
    site.publish("secret", topic="secrets")
    published = publish(site, "narrower")
    assert ids(page, published[0]) == published
    assert asked(page) == [False, False]
    assert site.requests == [("good", 200)] * 2


RARELY = 20.0  # seconds after which a client comes back at the earliest
OFTEN = round(WINDOW / RARELY) + 1  # times that one client can come back with a ticket while that is counted


@pytest.mark.parametrize(
    ("reason", "others", "settings"),
    [("replaced", 0, {}), ("contested", OFTEN, {"retry_min": RARELY, "retry_max": RARELY})],
)
def test_a_ticket_that_another_stream_has_is_replaced(
    site: ClosedSite, tabs: Tabs, shared: str, open_tab: Open, reason: str, others: int
) -> None:
    """The other one has the page's address and browser, and not its cookie. It comes after the page; contested: also
    before, as often as one client can.
    """
    browser = tabs.open(site.url).evaluate("navigator.userAgent")
    for _ in range(others):
        assert use_ticket(site, browser) == 200
    page = open_tab("ticket", shared=shared)
    assert use_ticket(site, browser) == (200 if reason == "replaced" else 401)
    assert until_error(page)["reason"] == reason
    page.evaluate("stream.reconnect()")
    until_open_again(page)
    assert site.requests[others:] == [("good", 200), ("good", 200 if reason == "replaced" else 401), ("fresh", 200)]


def use_ticket(site: ClosedSite, browser: str) -> int:
    """Open a stream with the page's first ticket, in another browser of this name. Return the status."""
    headers = {"Accept": EVENT_STREAM, "User-Agent": browser}
    query = {"ticket": site.secret("ticket", "good")}
    with httpx.stream("GET", f"{site.url}/hub/events", params=query, headers=headers, timeout=PATIENCE) as answer:
        return answer.status_code


@pytest.mark.parametrize(
    "settings",
    [{"failed_credentials": "1/h", "trusted_proxies": ["192.0.2.1"], "forwarded_header": "x-forwarded-for"}],
)
def test_a_limit_is_waited_for_and_named(site: ClosedSite, shared: str, open_tab: Open) -> None:
    headers = {"Authorization": f"Bearer {site.secret('token', 'stale')}"}
    assert httpx.get(f"{site.url}/hub/grant", headers=headers, timeout=PATIENCE).status_code == 401
    page = open_tab(shared=shared, wait=False)
    state = until_error(page)
    assert (state["reason"], "too many" in state["detail"]) == ("limit", True)
    assert page.evaluate("stream.state.until - began") >= 29_000  # ms; the hub said 30 s, and the clocks are rounded
    assert (site.requests, asked(page)) == ([("good", 200)], [False])


@pytest.mark.parametrize("text", ["event: bye\ndata: so long\n\n", "event: bye\ndata: null\n\n"])
def test_a_bye_without_a_reason_ends_a_stream_all_the_same(site: ClosedSite, open_tab: Open, text: str) -> None:
    """Another server's: a hub's ``bye`` has a reason. So this answer is made up."""
    site.refusal = Response(f"data: last words\n\n{text}", media_type=EVENT_STREAM)
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
    site: ClosedSite, tabs: Tabs, shared: str, open_tab: Open, failure: str
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


def test_a_function_that_hangs_has_failed_after_a_while(site: ClosedSite, tabs: Tabs) -> None:
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


def test_two_users_of_one_browser_have_a_stream_each(site: ClosedSite, open_tab: Open) -> None:
    """Over a worker, and over locks: the tabs of a user share, and get no event of the other user."""
    for shared in ("worker", "locks"):
        for name, number in [("first", "1"), ("second", "2")]:
            site.make("token", name, user=number, topics=(f"users/{number}",))  # a new login, after the last round's
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
        site.run(lambda: site.hub.revoke(user="1"))  # the first user logs out
        assert [until_stopped(page)["reason"] for page in tabs[1]] == ["revoked"] * 2
        assert site.requests == [("first", 200), ("second", 200), ("first", 401)]
        site.publish("still", topic="users/2")
        assert [data(page, "still") for page in tabs[2]] == [[texts[2], "still"]] * 2
        for page in [*tabs[1], *tabs[2]]:
            page.close()


def test_tabs_that_name_no_user_do_not_share(site: ClosedSite, open_tab: Open) -> None:
    pages = [open_tab(kind, user=None) for kind in ("token", "ticket")]
    assert [page.evaluate("stream.shared") for page in pages] == ["none", "none"]
    assert len(site.hub) == 2


def set_cookie(site: ClosedSite, tabs: Tabs) -> None:
    """Log user 2 in, with a cookie of the hub's."""
    token = site.make("token", "cookie", user="2")
    tabs.context.add_cookies([{"name": "token", "value": token, "url": site.url, "httpOnly": True}])


def test_users_with_a_cookie_do_not_share_either(site: ClosedSite, tabs: Tabs, open_tab: Open) -> None:
    set_cookie(site, tabs)
    for user in (1, 1, "two"):
        assert open_tab("", user=user).evaluate("stream.shared") == "worker"
    assert len(site.hub) == 2
    assert site.requests == [("", 200)] * 2


def test_a_stream_does_not_go_on_as_another_user(site: ClosedSite, shared: str, open_tab: Open) -> None:
    """One user logs out and another one in, in another tab: the page of the first one has the other's token."""
    for user, name in [("1", "first"), ("2", "second")]:
        site.make("token", name, user=user, topics=(f"users/{user}",))
    pages = [open_tab(secret="first", shared=shared) for _ in range(2)]
    end_streams(site)
    site.publish("mine", topic="users/1")
    for page in pages:
        data(page, "mine")
        page.wait_for_function("states.filter(({ name }) => name == 'open').length > 1")  # as the same user it goes on
        set_secret(page, site.secret("token", "second"))
    end_streams(site)
    site.publish("not mine", topic="users/2")  # which the other user's stream goes on with
    for page in pages:
        page.wait_for_function("stream.readyState == 2")
        state = page.evaluate("stream.state")
        assert (state["name"], state["reason"]) == ("closed", "user_changed")
        assert page.evaluate("states.at(-1).reason") == "user_changed"  # the event is an error
        assert "not mine" not in page.evaluate("seen.map(([, data]) => data)")
        assert '"2"' not in page.evaluate("seen.map(([, data]) => data).join()")
    assert site.requests[-1] == ("second", 200)


def test_a_user_of_whom_the_hub_has_said_nothing_is_no_other(site: ClosedSite, open_tab: Open) -> None:
    site.make("token", "good", user=None)
    page = open_tab(shared="none")
    for number, user in enumerate(("1", None, "1")):
        set_secret(page, site.make("token", f"of {user}", user=user))
        page.evaluate("seen.length = 0")
        end_streams(site)
        publish(site, f"text {number}")
        data(page, f"text {number}")
        assert page.evaluate("seen.map(([type]) => type)") == ["welcome", "message"]
        assert json.loads(page.evaluate("seen[0][1]")).get("user") == user


@pytest.mark.parametrize("shared", ["worker", "locks"])
def test_a_tab_that_has_to_catch_up_asks_its_own_page(site: ClosedSite, shared: str, open_tab: Open) -> None:
    published = publish(site, "1", "2")
    leader, late = open_tab(shared=shared), open_tab(secret="fresh", shared=shared, last=2)
    assert ids(late, published[-1]) == published
    assert (asked(leader), asked(late)) == ([False], [False])
    until_open(site.hub, 1)
    assert site.requests == [("good", 200), ("fresh", 200)]


@pytest.mark.parametrize("shared", ["worker", "locks"])
def test_when_the_tab_whose_token_it_is_goes_another_one_is_asked(
    site: ClosedSite, shared: str, open_tab: Open
) -> None:
    first, second = open_tab(shared=shared), open_tab(secret="fresh", shared=shared)
    published = publish(site, "1")
    assert ids(second, published[0]) == ids(first, published[0]) == published
    first.close()
    until_open(site.hub, 1)
    end_streams(site)
    published += publish(site, "2")
    assert ids(second, published[-1]) == published
    assert site.requests[-1] == ("fresh", 200)


def test_a_worker_asks_the_other_tabs_when_one_has_no_token(site: ClosedSite, tabs: Tabs, open_tab: Open) -> None:
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


def test_a_worker_does_not_wait_for_a_tab_that_goes(site: ClosedSite, open_tab: Open) -> None:
    stays, goes = open_tab(shared="worker"), open_tab(shared="worker")
    goes.evaluate("() => { window.fail = () => new Promise(() => {}); }")
    end_streams(site)
    goes.wait_for_function("asked.length == 1")
    goes.close()
    published = publish(site, "1")
    assert ids(stays, published[0]) == published


@pytest.mark.parametrize("shared", ["worker", "locks"])
def test_a_tab_that_comes_with_a_good_token_connects_those_that_were_refused(
    site: ClosedSite, shared: str, open_tab: Open
) -> None:
    page = open_tab(fresh="stale", shared=shared)
    published = publish(site, "1")
    ids(page, published[0])
    site.log_out("good")
    until_stopped(page)
    published += publish(site, "2")
    other = open_tab(secret="fresh", shared=shared)
    assert ids(page, published[-1]) == published
    until_open(site.hub, 1)
    assert ids(other) in ([], published[1:])


@pytest.mark.parametrize("shared", ["worker", "locks"])
def test_a_tab_that_comes_with_a_token_connects_those_that_got_none(
    site: ClosedSite, tabs: Tabs, shared: str, open_tab: Open
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
def test_reconnect_asks_the_tab_that_called_it(site: ClosedSite, shared: str, open_tab: Open) -> None:
    """Each tab has its own token, and only the user of the first one has logged in again."""
    pages = [open_tab(fresh="stale", shared=shared) for _ in range(3)]
    site.log_out("good")
    for page in pages:
        until_stopped(page)
    for name, page in [("new", pages[1]), ("newer", pages[0])]:
        set_secret(page, site.secret("token", name))
        page.evaluate("stream.reconnect()")
        for other in pages:
            other.wait_for_function("stream.state.name == 'open'")
        set_secret(page, site.secret("token", "stale"))
        site.log_out(name)
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
    site: ClosedSite, tabs: Tabs, shared: str, open_tab: Open, kind: str
) -> None:
    said: list[str] = []
    tabs.context.on("console", lambda message: said.append(message.text))
    tabs.context.add_init_script(WATCH)
    pages = [open_tab(kind, "stale", name, shared=shared) for name in ("one", "other")]
    site.let_pass(LASTS_ELSE)
    for page in pages:
        until_stopped(page)
        shown = page.evaluate(
            "JSON.stringify([shown, states, stream, stream.url, { ...localStorage }, { ...sessionStorage }])"
        )
        assert ("sse-app" in shown) == (shared != "none")
        said.append(shown)
    assert {name for _, name in site.made} == {"stale", "one", "other"}
    for secret in site.made.values():
        assert secret.rpartition(".")[2] not in "".join(said)  # of a token its signature, without which it is none


BAD = {
    "both": "{ token: give, ticket: give }",
    "no function": "{ token: 'S3CRET' }",
    "a token in the URL": "{}, '?access_token=S3CRET'",
    "a token and a ticket": "{ token: give }, '?ticket=S3CRET'",
    "credentials": "{ credentials: 'S3CRET' }",
}


@pytest.mark.parametrize("options", BAD.values(), ids=BAD.keys())
def test_options_that_cannot_be_honoured_are_refused_without_the_secret(
    site: ClosedSite, tabs: Tabs, options: str
) -> None:
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


def test_a_ticket_in_the_url_is_the_first_one(site: ClosedSite, shared: str, open_tab: Open) -> None:
    ticket = site.secret("ticket", "good")
    page = open_tab("ticket", url=f"/hub/events?ticket={ticket}&topic=news", shared=shared)
    assert (site.requests, asked(page)) == ([("good", 200)], [])
    assert page.evaluate("stream.url") == f"{site.url}/hub/events?topic=news"
    site.log_out_unseen("good")
    until_open_again(page)
    assert site.requests[1:] == [("good", 401), ("fresh", 200)]


def test_a_ticket_in_the_url_is_no_answer_to_who_asks_for_a_new_one(site: ClosedSite, open_tab: Open) -> None:
    """The worker had the ticket of another tab so far. The one in this tab's URL has been there as long."""
    first = open_tab("ticket", shared="worker")
    second = open_tab("ticket", url=f"/hub/events?ticket={site.secret('ticket', 'stale')}", shared="worker")
    site.log_out_unseen("good")
    second.wait_for_function("asked.length == 1")
    for page in (first, second):
        until_open_again(page)
    assert (asked(first), asked(second)) == ([False], [True])
    assert site.requests == [("good", 200), ("good", 401), ("fresh", 200)]


def test_a_ticket_in_the_url_and_no_function_is_tried_until_it_is_refused(site: ClosedSite, open_tab: Open) -> None:
    page = open_tab("", url=f"/hub/events?ticket={site.secret('ticket', 'good')}", user=None)
    assert page.evaluate("stream.shared") == "none"
    end_streams(site)
    until_open_again(page)
    site.log_out_unseen("good")
    assert until_stopped(page)["code"] == "invalid_ticket"
    assert site.requests == [("good", 200), ("good", 200), ("good", 401)]


@pytest.mark.parametrize("credentials", ["include", "omit", None])
def test_cookies_go_where_the_page_says(site: ClosedSite, tabs: Tabs, credentials: str | None) -> None:
    set_cookie(site, tabs)
    page = tabs.open(site.url)
    page.evaluate(
        """() => {
            window.sent = [];
            const { fetch } = window;
            window.fetch = (url, options) => { sent.push(options.credentials); return fetch(url, options); };
        }"""
    )
    options = {"credentials": credentials} if credentials else {}
    listen(page, "token", site.secret("token", "good"), site.secret("token", "fresh"), shared="none", **options)
    page.wait_for_function("stream.state.name == 'open'")
    assert page.evaluate("sent") == [credentials or "same-origin"]
    assert ("cookie" in site.heads[0]) == (credentials != "omit")
    assert types(page) == ["welcome"]
    assert json.loads(page.evaluate("seen[0][1]"))["user"] == "1"  # of the token, which is the stronger


@pytest.mark.parametrize("name", sorted(IN_URL))
def test_a_token_in_the_url_is_refused_however_it_is_spelled(site: ClosedSite, tabs: Tabs, name: str) -> None:
    page = tabs.open(site.url)
    for spelling in (name, name.title(), name.upper()):
        with pytest.raises(Error, match="TypeError: a URL is no place for a token"):
            page.evaluate(
                f"""async () => {{
                    const {{ connect }} = await import("/hub/static/sse-app.js");
                    connect("/hub/events?{spelling}=S3CRET");
                }}"""
            )
    assert site.requests == []
