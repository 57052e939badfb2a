"""A console whose scripts do not run says so, and names the cause to look for."""

from collections.abc import Callable

import pytest
from playwright.sync_api import Route, expect

from sse_app.pytest_plugin import HubServer
from tests.browser.conftest import Tabs
from tests.browser.test_console import connected

pytestmark = pytest.mark.browser


def refused(route: Route) -> None:
    """Refuse a request as a hub does behind a proxy that removes the port from the Host."""
    route.fulfill(status=403, json={"code": "bad_origin"})


def missing(route: Route) -> None:
    route.fulfill(status=404)


def broken(route: Route) -> None:
    route.fulfill(body="throw new Error('broken');", content_type="text/javascript")


def unanswered(route: Route) -> None:
    """Answer nothing as long as the page is open."""


@pytest.mark.parametrize(
    ("script", "fault"),  # the page's own script, and those that it imports
    [("app.js", refused), ("log.js", refused), ("sse-app.js", missing), ("row.js", broken), ("app.js", unanswered)],
)
def test_a_script_that_does_not_run_is_told_with_what_to_look_at(
    sse_server: HubServer, tabs: Tabs, script: str, fault: Callable[[Route], None]
) -> None:
    tabs.expected.append("status of 40[34]|broken|MIME type|does not provide an export")
    page = tabs.context.new_page()
    page.route(f"**/static/{script}", fault)
    page.goto(sse_server.url, wait_until="commit")
    notice = page.get_by_role("alert")
    expect(notice).to_contain_text("scripts have not started")
    expect(notice).to_contain_text("proxy_set_header Host $http_host;")
    expect(page.get_by_role("button")).to_have_count(0)  # no button, since none would work
    expect(page.get_by_text("Nothing published yet").filter(visible=True)).to_have_count(0)
    page.close()


def test_a_script_that_comes_late_still_starts(sse_server: HubServer, tabs: Tabs) -> None:
    page = tabs.context.new_page()
    held: list[Route] = []
    page.route("**/static/app.js", lambda route: held.append(route))
    page.goto(sse_server.url, wait_until="commit")
    expect(page.get_by_role("alert")).to_contain_text("scripts have not started")
    held.pop().continue_()
    connected(page)
    expect(page.locator("#not-started")).to_have_count(0)
    page.close()
