"""A native EventSource whose cookie holds a token: it goes on as long as the cookie counts, and then ends, once."""

import json
import time

import jwt
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from sse_app import Hub
from sse_app.testing import live
from tests.browser.conftest import Tabs
from tests.support.peers import PATIENCE

pytestmark = pytest.mark.browser

SECRET = "a secret of 32 bytes and a little more"
WATCH = """() => {
    window.seen = [];
    window.source = new EventSource("/hub/events");
    for (const type of ["welcome", "message", "bye"])
        source.addEventListener(type, event => seen.push([type, event.data]));
}"""
COUNT = "([type, count]) => seen.filter(([seen]) => seen === type).length >= count"


def token() -> str:
    return jwt.encode({"sub": "ann", "exp": time.time() + 600, "sse": {"subscribe": ["news/*"]}}, SECRET, "HS256")


def test_an_event_source_goes_on_with_a_cookie_that_is_renewed_and_is_refused_once_without(tabs: Tabs) -> None:
    hub = Hub(token_secret=SECRET, auth_cookies=("token",), auth_max_age=1, retry_min=0.02, retry_max=0.02)
    tabs.expected += ["401"]
    page = tabs.context.new_page()
    page.route("**/page", lambda route: route.fulfill(body="<!doctype html><title>page</title>"))

    def set_cookie(url: str, value: str) -> None:
        tabs.context.add_cookies(
            [{"name": "token", "value": value, "url": url, "httpOnly": True, "sameSite": "Strict"}]
        )

    def wait_for(count: int, kind: str) -> None:
        page.wait_for_function(COUNT, arg=[kind, count], timeout=PATIENCE * 1_000)

    with live(Starlette(routes=[Mount("/hub", hub.app)], lifespan=hub.lifespan)) as server:
        set_cookie(server.url, token())
        page.goto(f"{server.url}/page")
        page.evaluate(WATCH)
        wait_for(1, "welcome")
        set_cookie(server.url, token())
        wait_for(1, "bye")
        hub.publish_threadsafe("between", topic="news/1")
        wait_for(2, "bye")
        set_cookie(server.url, "of yesterday")
        page.wait_for_function("() => source.readyState === 2", timeout=PATIENCE * 1_000)
        seen = page.evaluate("() => seen")
    assert {json.loads(data)["reason"] for kind, data in seen if kind == "bye"} == {"expired"}
    assert [data for kind, data in seen if kind == "message"] == ["between"]
    assert hub.node.totals.auth == {"ok": len([kind for kind, _ in seen if kind == "welcome"]), "invalid": 1}
