"""axe finds no violation in any state of the console, in both colour schemes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.resources import files

import pytest
from playwright.sync_api import Page, Route, expect

from sse_app import Hub, create_app
from sse_app.grants import Grant
from sse_app.testing import live
from tests.browser.conftest import Tabs
from tests.browser.test_connections import PATH, connection
from tests.browser.test_console import connected, row, send

pytestmark = pytest.mark.browser

AXE = files("axe_playwright_python").joinpath("axe.min.js").read_text()
PROBLEM = "application/problem+json"

# Every rule but those of level AAA, those that are experimental or off by default included. One of them takes the role
# row, which the log's tab stop has, for no widget; in WAI-ARIA 1.2 it is one, and focusable in every treegrid.
EXAMINE = """async () => {
    const left = ({ ruleId, tags }) => !tags.includes("wcag2aaa") && ruleId != "focus-order-semantics";
    const rules = axe.getRules().filter(left).map(({ ruleId }) => ruleId);
    const { violations } = await axe.run(document, { runOnly: rules, resultTypes: ["violations"] });
    return violations.map(({ id, nodes }) => [id, ...nodes.map(({ target }) => target.join(" "))]);
}"""


@dataclass
class Console:
    page: Page
    hub: Hub
    url: str

    def open(self, path: str = "/") -> None:
        self.page.goto(self.url + path)
        connected(self.page)

    def refuse(self, path: str, status: int, code: str = "too_bad") -> None:
        def answer(route: Route) -> None:
            route.fulfill(status=status, json={"code": code, "detail": "That is too bad."}, content_type=PROBLEM)

        self.page.route(f"**/{path}*", answer)

    def publish(self, number: int = 1) -> None:
        for _ in range(number):
            for data in ('{"id": 42, "items": [1, null, "two"]}', "text", "long " * 300):
                self.hub.publish_threadsafe(data, event="order", topic="orders/42")
        expect(row(self.page, "orders/42").last).to_be_attached()


def empty(console: Console) -> None:
    console.open()


def events(console: Console) -> None:
    console.hub.publish_threadsafe("before")
    console.open()
    console.publish()
    send(console.page, "mine")
    expect(row(console.page, "mine").locator(".own")).to_be_visible()
    row(console.page, "items").locator("details").evaluate("details => { details.open = true; }")


def gap(console: Console) -> None:
    console.open("/?last_event_id=foreign-7")
    expect(console.page.locator("#rows .gap")).to_be_visible()


def scrolled_up(console: Console) -> None:
    console.open()
    console.publish(30)
    console.page.locator("#rows .row").last.press("Home")
    console.publish()
    expect(console.page.locator("#jump")).to_be_visible()


def paused(console: Console) -> None:
    events(console)
    console.page.get_by_role("button", name="Pause").click()
    console.hub.publish_threadsafe("waiting")
    expect(console.page.locator("#pause")).to_have_text("Resume (1 new)")


def filtered_to_nothing(console: Console) -> None:
    events(console)
    console.page.get_by_label("Filter the log").fill("no such text")
    expect(console.page.locator("#no-match")).to_be_visible()


def stopped(console: Console) -> None:
    events(console)
    console.page.get_by_role("button", name="Disconnect").click()
    expect(console.page.locator("#state")).to_have_text("Closed")


def reconnecting(console: Console) -> None:
    events(console)
    console.page.route("**/events*", lambda route: route.abort())
    console.page.get_by_role("button", name="Disconnect").click()
    console.page.get_by_role("button", name="Connect again").click()
    expect(console.page.locator("#state")).to_contain_text("Reconnecting in")


def refused(console: Console) -> None:
    events(console)
    console.refuse("events", 421)
    console.page.get_by_role("button", name="Disconnect").click()
    console.page.get_by_role("button", name="Connect again").click()
    expect(console.page.locator("#state")).to_have_text("Refused")


def wrong_topic(console: Console) -> None:
    console.open()
    console.page.locator("#topics").fill("**/a")
    console.page.locator("#topics").press("Enter")
    expect(console.page.locator("#topics-error")).to_be_visible()


def key_is_asked_for(console: Console) -> None:
    console.open()
    console.refuse("broadcast", 401)
    send(console.page, "hello")
    expect(console.page.get_by_label("Publish key")).to_be_focused()


def not_signed_in(console: Console) -> None:
    console.refuse("events", 401, "unauthorized")
    console.refuse("grant", 401, "invalid_token")
    console.page.goto(console.url)
    console.page.get_by_label("Token or key").fill("wrong")
    console.page.get_by_label("Token or key").press("Enter")
    expect(console.page.locator("#sign-in-error")).to_be_visible()


def signed_in(console: Console) -> None:
    not_signed_in(console)
    console.page.unroute_all()
    granted = Grant.of(subscribe=("rooms/*",), user="42", expires_in=900).describe()
    console.page.route("**/grant", lambda route: route.fulfill(json=granted))
    console.refuse("stats", 403, "insufficient_scope")
    console.page.get_by_label("Token or key").fill("right")
    console.page.get_by_label("Token or key").press("Enter")
    expect(console.page.locator("#access-facts")).to_contain_text("in 14 min")
    expect(console.page.locator("#published-note")).to_have_text("not granted to you")


def connections(console: Console) -> None:
    def answer(route: Route) -> None:
        entries = [connection("tab-7", "42", topics=["rooms/*"]), connection("c-" + "long" * 15)]
        route.fulfill(json={"connections": entries, "more": False, "partial": ["ba9876543210"], "closed": 1})

    console.page.route(PATH, answer)
    console.open()
    console.page.get_by_role("button", name="Connections").click()
    console.page.get_by_role("button", name="Kick tab-7", exact=True).click()
    expect(console.page.locator("#kicked")).to_contain_text("1 connection")


def measured(console: Console) -> None:
    console.open()
    console.page.get_by_role("button", name="Measure").click()
    expect(console.page.locator("#latency-note")).to_contain_text("20 echoes")


def not_started(console: Console) -> None:
    console.page.route("**/static/log.js", lambda route: route.abort())
    console.page.goto(console.url)
    expect(console.page.get_by_role("alert")).to_be_visible()


STATES = [
    empty,
    events,
    gap,
    scrolled_up,
    paused,
    filtered_to_nothing,
    stopped,
    reconnecting,
    refused,
    wrong_topic,
    key_is_asked_for,
    not_signed_in,
    signed_in,
    connections,
    measured,
    not_started,
]


@pytest.fixture
def console(tabs: Tabs) -> Iterator[Console]:
    tabs.expected.append("status of|net::ERR_")
    app = create_app()
    with live(app) as server:
        page = tabs.context.new_page()
        page.emulate_media(reduced_motion="reduce")
        yield Console(page, app.state.hub, server.url)
        page.close()


@pytest.mark.parametrize("state", STATES)
def test_axe_finds_nothing(console: Console, state: Callable[[Console], None]) -> None:
    page = console.page
    state(console)
    page.evaluate(f"{AXE}; 0")
    for scheme in ("light", "dark"):
        for width in (1280, 390):
            page.set_viewport_size({"width": width, "height": 800})
            page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
            assert page.evaluate(EXAMINE) == [], (scheme, width)
