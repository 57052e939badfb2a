"""The list of connections in the console, and kicks, for administrators."""

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import Page, Route, expect

from sse_app import create_app
from sse_app.pytest_plugin import HubServer
from sse_app.testing import live
from tests.browser.conftest import Tabs
from tests.browser.test_console import connected
from tests.browser.test_sign_in import ADMIN, READER, Gated, gated, requests_of, sign_in, tab

pytestmark = pytest.mark.browser
__all__ = ["gated", "tab"]  # fixtures

PATH = re.compile(r":[0-9]+/connections\b")


def connection(client: str, user: str | None = None, **facts: Any) -> dict[str, Any]:
    """One entry of GET /connections."""
    return {
        "client": client,
        "user": user,
        "topics": [],
        "topics_cut": False,
        "address": None,
        "since": int(time.time()),
        "expires": None,
        "source": "open",
        "node": "0123456789ab",
        "position": "x-1",
        "behind": False,
        "queued_bytes": 0,
        **facts,
    }


@dataclass
class Desk:
    """The answers to requests for connections, and what was asked."""

    connections: list[dict[str, Any]] = field(default_factory=list)
    more: bool = False
    partial: list[str] = field(default_factory=list)
    problem: tuple[int, str] | None = None
    asked: list[tuple[str, str, dict[str, list[str]]]] = field(default_factory=list)  # method, path, query

    def answer(self, route: Route) -> None:
        url, method = urlsplit(route.request.url), route.request.method
        self.asked.append((method, url.path, parse_qs(url.query)))
        if self.problem is not None:
            status, detail = self.problem
            route.fulfill(status=status, json={"detail": detail}, content_type="application/problem+json")
        elif method == "DELETE":
            route.fulfill(json={"closed": 1, "nodes": 1, "partial": self.partial})
        else:
            route.fulfill(json={"connections": self.connections, "more": self.more, "partial": self.partial})


@pytest.fixture
def desk(tabs: Tabs) -> Desk:
    desk = Desk([connection("tab-7", "42", topics=["rooms/*"]), connection("c-1")])
    tabs.context.route(PATH, desk.answer)
    return desk


@pytest.fixture
def listed(sse_server: HubServer, desk: Desk, tabs: Tabs) -> Iterator[Page]:
    """A console of an open hub, with the list open."""
    page = connected(tabs.open(sse_server.url))
    page.get_by_role("button", name="Connections").click()
    expect(page.locator("#connection-list li")).to_have_count(2)
    yield page
    page.close()


def test_the_list_says_who_is_connected(sse_server: HubServer, desk: Desk, tabs: Tabs) -> None:
    now = int(time.time())
    facts = {
        "address": "192.0.2.7",
        "since": now - 185,
        "expires": now + 3_599,
        "source": "till",
        "queued_bytes": 1_200,
    }
    desk.connections = [connection("tab-7", "42", topics=["news", "rooms/*"], topics_cut=True, behind=True, **facts)]
    page = connected(tabs.open(sse_server.url))
    page.get_by_role("button", name="Connections").click()
    expect(page.locator("#connection-list .who")).to_have_text(["tab-7"])
    expect(page.locator("#connection-list .note")).to_have_text(
        "@42 · news, rooms/*, … · connected 3 minutes ago · from 192.0.2.7 · by till · expires in 59 min · catching up"
        " · 1,200 bytes queued · on node 0123456789ab"
    )
    expect(page.locator("#connection-count")).to_have_text("1")
    expect(page.locator("#connection-note")).to_be_empty()


def test_a_list_that_is_not_whole_says_so(listed: Page, desk: Desk) -> None:
    desk.more, desk.partial = True, ["ba9876543210"]
    listed.get_by_role("button", name="Refresh").click()
    expect(listed.locator("#connection-count")).to_have_text("newest 2")
    expect(listed.locator("#connection-note")).to_have_text("1 node did not answer in time, so the list is incomplete.")
    desk.connections, desk.more, desk.partial = [], False, []
    listed.get_by_role("button", name="Refresh").click()
    expect(listed.locator("#connection-note")).to_have_text("Nobody.")


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("", {}),
        ("tab-7", {"client": ["tab-7"]}),
        ("@a&b", {"user": ["a&b"]}),
        ("tab-7@a@b", {"client": ["tab-7"], "user": ["a@b"]}),
    ],
)
def test_a_client_or_a_user_is_found_by_name(listed: Page, desk: Desk, text: str, query: dict[str, list[str]]) -> None:
    desk.connections = [connection("found")]
    listed.get_by_label("Client or @user").fill(text)
    listed.get_by_label("Client or @user").press("Enter")
    expect(listed.locator("#connection-list .who")).to_have_text(["found"])
    assert desk.asked[-1] == ("GET", "/connections", query)


@pytest.mark.parametrize(
    ("button", "path", "query"),
    [("Kick tab-7", "/connections/tab-7", {}), ("Kick user 42", "/connections", {"user": ["42"]})],
)
def test_a_client_or_all_of_a_user_is_kicked(
    listed: Page, desk: Desk, button: str, path: str, query: dict[str, list[str]]
) -> None:
    listed.get_by_role("button", name=button, exact=True).click()
    expect(listed.locator("#kicked")).to_have_text(f"1 connection of {button.split()[-1]} ended.")
    assert [("DELETE", path, query)] == [asked for asked in desk.asked if asked[0] == "DELETE"]
    expect(listed.get_by_role("button", name="Refresh")).to_be_focused()
    desk.partial = ["ba9876543210"]
    listed.get_by_label("keep out").select_option("10 minutes")
    listed.get_by_role("button", name=button, exact=True).click()
    expect(listed.locator("#kicked")).to_have_text(
        f"1 connection of {button.split()[-1]} ended, kept out for 10 min. 1 node did not answer in time, and will read"
        " of it within some seconds."
    )
    assert ("DELETE", path, {**query, "block": ["600"]}) in desk.asked


def test_a_client_that_has_gone_is_said_to_have(listed: Page, tabs: Tabs, desk: Desk) -> None:
    tabs.expected.append("status of 404")
    desk.problem = 404, "Nobody of that name is connected."
    listed.get_by_role("button", name="Kick tab-7", exact=True).click()
    expect(listed.locator("#connections-error")).to_have_text("Nobody of that name is connected.")
    expect(listed.locator("#kicked")).to_be_empty()
    desk.problem = None
    listed.get_by_role("button", name="Refresh").click()
    expect(listed.locator("#connections-error")).to_be_hidden()


def test_who_is_no_administrator_is_told_why_there_is_no_list(sse_server: HubServer, desk: Desk, tabs: Tabs) -> None:
    tabs.expected.append("status of 403")
    desk.problem = 403, "This credential is no administrator's."
    page = connected(tabs.open(sse_server.url))
    page.get_by_role("button", name="Connections").click()
    expect(page.locator("#connections-error")).to_have_text("This credential is no administrator's.")
    expect(page.locator("#connection-list li")).to_have_count(0)


def test_an_administrator_who_signs_in_has_the_list(desk: Desk, tab: Page) -> None:
    requests = requests_of(tab)
    expect(tab.get_by_role("button", name="Connections")).to_be_hidden()
    connected(sign_in(tab, ADMIN))
    expect(tab.locator("#connection-list li")).to_have_count(2)
    assert [found.headers["authorization"] for found in requests if PATH.search(found.url)] == [f"Bearer {ADMIN}"]
    tab.get_by_role("button", name="Sign out").click()
    expect(tab.locator("#connections")).to_be_hidden()
    assert "tab-7" not in tab.content()
    connected(sign_in(tab, READER))
    expect(tab.locator("#access-facts")).to_contain_text("nothing more")
    expect(tab.locator("#connections")).to_be_hidden()
    expect(tab.get_by_role("button", name="Connections")).to_be_hidden()
    assert len(desk.asked) == 1


def test_ones_own_connection_is_marked(desk: Desk, tab: Page) -> None:
    own = tab.evaluate("() => JSON.parse(sessionStorage.getItem('sse-app.client'))")
    desk.connections = [connection(own), connection("tab-7")]
    connected(sign_in(tab, ADMIN))
    expect(tab.locator("#connection-list .who")).to_have_text([f"{own}this tab", "tab-7"])


def test_whoever_reaches_an_open_server_on_this_machine_administers_it(tabs: Tabs) -> None:
    with live(create_app()) as server:
        page, other = connected(tabs.open(server.url)), connected(tabs.open(server.url))
        name = other.evaluate("() => JSON.parse(sessionStorage.getItem('sse-app.client'))")
        page.get_by_role("button", name="Connections").click()
        expect(page.locator("#connection-list li")).to_have_count(2)
        page.get_by_role("button", name=f"Kick {name}").click()
        expect(page.locator("#kicked")).to_have_text(f"1 connection of {name} ended.")
        expect(other.locator("#rows .system")).to_contain_text(["Welcome!", "An administrator has ended"])
        connected(other)
        page.close()
        other.close()


def test_a_user_is_kicked_and_kept_out(gated: Gated, tab: Page, tabs: Tabs) -> None:
    other = tabs.open(gated.url)
    connected(sign_in(other, READER))
    connected(sign_in(tab, ADMIN))
    expect(tab.locator("#connection-list .note").filter(has_text="@42 · news, rooms/*")).to_have_count(1)
    tab.get_by_label("keep out").select_option("1 hour")
    tab.get_by_role("button", name="Kick user 42").click()
    expect(tab.locator("#kicked")).to_have_text("1 connection of 42 ended, kept out for 1 h 0 min.")
    expect(tab.locator("#connection-list li")).to_have_count(1)
    expect(other.locator("#state")).to_contain_text("Sent away, next try in 59 min")
    requests = requests_of(other)
    other.get_by_role("button", name="Reconnect now").click()
    expect(other.locator("#state")).to_contain_text("Sent away, next try in")
    assert len(requests) == 1
    other.close()
