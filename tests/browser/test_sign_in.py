"""The console on a hub that tells its callers apart: signing in and out, what is granted in words, and how it explains
a stream that was ended or refused.
"""

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import jwt
import pytest
from playwright.sync_api import ConsoleMessage, Page, Request, Route, expect
from starlette import requests
from starlette.applications import Starlette
from starlette.routing import Mount

from sse_app import Hub, create_app, notices
from sse_app.config import Config
from sse_app.grants import Grant
from sse_app.pytest_plugin import HubServer
from sse_app.subscriber import CloseReason
from sse_app.testing import live
from tests.browser.conftest import Tabs
from tests.browser.test_console import connected, row, send
from tests.support.tokens import SECRET

pytestmark = pytest.mark.browser

READER, OTHER, ADMIN = "the-secret-of-a-reader", "the-secret-of-another", "the-secret-of-an-admin"
ANONYMOUS = ""
EVERYTHING: dict[str, Any] = {"publish": ("**",), "subscribe": ("**",), "stats": "all"}


@dataclass
class Gated:
    """A hub that grants what is written beside each secret."""

    hub: Hub
    url: str = ""
    grants: dict[str, Grant] = field(default_factory=dict)

    def authorize(self, request: requests.Request) -> Grant | None:
        return self.grants.get(request.headers.get("authorization", "")[len("Bearer ") :])

    def end(self, reason: CloseReason, retry: int = 20) -> None:
        """End all open streams, as the hub does for this reason. ``retry`` is in ms."""
        loop = self.hub.node.life._loop
        assert loop is not None
        for subscriber in list(self.hub.node._delivery):
            loop.call_soon_threadsafe(subscriber.close, reason, notices.bye(reason, retry))


@pytest.fixture
def gated() -> Iterator[Gated]:
    site = Gated(
        Hub(drain=0.2, retry_min=0.1, retry_max=0.2, authorize=lambda request: site.authorize(request)),
        grants={
            READER: Grant.of(subscribe=("rooms/*", "news"), broadcasts=False, user="42", client="tab-*"),
            OTHER: Grant.of(subscribe=("rooms/*",), publish=("rooms/*",), user="43", stats="own", expires_in=3_599),
            ADMIN: Grant.of(**EVERYTHING, mint=True, admin=True, user="root"),
        },
    )
    with live(Starlette(routes=[Mount("/", site.hub.app)], lifespan=site.hub.lifespan)) as server:
        site.url = server.url
        yield site


@pytest.fixture
def tab(gated: Gated, tabs: Tabs) -> Iterator[Page]:
    """A console that has been asked who it is."""
    tabs.expected.append("status of 40[13]")
    page = tabs.open(gated.url)
    expect(page.locator("#state")).to_have_text("Not signed in")
    yield page
    page.close()


def sign_in(page: Page, secret: str) -> Page:
    page.get_by_label("Token or key").fill(secret)
    page.get_by_label("Token or key").press("Enter")
    return page


def requests_of(page: Page) -> list[Request]:
    """The requests that a page makes from now on."""
    requests: list[Request] = []
    page.on("request", lambda request: requests.append(request))
    return requests


def facts(page: Page) -> dict[str, str]:
    """What the console says of the grant."""
    expect(page.locator("#access")).to_be_visible()
    pairs: list[list[str]] = page.locator("#access-facts > div").evaluate_all(
        "rows => rows.map(row => [...row.children].map(cell => cell.textContent))"
    )
    return dict(pairs)


def test_an_open_hub_is_asked_for_nothing_more(sse_server: HubServer, tabs: Tabs) -> None:
    paths: list[str] = []
    tabs.context.on("request", lambda request: paths.append(request.url.removeprefix(sse_server.url).split("?")[0]))
    page = connected(tabs.open(sse_server.url))
    expect(page.locator("#published")).to_have_text("0")
    assert {path for path in paths if not path.startswith("/static/")} == {"/", "/events", "/stats"}
    for name in ("account", "sign-in", "access", "connections"):
        expect(page.locator(f"#{name}")).to_be_hidden()


def test_signing_in_opens_the_stream(gated: Gated, tab: Page) -> None:
    expect(tab.locator("#notice")).to_have_text("This hub asks for a token or a key.")
    expect(tab.get_by_label("Token or key")).to_be_focused()
    connected(sign_in(tab, READER))
    expect(tab.locator("#sign-in")).to_be_hidden()
    expect(tab.locator("#rows .system")).to_contain_text(" of 42 · listening to news, rooms/*")
    gated.hub.publish_threadsafe("for rooms", topic="rooms/7")
    expect(row(tab, "for rooms")).to_have_count(1)
    tab.reload()
    connected(tab)
    expect(tab.get_by_role("button", name="Sign out")).to_be_visible()


def test_a_secret_goes_out_in_the_header_alone(gated: Gated, tab: Page) -> None:
    requests = requests_of(tab)
    said: list[str] = []
    tab.on("console", lambda message: said.append(text_of(message)))
    sign_in(tab, f"Bearer {ADMIN}")
    connected(tab)
    send(tab, "hello")
    expect(row(tab, "hello")).to_have_count(1)
    expect(tab.locator("#access")).to_be_visible()
    expect(tab.locator("#published")).to_have_text("1")
    authorized = [found for found in requests if found.headers.get("authorization") == f"Bearer {ADMIN}"]
    assert {re.sub(r"[?].*", "", found.url).removeprefix(gated.url) for found in authorized} >= {
        "/events",
        "/grant",
        "/stats",
        "/broadcast",
    }
    expect(tab.locator("#curl")).to_contain_text('-H "Authorization: Bearer $SSE_APP_TOKEN"')
    assert not [found.url for found in requests if ADMIN in found.url]
    assert not [text for text in said if ADMIN in text]
    assert ADMIN not in tab.content()
    assert tab.get_by_label("Token or key").input_value() == ""
    assert ADMIN not in str(tab.evaluate("() => [{...localStorage}, document.cookie, location.href]"))
    assert ADMIN in str(tab.evaluate("() => ({...sessionStorage})"))


def text_of(message: ConsoleMessage) -> str:
    return f"{message.text} {message.location}"


def test_a_secret_that_does_not_count_is_not_kept(tab: Page) -> None:
    requests = requests_of(tab)
    sign_in(tab, "two words")
    expect(tab.locator("#sign-in-error")).to_contain_text("one word")
    sign_in(tab, "a-wrong-secret")
    expect(tab.locator("#sign-in-error")).to_contain_text("does not accept this token or key")
    expect(tab.get_by_label("Token or key")).to_be_focused()
    assert [found.url.rpartition("/")[2] for found in requests] == ["grant"]
    assert "a-wrong-secret" not in str(tab.evaluate("() => ({...sessionStorage})"))
    expect(tab.get_by_role("button", name="Sign in").first).to_be_visible()


def test_signing_out_forgets_the_secret_and_what_it_showed(gated: Gated, tab: Page) -> None:
    connected(sign_in(tab, READER))
    gated.hub.publish_threadsafe("for 42 alone", topic="rooms/7")
    expect(row(tab, "for 42 alone")).to_have_count(1)
    requests = requests_of(tab)
    tab.get_by_role("button", name="Sign out").click()
    expect(tab.locator("#state")).to_have_text("Not signed in")
    expect(tab.get_by_label("Token or key")).to_be_visible()
    expect(tab.locator("#access")).to_be_hidden()
    assert "for 42 alone" not in tab.content()
    assert READER not in str(tab.evaluate("() => ({...sessionStorage})"))
    assert not [found.url for found in requests if "authorization" in found.headers]
    connected(sign_in(tab, OTHER))
    expect(row(tab, "for 42 alone").locator(".replayed")).to_be_visible()  # which this user may see too


def hold(page: Page, path: str) -> list[Route]:
    """Keep back the requests for a path from now on."""
    held: list[Route] = []
    page.route(path, lambda route: held.append(route))  # Playwright takes no builtin
    return held


def let_go(page: Page, held: list[Route]) -> None:
    """Let the hub answer a request that is kept back, and the page do with it what it does."""
    with page.expect_response(held[0].request.url) as answered:
        held[0].continue_()
    answered.value.finished()
    page.unroute_all()


def test_a_secret_that_is_being_tried_is_left_by_escape(tab: Page) -> None:
    held = hold(tab, "**/grant")
    sign_in(tab, READER)
    expect(tab.locator("#sign-in-button")).to_be_disabled()
    tab.get_by_label("Token or key").press("Escape")
    let_go(tab, held)
    expect(tab.locator("#sign-in-button")).to_be_enabled()
    expect(tab.locator("#account")).to_have_text("Sign in")
    assert tab.evaluate("sessionStorage.getItem('sse-app.credential')") is None


def test_who_signs_out_while_another_secret_is_tried_stays_signed_out(gated: Gated, tab: Page) -> None:
    connected(sign_in(tab, ADMIN))
    del gated.grants[ADMIN]
    send(tab, "too late")
    held = hold(tab, "**/grant")
    sign_in(tab, READER)
    expect(tab.locator("#sign-in-button")).to_be_disabled()
    tab.get_by_role("button", name="Sign out").click()
    let_go(tab, held)
    expect(tab.locator("#sign-in-button")).to_be_enabled()
    expect(tab.locator("#state")).to_have_text("Not signed in")
    assert tab.evaluate("sessionStorage.getItem('sse-app.credential')") is None


def test_what_comes_of_a_publication_is_told_to_nobody_else(tab: Page) -> None:
    connected(sign_in(tab, ADMIN))
    held = hold(tab, "**/broadcast*")
    send(tab, "by root")
    expect(tab.locator("#send")).to_be_disabled()
    tab.get_by_role("button", name="Sign out").click()
    let_go(tab, held)
    expect(tab.locator("#send")).to_be_enabled()
    expect(tab.locator("#receipt")).to_have_text("")


def test_what_is_granted_is_said_in_words(tab: Page) -> None:
    connected(sign_in(tab, READER))
    assert facts(tab) == {
        "Who you are": "42",
        "Expires": "never",
        "Listen to": "news, rooms/*, but to nothing without a topic",
        "Publish on": "nothing",
        "Client name": "tab-*",
        "Statistics": "not granted",
        "Also": "nothing more",
    }
    tab.get_by_role("button", name="Sign out").click()
    connected(sign_in(tab, OTHER))
    assert facts(tab)["Expires"] == "in 59 min"
    assert facts(tab)["Statistics"] == "counts, and what you may listen to"
    tab.get_by_role("button", name="Sign out").click()
    connected(sign_in(tab, ADMIN))
    assert facts(tab)["Listen to"] == facts(tab)["Publish on"] == "everything"
    assert facts(tab)["Also"] == "make tickets for others, see and end connections"


def test_who_may_not_see_the_statistics_is_told_so_and_does_not_ask(tab: Page) -> None:
    requests = requests_of(tab)
    connected(sign_in(tab, READER))
    for name in ("clients", "published"):
        expect(tab.locator(f"#{name}")).to_have_text("–")
        expect(tab.locator(f"#{name}-note")).to_have_text("not granted to you")
    expect(tab.locator("#listeners")).to_have_text("The hub's statistics are not granted to you.")
    assert not [found for found in requests if found.url.endswith("/stats")]


def test_statistics_of_ones_own_have_no_filters(tab: Page) -> None:
    connected(sign_in(tab, OTHER))
    expect(tab.locator("#clients")).to_have_text("1")
    expect(tab.locator("#published")).to_have_text("0")
    expect(tab.locator("#listeners")).to_have_text("What others listen to is not granted to you.")


@pytest.mark.parametrize(("status", "code"), [(403, "insufficient_scope"), (401, "invalid_token")])
def test_statistics_that_are_refused_are_not_asked_for_again(tab: Page, status: int, code: str) -> None:
    asked: list[str] = []

    def refuse(route: Route) -> None:
        asked.append(route.request.url)
        route.fulfill(status=status, json={"code": code}, content_type="application/problem+json")

    tab.route("**/stats", refuse)
    connected(sign_in(tab, ADMIN))
    if status == 403:
        expect(tab.locator("#published-note")).to_have_text("not granted to you")
    else:
        expect(tab.get_by_label("Token or key")).to_be_visible()
    send(tab, "after which it would ask soon")
    expect(row(tab, "ask soon")).to_have_count(1)
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("reason", "label", "words"),
    [
        ("expired", "Expired", "The permission to listen has expired. Sign in with a new token or key."),
        ("revoked", "Withdrawn", "The permission to listen was withdrawn. Sign in with another token or key."),
        ("changed", "Not accepted", "The hub does not accept this token or key: it is wrong, has expired or was"),
    ],
)
def test_a_stream_that_was_ended_says_why(gated: Gated, tab: Page, reason: str, label: str, words: str) -> None:
    connected(sign_in(tab, READER))
    gated.hub.publish_threadsafe("before", topic="rooms/1")
    expect(row(tab, "before")).to_have_count(1)
    tab.get_by_label("Message").fill("half a mess")
    renewed = gated.grants.pop(READER)
    gated.end(CloseReason(reason))
    expect(tab.locator("#state")).to_have_text(label)
    expect(tab.locator("#notice")).to_contain_text(words)
    expect(tab.get_by_label("Token or key")).to_be_visible()
    expect(tab.get_by_label("Message")).to_be_focused()  # what is typed on goes into no other field
    gated.hub.publish_threadsafe("meanwhile", topic="rooms/1")
    gated.grants["renewed"] = renewed
    connected(sign_in(tab, "renewed"))
    expect(row(tab, "meanwhile")).to_have_count(1)
    expect(row(tab, "before")).to_have_count(1)
    expect(tab.locator("#rows .system").last).to_contain_text("caught up, nothing missed")


def test_another_user_does_not_see_what_the_one_before_saw(gated: Gated, tab: Page) -> None:
    connected(sign_in(tab, READER))
    gated.hub.publish_threadsafe("not for 43", topic="news")
    expect(row(tab, "not for 43")).to_have_count(1)
    del gated.grants[READER]
    gated.end(CloseReason.EXPIRED)
    expect(tab.locator("#state")).to_have_text("Expired")
    connected(sign_in(tab, OTHER))
    expect(tab.locator("#rows .system").last).to_contain_text(" of 43 ")
    assert "not for 43" not in tab.content()


@pytest.mark.parametrize(
    ("reason", "state", "words"),
    [
        ("kicked", "Sent away, next try in 2 min", "An administrator has ended this connection"),
        ("changed", "Access changed, next try in 2 min", "What you may listen to has changed"),
        ("replaced", "Replaced, next try in 2 min", "Another connection has taken the place of this one"),
        ("contested", "Contested, next try in 2 min", "Others have used the same ticket"),
    ],
)
def test_a_stream_that_comes_back_says_why_and_when(
    gated: Gated, tab: Page, reason: str, state: str, words: str
) -> None:
    connected(sign_in(tab, READER))
    gated.end(CloseReason(reason), retry=179_500)
    expect(tab.locator("#state")).to_have_text(state)
    expect(tab.locator("#notice")).to_be_visible()
    expect(tab.locator("#rows .system").last).to_contain_text(words)
    tab.get_by_role("button", name="Reconnect now").click()
    connected(tab)
    expect(tab.locator("#notice")).to_be_hidden()


def test_topics_that_are_not_granted_are_refused_beside_their_field(tab: Page) -> None:
    connected(sign_in(tab, READER))
    tab.locator("#topics").fill("secrets/1")
    tab.locator("#topics").press("Enter")
    expect(tab.locator("#state")).to_have_text("Not granted")
    expect(tab.locator("#topics-error")).to_contain_text("outside of what this credential grants")
    assert facts(tab)["Listen to"].startswith("news, rooms/*")
    tab.locator("#topics").fill("rooms/**")
    tab.locator("#topics").press("Enter")
    connected(tab)
    expect(tab.locator("#rows .system").last).to_contain_text("listening to rooms/*")


def test_a_publication_that_is_not_granted_says_why_and_what_is(tab: Page) -> None:
    connected(sign_in(tab, OTHER))
    expect(tab.locator("#access")).to_be_visible()
    send(tab, "for everyone")
    expect(tab.locator("#broadcast-error")).to_contain_text("Give a topic. You may publish on rooms/*.")
    send(tab, "for a room", topic="rooms/7")
    expect(row(tab, "for a room")).to_have_count(1)
    expect(tab.locator("#broadcast-error")).to_be_hidden()


def test_a_publication_with_a_secret_that_has_ended_asks_for_another(gated: Gated, tab: Page) -> None:
    connected(sign_in(tab, ADMIN))
    del gated.grants[ADMIN]
    send(tab, "too late")
    expect(tab.get_by_label("Token or key")).to_be_focused()
    expect(tab.locator("#key-field")).to_be_hidden()


def test_latency_is_measured_where_the_hub_vouches_for_the_tab(gated: Gated, tab: Page) -> None:
    connected(sign_in(tab, ADMIN))
    tab.get_by_role("button", name="Measure").click()
    expect(tab.locator("#latency-note")).to_contain_text("20 echoes")
    tab.get_by_role("button", name="Sign out").click()
    gated.grants["a-key"] = Grant.of(**EVERYTHING)
    connected(sign_in(tab, "a-key"))
    tab.get_by_role("button", name="Measure").click()
    expect(tab.locator("#broadcast-error")).to_contain_text("a tab whose name the hub vouches for")


def test_who_needs_no_secret_may_sign_in(gated: Gated, tabs: Tabs) -> None:
    gated.grants[ANONYMOUS] = Grant.of(subscribe=("news",), broadcasts=False)
    page = connected(tabs.open(gated.url))
    expect(page.locator("#sign-in")).to_be_hidden()
    assert facts(page)["Who you are"] == "nobody by name"
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_label("Token or key")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("#sign-in")).to_be_hidden()
    expect(page.get_by_role("button", name="Sign in")).to_be_focused()
    page.keyboard.press("Enter")
    sign_in(page, READER)
    expect(page.locator("#rows .system").last).to_contain_text(" of 42 ")
    page.close()


def test_a_page_whose_user_has_changed_shows_nothing_of_the_first(gated: Gated, tabs: Tabs) -> None:
    gated.grants[ANONYMOUS] = Grant.of(subscribe=("rooms/*",), user="42")  # of a cookie, say
    page = connected(tabs.open(gated.url))
    gated.hub.publish_threadsafe("for 42 alone", topic="rooms/7")
    expect(row(page, "for 42 alone")).to_have_count(1)
    gated.grants[ANONYMOUS] = Grant.of(subscribe=("news",), user="43")
    gated.end(CloseReason.CHANGED)
    expect(page.locator("#notice")).to_have_text("Another user has logged in.")
    page.get_by_role("button", name="Connect again").click()
    connected(page)
    expect(page.locator("#rows .system").last).to_contain_text(" of 43 ")
    assert "for 42 alone" not in page.content()
    page.close()


def test_a_token_signs_in_until_it_is_revoked(tabs: Tabs) -> None:
    tabs.expected.append("status of 401")
    token = jwt.encode({"sub": "42", "exp": time.time() + 9.5 * 60, "sse": {"subscribe": ["rooms/*"]}}, SECRET, "HS256")
    app = create_app(Config(token_secret=SECRET.decode()))
    hub: Hub = app.state.hub
    with live(app) as server:
        page = tabs.open(server.url)
        sign_in(page, f"{token}x")
        expect(page.locator("#sign-in-error")).to_contain_text("does not accept this token or key")
        connected(sign_in(page, token))
        expect(page.locator("#access-facts")).to_contain_text("rooms/*")
        assert facts(page)["Expires"].startswith("in 9 min")
        hub.node.life.run_from_thread(lambda: hub.revoke(user="42"), 10.0)
        expect(page.locator("#state")).to_have_text("Withdrawn")
        sign_in(page, token)
        expect(page.locator("#sign-in-error")).to_contain_text("does not accept this token or key")
        page.close()


def test_a_proxy_that_asks_for_a_password_is_not_signed_in_to(tabs: Tabs) -> None:
    tabs.expected.append("status of 401")
    with live(create_app()) as server:
        page = tabs.context.new_page()
        page.route("**/events*", lambda route: route.fulfill(status=401, body="Who?"))
        page.goto(server.url)
        expect(page.locator("#state")).to_have_text("Refused")
        expect(page.locator("#account")).to_be_hidden()
        expect(page.locator("#sign-in")).to_be_hidden()
        page.close()
