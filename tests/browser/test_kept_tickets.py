"""static/sse-app.js: which ticket it sends, and how long it keeps one."""

import pytest

from tests.browser.test_credentials import Door, Open, asked, open_tab, shared, site
from tests.browser.test_shared import end_streams, until_stopped

pytestmark = pytest.mark.browser
__all__ = ["open_tab", "shared", "site"]  # fixtures


def test_a_ticket_in_the_url_is_no_answer_to_who_asks_for_a_new_one(site: Door, open_tab: Open) -> None:
    """The worker had the ticket of another tab so far. The one in this tab's URL has been there as long."""
    first = open_tab("ticket", shared="worker")
    second = open_tab("ticket", url="/hub/events?ticket=old", shared="worker")
    del site.valid["good"]
    end_streams(site)
    second.wait_for_function("asked.length == 1")
    for page in (first, second):
        page.wait_for_function("states.length > 1 && stream.state.name == 'open'")
    assert (asked(first), asked(second)) == ([False], [True])
    assert site.requests == [("good", 200), ("good", 401), ("fresh", 200)]


def test_a_stream_that_has_stopped_asks_for_another_ticket(site: Door, shared: str, open_tab: Open) -> None:
    page = open_tab("ticket", "stale", "staler", shared=shared, wait=False)
    until_stopped(page)
    page.evaluate("window.secret = 'good'; stream.reconnect()")  # the user has logged in
    page.wait_for_function("stream.state.name == 'open'")
    assert site.requests == [("stale", 401), ("staler", 401), ("good", 200)]
    assert asked(page) == [False, True, False]
