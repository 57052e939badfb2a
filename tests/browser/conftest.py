"""A real Chromium, and tabs whose console must stay empty of errors."""

import os
import re
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page

NAME = "events.example.com"  # resolves to this machine; unlike localhost no origin that browsers trust without TLS
ARGUMENTS = ["--no-sandbox", "--headless", "--disable-gpu", "--disable-background-networking"]
ARGUMENTS.append(f"--host-resolver-rules=MAP {NAME} 127.0.0.1")


# For one module: Playwright's event loop would otherwise be in the way of the async tests that follow.
@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """Debian's Chromium; without it tests are skipped, which in CI is a failure."""
    executable = shutil.which("chromium")
    if executable is None:
        reason = "No chromium on the PATH: the console is NOT TESTED. On Debian: apt-get install chromium"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=20_000)  # ms; enough for a busy machine
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=ARGUMENTS)
        yield browser
        browser.close()


class Tabs:
    """Tabs of one browser profile. An error in a tab's console, which includes every violation of the content security
    policy, fails the test at its end, unless it matches one of ``expected``.
    """

    def __init__(self, context: "BrowserContext") -> None:
        self.context = context
        self.expected: list[str] = []  # regular expressions
        self._complaints: list[str] = []
        context.on("console", self._console)
        context.on("weberror", lambda error: self._complaints.append(str(error.error)))

    def open(self, url: str) -> "Page":
        page = self.context.new_page()
        page.goto(url)
        return page

    def _console(self, message: "ConsoleMessage") -> None:
        if message.type in ("error", "warning"):
            self._complaints.append(message.text)

    @property
    def complaints(self) -> list[str]:
        return [text for text in self._complaints if not any(re.search(known, text) for known in self.expected)]


@pytest.fixture
def tabs(browser: "Browser") -> Iterator[Tabs]:
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    tabs = Tabs(context)
    yield tabs
    context.close()
    assert tabs.complaints == []
