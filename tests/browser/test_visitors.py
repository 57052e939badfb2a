"""A hub that takes a visitor's cookie, under a real browser: what its own pages, pages of origins that it allows, and
all others do with it. Cookies know no ports: the other pages here are of another origin, but get the cookie all the
same.
"""

import time
from collections.abc import Iterator
from typing import Any

import jwt
import pytest
from playwright.sync_api import Browser, Page
from starlette.applications import Starlette

from sse_app import create_app
from sse_app.config import Config
from sse_app.testing import live
from tests.browser.test_eventsource import (
    ATTEMPTS,
    FETCH,
    QUICK,
    WATCH,
    Front,
    page_of_its_own,
    seen,
    seen_messages,
    watch,
)

pytestmark = pytest.mark.browser

SECRET = "a secret of 32 bytes and a little more"
WATCH_AS_VISITOR = WATCH.replace("EventSource(url)", "EventSource(url, {withCredentials: true})")


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A tab of a visitor who has signed in. Its console may have errors: the hub refuses requests here."""
    claims = {"sub": "ann", "exp": time.time() + 600, "sse": {"subscribe": ["**"], "publish": ["**"]}}
    context = browser.new_context()
    session = jwt.encode(claims, SECRET, "HS256")
    context.add_cookies([{"name": "session", "value": session, "domain": "127.0.0.1", "path": "/"}])
    yield context.new_page()
    context.close()


def hub(*origins: str) -> Starlette:
    """The app of a hub with pages of these origins, which may send cookies."""
    quick: dict[str, Any] = {"retry_min": QUICK, "retry_max": 2 * QUICK}
    cors: dict[str, Any] = {"cors_origins": origins, "cors_credentials": True} if origins else {}
    return create_app(Config(token_secret=SECRET, auth_cookies=("session",), **quick, **cors))


def test_only_a_page_of_the_hub_publishes_as_its_visitor(page: Page) -> None:
    app = hub()
    front = Front(app)
    with page_of_its_own() as origin, live(front) as server:
        broadcast = server.url + "/broadcast"
        page.goto(origin)
        for script, type, outcome in ATTEMPTS:
            assert page.evaluate(script, [broadcast, type]) == outcome
        assert {status for _, status in front.answered} == {403}
        assert app.state.hub.node.totals.published == 0
        page.goto(server.url + "/healthz")
        assert page.evaluate(FETCH, [broadcast, "application/json"]) == "sent"
        assert front.answered[-1] == ("POST", 200)
        assert app.state.hub.node.totals.published == 1


def test_only_a_page_of_the_hub_listens_as_its_visitor(page: Page) -> None:
    app = hub()
    front = Front(app)
    with page_of_its_own() as origin, live(front) as server:
        page.goto(origin)
        for script in (WATCH, WATCH_AS_VISITOR):
            page.evaluate(script, server.url + "/events")
            page.wait_for_function("source.readyState == 2")
        assert front.answered == [("GET", 403)] * 2
        watch(page, server.url + "/events")
        assert '"user":"ann"' in seen(page, 1)[0][1]


def test_a_page_of_an_allowed_origin_listens_as_its_visitor_and_comes_back_twenty_times(page: Page) -> None:
    with page_of_its_own() as origin:
        app = hub(origin)
        front = Front(app, ending=True)
        with live(front) as server:
            page.goto(origin)
            page.evaluate(WATCH, server.url + "/events")  # without its cookies
            page.wait_for_function("source.readyState == 2")
            assert front.answered == [("GET", 401)]
            page.evaluate(WATCH_AS_VISITOR, server.url + "/events")
            assert '"user":"ann"' in seen(page, 1)[0][1]
            ids = list[str]()
            for number in range(1, 21):
                ids.append(app.state.hub.publish_threadsafe(str(number)).id)
                assert seen_messages(page, number) == ids
            page.wait_for_function("seen.errors == 20 && source.readyState == 1")
            assert front.answered[1:] == [("GET", 200)] * 21
            assert page.evaluate(FETCH, [server.url + "/broadcast", "application/json"]) == "sent"
            posting = [answer for answer in front.answered if answer[0] != "GET"]  # which ends the stream once more
            assert posting == [("OPTIONS", 200), ("POST", 200)]
