"""The app and the page of docs/auth.md: an EventSource with a ticket, which loses nothing and ends with a logout."""

import re
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from playwright.sync_api import expect

from sse_app import Hub
from sse_app.testing import live
from tests.browser.conftest import Tabs
from tests.support.peers import PATIENCE

pytestmark = pytest.mark.browser

DOCS = (Path(__file__).parent.parent.parent / "docs" / "auth.md").read_text()
QUICKLY = {  # in place of waits of 2 to 5 s
    "Hub(authorize=who)": "Hub(authorize=who, retry_min=0.02, retry_max=0.02)",
    "2000 + Math.random() * 3000": "20",
}


def shown(language: str, begin: str) -> str:
    """The block of the page that begins so, with shorter waits."""
    found = re.search(rf"^```{language}\n({re.escape(begin)}.*?)^```$", DOCS, re.MULTILINE | re.DOTALL)
    assert found is not None
    [wait] = [wait for wait in QUICKLY if wait in found[1]]
    return found[1].replace(wait, QUICKLY[wait])


def test_the_page_goes_on_with_a_new_ticket_and_stops_when_its_user_logs_out(tabs: Tabs) -> None:
    names: dict[str, Any] = {"__name__": "app"}
    exec(shown("python", "# app.py"), names)
    hub: Hub = names["hub"]
    app: FastAPI = names["app"]
    page = tabs.context.new_page()
    tabs.expected += ["401"]
    page.route("**/page", lambda route: route.fulfill(body=shown("html", "<!doctype html>"), content_type="text/html"))
    tickets: list[str] = []
    page.on("request", lambda request: tickets.append(request.url) if request.url.endswith("/my/ticket") else None)
    state, orders = page.locator("#state"), page.locator("#orders li")

    with live(app) as server:
        page.request.post(f"{server.url}/login/ann")
        page.goto(f"{server.url}/page")
        expect(state).to_have_text("open")
        page.request.post(f"{server.url}/orders/ann/1")
        page.request.post(f"{server.url}/orders/bob/1")
        expect(orders).to_have_text(["order 1"])

        hub.node.life.run_from_thread(lambda: hub.revoke(user="ann"), PATIENCE)
        page.request.post(f"{server.url}/orders/ann/2")
        expect(orders).to_have_text(["order 1", "order 2"])
        assert len(tickets) == 2

        page.request.post(f"{server.url}/logout")
        expect(state).to_have_text("Please log in.")
        assert len(tickets) == 3
