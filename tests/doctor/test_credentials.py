"""The doctor on hubs that ask who their callers are, behind proxies that lose what says so."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.types import Message, Scope

from sse_app import Config
from sse_app.auth.signing import sign
from sse_app.doctor import Verdict, answers, delivery, examine
from sse_app.doctor.visit import Visit
from sse_app.errors import NotChecked
from sse_app.testing import live
from tests.doctor.conftest import ORIGIN
from tests.doctor.test_hub import Pass, behind, by_check, checked
from tests.support.peers import PATIENCE
from tests.support.proxies import documented, nginx
from tests.support.web import LiveHub, live_hub

SECRET = "s3cret-of-64-bytes-" + "x" * 45
OWN = ["sse-app/doctor/**"]
ENOUGH: dict[str, Any] = {"publish": OWN, "subscribe": OWN, "client": "doctor-*", "stats": "all"}
PASS = "proxy_pass {url}/; proxy_set_header Host $http_host;"


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise the doctor's limits of time: a busy machine is no slow proxy."""
    for module in (answers, delivery):
        monkeypatch.setattr(module, "ARRIVAL_SECONDS", PATIENCE)


@pytest.fixture(scope="module")
def hub() -> Iterator[LiveHub]:
    with live_hub(token_secret=SECRET, cors_origins=(ORIGIN,)) as hub:
        yield hub


async def token(user: str | None = None, **granted: Any) -> str:
    return (await sign(Config(token_secret=SECRET), granted or ENOUGH, user=user, lifetime=600)).token


async def test_a_hub_that_asks_for_a_token_is_examined_as_any_other(hub: LiveHub) -> None:
    findings = by_check(await examine(hub.url, token=await token(), origin=ORIGIN))
    left = {check: finding.verdict for check, finding in findings.items() if finding.verdict != Verdict.OK}
    assert left == {"http": Verdict.WARNING, "idle": Verdict.NOT_CHECKED}


@pytest.mark.parametrize(
    ("user", "client", "to"),
    [
        (None, "doctor-*", r"doctor-[0-9a-f]{16}"),
        (None, "till-*", r"till-[0-9a-f]{12}"),
        ("42", "till-3", "till-3"),
        ("42", None, r"doctor-[0-9a-f]{16}@42"),
        (None, None, ""),
    ],
)
async def test_it_publishes_to_itself_by_a_name_that_the_token_vouches_for(
    hub: LiveHub, user: str | None, client: str | None, to: str
) -> None:
    granted = {**ENOUGH, "client": client}
    own = await token(user, **{name: value for name, value in granted.items() if value})
    async with Visit(hub.url, token=own) as visit:
        await visit.take_names()
        assert re.fullmatch(to, visit.to)
        async with visit.stream() as stream:
            await stream.welcomed()
            published = await visit.publish("x")
            assert await stream.until(lambda: stream.arrivals[-1].event.data == "x", PATIENCE)
    assert published.subscribers == 1


async def test_what_a_token_lacks_is_said_where_it_is_needed(hub: LiveHub) -> None:
    findings = by_check(await examine(hub.url, token=await token(subscribe=OWN)))
    said = {check: finding.measured for check, finding in findings.items() if finding.verdict == Verdict.NOT_CHECKED}
    grant = "the token does not grant publishing on sse-app/doctor/**"
    assert {said[check] for check in ("log", "buffering", "resume", "body")} == {grant}
    assert said["end"] == "the token does not grant to see /stats"
    assert findings["host"].verdict == findings["ticket"].verdict == Verdict.OK
    own = await skipped("end", hub.url, token=await token(subscribe=OWN, stats="own"))
    assert own == "the token does not show who is subscribed (stats: all)"


@pytest.mark.parametrize(
    ("granted", "words"),
    [
        (None, "(401 unauthorized): give it a token"),
        ({"subscribe": ["news"]}, "does not grant subscribing to sse-app/doctor/**"),
    ],
)
async def test_why_a_hub_does_not_let_it_in_is_said_in_words(
    hub: LiveHub, granted: dict[str, Any] | None, words: str
) -> None:
    reach, *rest = await examine(hub.url, token=None if granted is None else await token(**granted))
    assert reach.verdict == Verdict.PROBLEM
    assert words in reach.measured
    assert "sse-app token --subscribe" in reach.advice["hub"]
    assert {finding.verdict for finding in rest} == {Verdict.NOT_CHECKED}


async def test_a_token_that_does_not_count_is_told_from_one_that_does_not_arrive(hub: LiveHub) -> None:
    wrong, *_ = await examine(hub.url, token="no-key-of-this-hub")
    assert "does not take this token (401 invalid_token)" in wrong.measured
    with nginx(f'location / {{ {PASS.format(url=hub.url)} proxy_set_header Authorization ""; }}') as url:
        lost, *_ = await examine(url, token=await token())
    assert "The token does not arrive" in lost.measured
    assert 'no `proxy_set_header Authorization ""`' in lost.advice["nginx"]
    for finding in (wrong, lost):
        assert "no-key" not in str(finding)


async def test_a_token_that_makes_no_difference_is_told() -> None:
    with live_hub() as open_hub:
        assert (await checked("token", open_hub.url, token="any")).verdict == Verdict.WARNING
        assert (await skipped("token", open_hub.url)).startswith("give a token")
    with live_hub(publish_key="s3cret-0123456789") as keyed:
        assert (await checked("token", keyed.url, token="s3cret-0123456789")).verdict == Verdict.OK
    with live_hub(token_secret=SECRET, anonymous_subscribe=("sse-app/doctor/**",)) as hub:
        lost = f'location / {{ {PASS.format(url=hub.url)} proxy_set_header Authorization ""; }}'
        with nginx(lost) as url:
            finding = await checked("token", url, token=await token())
        assert (await checked("token", hub.url, token=await token())).verdict == Verdict.OK
    assert finding.verdict == Verdict.WARNING
    assert "makes no difference" in finding.measured


# Tickets

STRIPPED = "location /hub/ {{ {passed} {more} }}"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("proxy_cookie_path /events $uri;", ""),
        ("", "for another path than /hub/events"),
        ("proxy_hide_header Set-Cookie;", "does not come through"),
        ("proxy_cookie_path /events '/; Secure';", "is for https"),
        ('proxy_cookie_path /events $uri; proxy_set_header Cookie "";', "does not reach the hub (401)"),
    ],
)
async def test_what_a_proxy_does_to_the_cookie_of_a_ticket(hub: LiveHub, more: str, words: str) -> None:
    with nginx(STRIPPED.format(passed=PASS.format(url=hub.url), more=more)) as url:
        finding = await checked("ticket", f"{url}/hub", token=await token())
    assert finding.verdict == (Verdict.WARNING if words else Verdict.OK), finding.measured
    assert words in finding.measured
    if words:
        assert "proxy_cookie_path /events $uri;" in finding.advice["nginx"]


CADDY = """\
:8080 {
    handle_path /hub/* {
        reverse_proxy 127.0.0.1:8000 {
            header_down Set-Cookie Path=/events Path=/hub/events
        }
    }
}
"""
APACHE = """\
Listen 8080
<VirtualHost *:8080>
    ProxyPreserveHost On
    ProxyPass "/hub/" "http://127.0.0.1:8000/" timeout=3600
    ProxyPassReverseCookiePath "/" "/hub/"
</VirtualHost>
"""


@pytest.mark.parametrize(("language", "shown"), [("caddy", CADDY), ("apache", APACHE)])
async def test_the_advised_settings_make_the_cookie_fit(hub: LiveHub, language: str, shown: str) -> None:
    with documented(language, shown, [hub.port]) as url:
        finding = await checked("ticket", f"{url}/hub", token=await token())
    assert finding.verdict == Verdict.OK, finding.measured


async def test_an_open_hub_is_asked_for_no_ticket(hub: LiveHub) -> None:
    with live_hub() as open_hub:
        assert (await skipped("ticket", open_hub.url)).startswith("give a token")
        assert (await open_hub.hub.broker.board.list("ticket")) == {}


# Preflights


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("", ""),
        ("if ($request_method = OPTIONS) {{ return 401; }}", "(OPTIONS) is answered 401"),
        ("proxy_hide_header Access-Control-Allow-Headers;", "answered 200, without what allows it"),
    ],
)
async def test_what_a_proxy_does_to_the_question_of_a_browser(hub: LiveHub, more: str, words: str) -> None:
    with nginx(f"location / {{ {PASS.format(url=hub.url)} {more.format()} }}") as url:
        finding = await checked("preflight", url, token=await token(), origin=ORIGIN)
    assert finding.verdict == (Verdict.PROBLEM if words else Verdict.OK), finding.measured
    assert words in finding.measured


async def test_a_preflight_of_an_origin_that_the_hub_does_not_know() -> None:
    with live_hub(cors_origins=("https://other.example",)) as hub:
        finding = await checked("preflight", hub.url, origin=ORIGIN)
        assert "--origin" in await skipped("preflight", hub.url)
    assert finding.verdict == Verdict.PROBLEM
    assert "--cors-origins" in finding.advice["hub"]


# Clocks


@pytest.mark.parametrize(
    ("date", "verdict", "words"),
    [
        (b"Fri, 30 Nov 2001 12:00:00 GMT", Verdict.WARNING, "behind this machine's clock"),
        (b"Mon, 30 Nov 2082 12:00:00 GMT", Verdict.WARNING, "ahead of this machine's clock"),
    ],
)
async def test_a_clock_that_is_wrong_is_told(date: bytes, verdict: Verdict, words: str) -> None:
    async def dated(scope: Scope, message: Message, send: Pass) -> None:
        if message["type"] == "http.response.start":
            kept = [field for field in message["headers"] if field[0] != b"date"]
            message = {**message, "headers": [*kept, (b"date", date)]}
        await send(message)

    with live(behind(dated, paths="/healthz"), date_header=False) as server:
        finding = await checked("clock", server.url)
    assert (finding.verdict, words in finding.measured) == (verdict, True), finding.measured
    assert abs(finding.figures["off_s"]) > 86_400


async def test_answers_without_a_date_say_nothing_of_clocks(hub: LiveHub) -> None:
    assert (await checked("clock", hub.url, token=await token())).verdict == Verdict.OK
    with live(behind(lambda scope, message, send: send(message), paths=".*"), date_header=False) as server:
        assert await skipped("clock", server.url) == "the answers have no Date"


async def skipped(check: str, url: str, **options: Any) -> str:
    """Why one check alone was not made."""
    with pytest.raises(NotChecked) as why:
        await checked(check, url, **options)
    return str(why.value)
