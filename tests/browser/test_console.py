"""The live console in a real browser against a real hub."""

import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Locator, Page, Route, expect
from starlette.applications import Starlette
from starlette.routing import Mount

from sse_app import Hub, create_app
from sse_app.config import Config
from sse_app.pytest_plugin import HubServer
from sse_app.testing import live
from tests.browser.conftest import Tabs

pytestmark = pytest.mark.browser


@pytest.fixture
def tab(sse_server: HubServer, tabs: Tabs) -> Page:
    """A connected console."""
    return connected(tabs.open(sse_server.url))


def connected(page: Page) -> Page:
    expect(page.locator("#state")).to_have_text("Live")
    return page


def send(page: Page, body: str, *, topic: str = "", type: str = "", but_me: bool = False) -> None:
    fill(page, body, topic=topic, type=type, but_me=but_me)
    page.get_by_role("button", name="Send").click()


def fill(page: Page, body: str, *, topic: str = "", type: str = "", but_me: bool = False) -> None:
    form = page.locator("#broadcast")
    form.get_by_label("Topic").fill(topic)
    form.get_by_label("Type").fill(type)
    form.get_by_label("Message").fill(body)
    form.get_by_label("Everyone but me" if but_me else "Everyone", exact=True).check()


def row(page: Page, text: str) -> Locator:
    return page.locator("#rows .event").filter(has_text=text)


def test_two_tabs_see_each_others_broadcasts(sse_server: HubServer, tabs: Tabs) -> None:
    first, second = connected(tabs.open(sse_server.url)), connected(tabs.open(sse_server.url))
    for page in (first, second):
        expect(page.locator("#clients")).to_have_text("2")
    send(first, "from the first", topic="greetings/1", type="greeting")
    expect(row(second, "from the first")).to_have_count(1)
    send(second, "from the second")
    for page in (first, second):
        expect(row(page, "from the first")).to_contain_text("greeting")
        expect(row(page, "from the first").locator(".topic")).to_have_text("greetings/1")
        expect(row(page, "from the second")).to_have_count(1)
        expect(page.locator("#last-data")).to_have_text("from the second")
        expect(page.locator("#published")).to_have_text("2")
    expect(first.locator("#receipt")).to_have_text("Sent to 2 subscribers, kept in memory")
    expect(row(first, "from the first").locator(".own")).to_be_visible()
    expect(row(second, "from the first").locator(".own")).to_have_count(0)


def test_everyone_but_me(sse_server: HubServer, tabs: Tabs) -> None:
    me, other = connected(tabs.open(sse_server.url)), connected(tabs.open(sse_server.url))
    send(me, "not for me", but_me=True)
    expect(row(other, "not for me")).to_have_count(1)
    send(me, "for all")
    expect(row(me, "for all")).to_have_count(1)
    expect(row(me, "not for me")).to_have_count(0)


def test_duplicated_tab_takes_a_name_of_its_own(tab: Page) -> None:
    with tab.context.expect_page() as opened:
        tab.evaluate("() => void window.open(location.href)")  # the new tab gets a copy of the session storage
    other = opened.value
    name = tab.evaluate("() => sessionStorage.getItem('sse-app.client')")
    other.wait_for_function("name => sessionStorage.getItem('sse-app.client') !== name", arg=name)
    expect(other.locator("#rows .system").last).not_to_contain_text(name.strip('"'))
    connected(other)


def test_newcomer_is_told_what_to_do_next(tab: Page) -> None:
    expect(tab.locator("#empty")).to_contain_text("Nothing published yet")
    expect(tab.locator("#empty-curl")).to_contain_text("curl --data-raw 'hello'")
    with tab.context.expect_page() as opened:
        tab.get_by_role("link", name="Open a second tab").click()
    connected(opened.value)
    send(opened.value, "hello")
    expect(row(tab, "hello")).to_have_count(1)
    expect(tab.locator("#empty")).to_be_hidden()


def test_fresh_page_shows_the_newest_publications_as_replayed(sse_server: HubServer, tabs: Tabs) -> None:
    sse_server.hub.publish_threadsafe("before", event="note", topic="history")
    page = connected(tabs.open(sse_server.url))
    expect(row(page, "before").locator(".replayed")).to_have_text("replayed")
    expect(row(page, "before").locator(".topic")).to_have_text("history")
    sse_server.hub.publish_threadsafe("after", event="note")
    expect(row(page, "after")).to_have_count(1)
    expect(row(page, "after").locator(".replayed")).to_have_count(0)


def test_gap_row_after_a_resume_with_a_foreign_cursor(sse_server: HubServer, tabs: Tabs) -> None:
    sse_server.hub.publish_threadsafe("still there")
    page = connected(tabs.open(f"{sse_server.url}/?last_event_id=foreign-7"))
    gap = page.locator("#rows .gap")
    expect(gap).to_contain_text("messages may be missing here")
    expect(gap).to_contain_text("epoch")
    expect(gap).to_contain_text("foreign-7")
    expect(row(page, "still there").locator(".replayed")).to_be_visible()
    assert "last_event_id" not in page.url  # so that a reload does not resume there


def test_disconnect_and_connect_again_misses_nothing(sse_server: HubServer, tab: Page) -> None:
    tab.get_by_role("button", name="Disconnect").click()
    expect(tab.locator("#state")).to_have_text("Closed")
    sse_server.hub.publish_threadsafe("meanwhile")
    tab.get_by_role("button", name="Connect again").click()
    connected(tab)
    expect(row(tab, "meanwhile").locator(".replayed")).to_be_visible()
    expect(tab.locator("#rows .system").last).to_contain_text("caught up, nothing missed")


def test_json_is_pretty_and_folded(tab: Page) -> None:
    send(tab, '{"id": 12345678901234567890, "tags": ["a", {}], "text": "a \\" {b}"}')
    expect(tab.locator("#format")).to_have_text("JSON")
    details = row(tab, "tags").locator("details")
    expect(details.locator("summary")).to_have_text(
        '{"id": 12345678901234567890, "tags": ["a", {}], "text": "a \\" {b}"}'
    )
    expect(details.locator("pre")).to_have_count(0)
    row(tab, "tags").press("Enter")
    expect(details.locator("pre")).to_be_visible()
    pretty = '{\n  "id": 12345678901234567890,\n  "tags": [\n    "a",\n    {}\n  ],\n  "text": "a \\" {b}"\n}'
    assert details.locator("pre").text_content() == pretty


def test_text_is_shown_as_it_is(tab: Page) -> None:
    body = "two  lines\n<b>no markup</b> {not json"
    send(tab, body)
    expect(row(tab, "no markup")).to_have_count(1)
    assert row(tab, "no markup").locator(".data pre").text_content() == body


def test_text_that_looks_like_broken_json_is_pointed_out(tab: Page) -> None:
    fill(tab, '{"id": 1,}')
    expect(tab.locator("#format")).to_have_text("Text: not valid JSON")


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        ("it's $HOME `x` \\ !\nline two", "text/plain"),
        ('{"it\'s": 1}', "application/json"),
        ("@file", "text/plain"),
    ],
)
def test_curl_command_is_the_same_request(sse_server: HubServer, tab: Page, body: str, content_type: str) -> None:
    fill(tab, body, topic="a b/c&d", type="x'y")
    command = tab.locator("#curl").text_content()
    printed = subprocess.run(
        ["sh", "-c", f"curl() {{ printf '%s\\0' \"$@\"; }}\n{command}"], capture_output=True, text=True, check=True
    ).stdout.split("\0")[:-1]
    url = f"{sse_server.url}/broadcast?topic=a+b/c%26d&event=x%27y"
    assert printed == ["--data-raw", body, "-H", f"Content-Type: {content_type}", url]


def test_curl_command_can_be_copied(sse_server: HubServer, tab: Page) -> None:
    tab.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=sse_server.url)
    fill(tab, "copied")
    tab.evaluate("() => { window.setTimeout = () => 0; }")  # keeps the text, which is shown for a moment only
    tab.locator("[data-copy=curl]").click()
    expect(tab.locator("[data-copy=curl]")).to_have_text("Copied")
    assert tab.evaluate("() => navigator.clipboard.readText()") == tab.locator("#curl").text_content()


def test_refusal_is_shown_beside_the_form(tab: Page, tabs: Tabs) -> None:
    tabs.expected.append("status of 400")
    send(tab, "hello", type="welcome")
    expect(tab.get_by_role("alert").filter(visible=True)).to_have_text(re.compile("hub's own"))
    send(tab, "hello", type="greeting")
    expect(row(tab, "greeting")).to_have_count(1)
    expect(tab.get_by_role("alert").filter(visible=True)).to_have_count(0)


def test_publish_key_is_asked_for_and_never_shown(tabs: Tabs) -> None:
    key = "a-secret-key-for-this-test"
    tabs.expected.append("status of 401")
    with live(create_app(Config(publish_key=key))) as server:
        page = connected(tabs.open(server.url))
        send(page, "guarded")
        expect(page.get_by_label("Publish key")).to_be_focused()
        page.get_by_label("Publish key").fill(key)
        page.get_by_label("Publish key").press("Control+Enter")
        expect(row(page, "guarded")).to_have_count(1)
        expect(page.locator("#curl")).to_contain_text('-H "Authorization: Bearer $SSE_APP_PUBLISH_KEY"')
        assert key not in page.content()
        assert key not in str(page.evaluate("() => ({...localStorage})"))
        page.close()


def test_topic_filter_subscribes_anew(sse_server: HubServer, tab: Page) -> None:
    tab.locator("#subscription").get_by_label("Topics").fill("orders/*, prices/**")
    tab.get_by_role("button", name="Subscribe").click()
    expect(tab.locator("#rows .system").last).to_contain_text("listening to orders/*, prices/**")
    expect(tab.locator("#listeners")).to_contain_text("orders/* prices/**")
    publish = sse_server.hub.publish_threadsafe
    publish("other topic", topic="chat")
    publish("an order", topic="orders/1")
    publish("a price", topic="prices/eur/usd")
    expect(row(tab, "a price")).to_have_count(1)
    expect(row(tab, "an order")).to_have_count(1)
    expect(row(tab, "other topic")).to_have_count(0)
    tab.reload()
    expect(tab.locator("#topics")).to_have_value("orders/* prices/**")


def test_wrong_topic_filter_is_explained_and_can_be_corrected(tab: Page, tabs: Tabs) -> None:
    tabs.expected.append("status of 400")
    tab.locator("#topics").fill("**/a")
    tab.locator("#topics").press("Enter")
    expect(tab.locator("#topics-error")).to_contain_text("topic filter")
    expect(tab.locator("#state")).to_have_text("Refused")
    tab.locator("#topics").fill("a/**")
    tab.locator("#topics").press("Enter")
    connected(tab)
    expect(tab.locator("#topics-error")).to_be_hidden()


def test_events_of_an_unknown_type_take_their_place_in_the_log(sse_server: HubServer, tab: Page) -> None:
    publish = sse_server.hub.publish_threadsafe
    publish("one")
    publish("two", event="never.seen")  # of a type that the page does not know
    publish("three")
    expect(tab.locator("#rows .event .data")).to_have_text(["one", "two", "three"])
    publish("four", event="never.seen")
    expect(tab.locator("#rows .event .data")).to_have_text(["one", "two", "three", "four"])
    expect(row(tab, "four").locator(".replayed")).to_have_count(0)


def test_events_of_a_type_that_nobody_has_named_arrive(sse_server: HubServer, tab: Page) -> None:
    client = tab.evaluate("() => JSON.parse(sessionStorage.getItem('sse-app.client'))")
    sse_server.hub.publish_threadsafe("private", event="mine", to=client)  # not in the statistics
    expect(row(tab, "private").locator(".type")).to_have_text("mine")


def test_log_is_bounded_and_follows_its_end_until_the_reader_scrolls(sse_server: HubServer, tab: Page) -> None:
    for number in range(520):
        sse_server.hub.publish_threadsafe(
            f"event {number}."
        )  # the text of a row ends with its id, which may begin with 9
    expect(row(tab, "event 519.")).to_be_in_viewport()
    expect(tab.locator("#rows > .row")).to_have_count(500)
    tab.locator("#rows").evaluate("list => { list.scrollTop = 0; }")
    # The browser fires the scroll event before it draws the next frame.
    tab.locator("#rows").evaluate("() => new Promise(done => requestAnimationFrame(() => setTimeout(done)))")
    sse_server.hub.publish_threadsafe("unread")
    expect(tab.locator("#jump")).to_have_text("↓ 1 new")
    expect(row(tab, "unread")).not_to_be_in_viewport()
    tab.locator("#jump").click()
    expect(row(tab, "unread")).to_be_in_viewport()
    expect(tab.locator("#jump")).to_be_hidden()


def test_log_is_one_tab_stop_with_arrow_keys_inside(sse_server: HubServer, tab: Page) -> None:
    for number in range(30):
        sse_server.hub.publish_threadsafe(f'{{"number": {number}}}')
    expect(row(tab, '"number": 29}')).to_be_visible()
    tab.get_by_role("button", name="Clear").focus()
    tab.keyboard.press("Tab")
    expect(row(tab, '"number": 29}')).to_be_focused()
    tab.keyboard.press("ArrowUp")
    expect(row(tab, '"number": 28}')).to_be_focused()
    tab.keyboard.press("Enter")
    expect(row(tab, '"number": 28}')).to_have_attribute("aria-expanded", "true")
    expect(row(tab, '"number": 28}').locator("details pre")).to_be_visible()
    tab.keyboard.press("Space")
    expect(row(tab, '"number": 28}')).to_have_attribute("aria-expanded", "false")
    tab.keyboard.press("Home")
    expect(tab.locator("#rows .row").first).to_be_focused()
    expect(tab.locator("#rows .row").first).to_be_in_viewport()
    tab.keyboard.press("ArrowDown")
    expect(row(tab, '"number": 0}')).to_be_focused()
    sse_server.hub.publish_threadsafe("unread")
    expect(tab.locator("#jump")).to_have_text("↓ 1 new")
    expect(row(tab, '"number": 0}')).to_be_focused()
    tab.keyboard.press("End")
    expect(row(tab, "unread")).to_be_focused()
    expect(tab.locator("#jump")).to_be_hidden()
    tab.keyboard.press("Tab")  # leaves the log at once, however many rows it has
    expect(tab.get_by_label("Topic", exact=True)).to_be_focused()


def test_message_box_is_near_for_the_keyboard(sse_server: HubServer, tab: Page) -> None:
    tab.keyboard.press("Tab")
    tab.keyboard.press("Tab")
    expect(tab.get_by_role("link", name="Skip to the message")).to_be_focused()
    tab.keyboard.press("Enter")
    expect(tab.get_by_label("Message")).to_be_focused()


def test_gap_that_was_not_seen_has_a_badge_that_leads_to_it(sse_server: HubServer, tabs: Tabs) -> None:
    for number in range(60):
        sse_server.hub.publish_threadsafe(f"event {number}.")
    page = connected(tabs.open(f"{sse_server.url}/?last_event_id=foreign-7"))
    gap = page.locator("#rows .gap")
    expect(gap).not_to_be_in_viewport()
    expect(page.locator("#jump-gap")).to_have_text("↑ Gap not seen yet")
    page.locator("#jump-gap").click()
    expect(gap).to_be_in_viewport()
    expect(gap).to_be_focused()
    expect(page.locator("#jump-gap")).to_be_hidden()
    sse_server.hub.publish_threadsafe("it stays")
    expect(page.locator("#jump")).to_have_text("↓ 1 new")
    expect(gap).to_be_in_viewport()


def test_gap_is_shown_whatever_the_log_is_filtered_by(sse_server: HubServer, tabs: Tabs) -> None:
    page = connected(tabs.open(f"{sse_server.url}/?last_event_id=foreign-7"))
    page.get_by_label("Filter the log").fill("no such text")
    expect(page.locator("#rows .gap")).to_be_visible()


def test_data_has_the_room(sse_server: HubServer, tab: Page) -> None:
    sse_server.hub.publish_threadsafe("x" * 200, event="order.created", topic="orders/42")
    expect(row(tab, "xxx")).to_be_visible()
    widths = row(tab, "xxx").locator(".cell").evaluate_all("cells => cells.map(cell => cell.offsetWidth)")
    assert widths[3] > 400


def test_last_message_is_none_when_the_log_is_empty(tabs: Tabs) -> None:
    with live(create_app()) as server:
        page = connected(tabs.open(server.url))
        send(page, "soon gone")
        expect(page.locator("#last-data")).to_have_text("soon gone")

        def emptied(route: Route) -> None:
            answer = route.fetch()
            stats = answer.json()
            epoch, _, offset = stats["top"].partition("-")
            route.fulfill(response=answer, json={**stats, "last": None, "oldest": f"{epoch}-{int(offset) + 1}"})

        page.route("**/stats", emptied)
        expect(page.locator("#facts")).to_contain_text("log empty")
        expect(page.locator("#last-data")).to_have_text("The log is empty")
        page.unroute_all(behavior="ignoreErrors")
        page.close()


def test_log_can_be_filtered_paused_and_cleared(sse_server: HubServer, tab: Page) -> None:
    publish = sse_server.hub.publish_threadsafe
    publish("apples", topic="fruit/1")
    publish("pears", topic="fruit/2")
    expect(row(tab, "pears")).to_be_visible()
    tab.get_by_label("Filter the log").fill("APPLE")
    expect(row(tab, "apples")).to_be_visible()
    expect(row(tab, "pears")).to_be_hidden()
    expect(tab.locator("#log-count")).to_have_text("1 of 2")
    tab.get_by_label("Filter the log").fill("fruit/2")
    expect(row(tab, "pears")).to_be_visible()
    tab.get_by_label("Filter the log").fill("")
    tab.get_by_role("button", name="Pause").click()
    publish("plums")
    expect(tab.locator("#pause")).to_have_text("Resume (1 new)")
    expect(row(tab, "plums")).to_have_count(0)
    tab.locator("#pause").click()
    expect(row(tab, "plums")).to_be_visible()
    tab.get_by_role("button", name="Clear").click()
    expect(tab.locator("#rows > .row")).to_have_count(0)


def test_latency_is_measured_with_pings_that_stay_out_of_the_log(sse_server: HubServer, tabs: Tabs) -> None:
    me, other = connected(tabs.open(sse_server.url)), connected(tabs.open(sse_server.url))
    me.get_by_role("button", name="Measure").click()
    expect(me.locator("#latency-note")).to_contain_text("20 echoes")
    expect(me.locator("#p50")).to_have_text(re.compile(r"^[\d.]+ m?s$"))
    expect(me.get_by_role("img", name="Bar chart of the last 20 echoes: median")).to_be_visible()
    send(me, "after the pings")
    for page in (me, other):
        expect(row(page, "after the pings")).to_have_count(1)
        expect(page.locator("#rows .event")).to_have_count(1)
    expect(me.locator("#latency-note")).to_contain_text("21 echoes")


def test_control_enter_sends(tab: Page) -> None:
    tab.get_by_label("Message").fill("by keyboard")
    tab.get_by_label("Message").press("Control+Enter")
    expect(row(tab, "by keyboard")).to_have_count(1)


def test_console_works_below_a_prefix(tabs: Tabs) -> None:
    hub = Hub()
    with live(Starlette(routes=[Mount("/hub", hub.app)], lifespan=hub.lifespan)) as server:
        page = connected(tabs.open(f"{server.url}/hub/"))
        send(page, "below a prefix")
        expect(row(page, "below a prefix")).to_have_count(1)
        expect(page.locator("#curl")).to_contain_text(f"{server.url}/hub/broadcast")
        page.close()


@contextmanager
def serve(port: int, *flags: str) -> Iterator[tuple[int, Callable[[int], None]]]:
    """`sse-app serve` as a process of its own: its port, and a function that ends it with a signal."""
    command = [sys.executable, "-m", "sse_app", "serve", "--port", str(port), *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        listening = next(found for line in process.stdout if (found := re.search(r"listening on \S+:(\d+)", line)))

        def end(number: int) -> None:
            process.send_signal(number)
            process.communicate()

        try:
            yield int(listening[1]), end
        finally:
            process.kill()


# The console waits with its next attempt until the test lets it, however long the server takes to start.
NOT_BY_ITSELF = """() => {
    const real = setTimeout;
    window.setTimeout = (work, ms) => ms < 1_000 ? real(work, ms) : 0;
}"""


@pytest.mark.parametrize(
    ("end", "states"),
    [
        (signal.SIGKILL, r"Reconnecting( in \d s|…)"),
        (signal.SIGTERM, r"Server draining(, back in \d s)?|Reconnecting( in \d s|…)"),
    ],
    ids=["killed", "drained"],
)
def test_server_restarted_under_a_tab(tabs: Tabs, end: signal.Signals, states: str) -> None:
    tabs.expected.append("net::ERR_")  # Chromium logs a refused connection, too
    with serve(0) as (port, stop):
        page = connected(tabs.open(f"http://127.0.0.1:{port}"))
        send(page, "before")
        expect(row(page, "before")).to_have_count(1)
        page.evaluate(NOT_BY_ITSELF)
        stop(end)
        expect(page.locator("#state")).to_have_text(re.compile(states))
        expect(page.locator("#rows").get_by_text("Bye!")).to_have_count(1 if end == signal.SIGTERM else 0)
    with serve(port):
        page.get_by_role("button", name="Reconnect now").click()
        connected(page)
        expect(page.locator("#rows .gap")).to_contain_text("The log has started anew")
        send(page, "after")
        expect(row(page, "after")).to_have_count(1)
        page.close()


def test_browser_reconnects_by_itself(tabs: Tabs) -> None:
    tabs.expected.append("net::ERR_")
    soon = ("--retry-min", "0.1", "--retry-max", "0.2")  # the wait doubles with each attempt that fails
    with serve(0, *soon) as (port, stop):
        page = connected(tabs.open(f"http://127.0.0.1:{port}"))
        stop(signal.SIGKILL)
        expect(page.locator("#state")).to_have_text(re.compile("Reconnecting"))
    with serve(port):
        connected(page)
        page.close()


def test_every_control_has_a_name_and_the_page_its_landmarks(tab: Page) -> None:
    nameless = tab.evaluate(
        """() => [...document.querySelectorAll("input, textarea, select, button, summary, [tabindex]")]
          .filter(node => node.checkVisibility() && !(node.labels?.length || node.getAttribute("aria-label")
            || node.textContent.trim() || document.getElementById(node.getAttribute("aria-labelledby"))?.textContent))
          .map(node => node.outerHTML)"""
    )
    assert nameless == []
    doubled = tab.evaluate(
        "() => [...document.querySelectorAll('[id]')].map(n => n.id).filter((id, i, all) => all.indexOf(id) !== i)"
    )
    assert doubled == []
    for landmark in ("banner", "main", "contentinfo", "complementary", "navigation"):
        expect(tab.get_by_role(landmark)).to_have_count(1)
    expect(tab.get_by_role("heading", level=1)).to_have_count(1)
    expect(tab.get_by_role("status").first).to_have_text("Live")  # announced once, not with every event


@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (360, "dark"), (1000, "light"), (1920, "dark")])
def test_nothing_is_wider_than_the_window(sse_server: HubServer, tabs: Tabs, width: int, scheme: str) -> None:
    sse_server.hub.publish_threadsafe("x" * 300, event="y" * 120, topic="z" * 200)
    page = tabs.context.new_page()
    page.set_viewport_size({"width": width, "height": 740})
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light", reduced_motion="reduce")
    page.goto(f"{sse_server.url}/?last_event_id=foreign-7")
    connected(page)
    expect(row(page, "xxx")).to_have_count(1)
    page.locator("#topics").fill("*/")
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width
