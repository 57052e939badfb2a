"""The console through a proxy that the docs show, under a public name without TLS: nothing but Host and Origin tells
the hub whose page it is, since browsers send Sec-Fetch-Site to trustworthy origins alone.
"""

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import NAME, Tabs
from tests.browser.test_console import connected, row, send
from tests.support.proxies import documented
from tests.support.web import live_hub
from tests.test_docs import CHECKOUT, blocks

pytestmark = pytest.mark.browser

SHOWN = {block.language: block for block in blocks(CHECKOUT / "docs" / "doctor.md")}


@pytest.mark.parametrize("language", ["nginx", "caddy"])
def test_the_console_is_live_through_a_proxy_of_the_docs(language: str, tabs: Tabs) -> None:
    with live_hub(allowed_hosts=(NAME,)) as hub, documented(language, SHOWN[language].text, [hub.port]) as url:
        page = connected(tabs.open(url.replace("127.0.0.1", NAME)))
        send(page, "through the proxy", topic="orders/42")
        expect(row(page, "through the proxy")).to_have_count(1)
        expect(page.locator("#receipt")).to_have_text("Sent to 1 subscriber, kept in memory")
        page.close()
