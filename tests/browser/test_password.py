"""A page that a proxy guards with a password, opened as ``http://user:password@host/``: its own URL is then one that
fetch, and with it every relative URL, refuses.
"""

from base64 import b64encode
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from sse_app import create_app
from sse_app.testing import live
from tests.browser.conftest import Tabs
from tests.browser.test_console import connected, row, send
from tests.browser.test_shared import ids, listen

pytestmark = pytest.mark.browser

USER, PASSWORD = "user", "the-password"


def guarded(app: ASGIApp) -> ASGIApp:
    """An app behind basic authentication, as a proxy adds it."""
    needed = b"Basic " + b64encode(f"{USER}:{PASSWORD}".encode())
    who = Response("Who?", 401, {"WWW-Authenticate": 'Basic realm="the hub"'})

    async def proxy(scope: Scope, receive: Receive, send: Send) -> None:
        known = scope["type"] != "http" or dict(scope["headers"]).get(b"authorization") == needed
        await (app if known else who)(scope, receive, send)

    return proxy


@pytest.fixture
def page(tabs: Tabs) -> Iterator[Page]:
    tabs.expected.append("status of 401")  # to the first request, which browsers send without the password
    with live(guarded(create_app())) as server:
        page = tabs.open(server.url.replace("://", f"://{USER}:{PASSWORD}@"))
        assert PASSWORD in page.evaluate("document.baseURI")
        yield page
        page.close()


def test_the_console_listens_publishes_and_counts(page: Page) -> None:
    connected(page)
    send(page, "behind a password", topic="orders/1")
    expect(row(page, "behind a password").locator(".topic")).to_have_text("orders/1")
    expect(page.locator("#published")).to_have_text("1")
    page.locator("#topics").fill("orders/*")
    page.get_by_role("button", name="Subscribe").click()
    expect(page.locator("#rows .system").last).to_contain_text("listening to orders/*")
    assert "topic=orders" in page.url


def test_the_console_does_not_show_the_password(page: Page) -> None:
    connected(page)
    expect(page.locator("#curl")).to_contain_text("/broadcast")
    assert PASSWORD not in (page.locator("body").text_content() or "")


@pytest.mark.parametrize("shared", ["worker", "locks", "none"])
def test_a_page_of_its_own_listens(page: Page, shared: str) -> None:
    listen(page, "events", module="/static/sse-app.js", shared=shared)
    # Waiting in the page itself would take what the console's policy forbids: eval.
    page.evaluate("stream.state.name == 'open' || new Promise(open => stream.onopen = () => open())")
    assert page.evaluate("stream.shared") == shared
    broadcast = "fetch(stream.url.replace('events', 'broadcast'), {method: 'POST', body: 'x'})"
    published = page.evaluate(f"{broadcast}.then(answer => answer.json())")["id"]
    assert ids(page, published) == [published]
