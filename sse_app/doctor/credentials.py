"""Checks for hubs that ask who their callers are: the way of tokens, preflights and tickets, and the clocks."""

import time
from email.utils import parsedate_to_datetime
from http.cookies import CookieError, Morsel, SimpleCookie
from urllib.parse import unquote

import httpx

from sse_app.doctor.advice import ADVICE
from sse_app.doctor.finding import Finding, Verdict
from sse_app.doctor.visit import Visit, named
from sse_app.errors import NotChecked

SKEW = 5.0  # seconds by which a token's times may be ahead of the hub's clock
NO_TOKEN = "give a token: --token-file, SSE_APP_TOKEN"
OTHER_AGENT = {"User-Agent": "sse-app-doctor-again"}  # by which a hub does not know who used a ticket


async def clock(visit: Visit) -> Finding:
    """Check that this machine and the one that dates the answers have the same time, by which tokens expire. A proxy
    may put its own date.
    """
    asked = time.time()
    answer = await visit.get("healthz", {})
    answered = time.time()
    try:
        dated = parsedate_to_datetime(answer.headers["date"]).timestamp()
    except (KeyError, ValueError):
        raise NotChecked("the answers have no Date") from None
    ahead, behind = dated - answered, asked - (dated + 1)  # at least; a Date has whole seconds
    off = max(ahead, behind)
    if off <= SKEW:
        return Finding("clock", Verdict.OK, "the answers have this machine's time")
    way = "ahead of" if ahead > behind else "behind"
    text = f"the answers are dated {off:.0f} s {way} this machine's clock: tokens count too early or too late"
    return Finding("clock", Verdict.WARNING, text, ADVICE["clock"], {"off_s": ahead if ahead > behind else -behind})


async def token(visit: Visit) -> Finding:
    """Check that Authorization arrives. A hub refuses a wrong token, also where it would need none; one that has a
    publish key alone grants less to it.
    """
    if not visit.has_token:
        raise NotChecked(NO_TOKEN)
    answer = await visit.get("grant", {})
    if answer.status_code != 200:
        raise NotChecked(f"/grant was answered {named(answer)}")
    wrong = await visit.get("grant", {"Authorization": "Bearer this-is-no-token"})
    if wrong.status_code == 401 or (wrong.status_code == 200 and wrong.content != answer.content):
        return Finding("token", Verdict.OK, "the token arrives, and counts")
    if wrong.status_code != 200:
        raise NotChecked(f"/grant was answered {named(wrong)} to a token that is none")
    text = "a token makes no difference: this hub asks nobody for one, or it does not arrive"
    return Finding("token", Verdict.WARNING, text, ADVICE["token"])


async def preflight(visit: Visit) -> Finding:
    """Check that a page of the given origin may send Authorization. A browser asks first, and does not send it then."""
    if visit.origin is None or visit.origin == visit.own_origin:
        raise NotChecked("give the origin of a page: --origin https://app.example")
    answer = await visit.ask_before("events", "GET", "authorization")
    allowed = {name.strip().lower() for name in answer.headers.get("access-control-allow-headers", "").split(",")}
    origins = answer.headers.get_list("access-control-allow-origin")
    if 200 <= answer.status_code < 300 and origins in (["*"], [visit.origin]) and allowed & {"authorization", "*"}:
        return Finding("preflight", Verdict.OK, f"a page of {visit.origin} may send a token")
    text = f"a browser's question before the request (OPTIONS) is answered {named(answer)}"
    if 200 <= answer.status_code < 300:
        text += ", without what allows it"
    text += f": a page of {visit.origin} cannot send a token"
    return Finding("preflight", Verdict.PROBLEM, text, ADVICE["preflight"])


async def ticket(visit: Visit) -> Finding:
    """Check that the cookie comes through by which a browser is known that comes back with a ticket."""
    if not visit.has_token:
        raise NotChecked(NO_TOKEN)
    visit.require_streams()
    made = await visit.ticket()
    cookie = _lease(await _head_of(visit, made, {}))
    if cookie is None:
        return _unknown("the cookie that a stream with a ticket sets does not come through")
    path = f"{visit.url.path.rstrip('/')}/events"
    if not _is_for(unquote(cookie["path"]), path):
        return _unknown(f"the cookie of a ticket is for another path than {path}, which browsers ask for")
    if cookie["secure"] and visit.url.scheme == "http":
        return _unknown("the cookie of a ticket is for https, and browsers ask here without")
    again = await _head_of(visit, made, {**OTHER_AGENT, "Cookie": f"{cookie.key}={cookie.value}"})
    if again.status_code != 200:
        return _unknown(f"the cookie of a ticket does not reach the hub ({again.status_code})")
    return Finding("ticket", Verdict.OK, "a ticket opens a stream, and its cookie comes and goes")


async def _head_of(visit: Visit, made: str, headers: dict[str, str]) -> httpx.Response:
    """Return the head of a stream that a ticket opens."""
    async with visit.stream(headers=headers, ticket=made) as stream:
        response = await visit.opened(stream)
        if headers or response.status_code == 200:
            return response
    raise NotChecked(f"a ticket was answered {response.status_code}")


def _lease(response: httpx.Response) -> "Morsel[str] | None":
    for line in response.headers.get_list("set-cookie"):
        try:
            found = SimpleCookie(line)
        except CookieError:
            continue
        for name, cookie in found.items():
            if name.endswith("sse_lease"):
                return cookie
    return None


def _is_for(cookie: str, path: str) -> bool:
    """Return True when a browser sends a cookie of one path with a request for another (RFC 6265, 5.1.4)."""
    return path == cookie or (path.startswith(cookie) and (cookie.endswith("/") or path[len(cookie)] == "/"))


def _unknown(why: str) -> Finding:
    text = f"{why}: who comes back with a ticket from another address or network is refused"
    return Finding("ticket", Verdict.WARNING, text, ADVICE["ticket"])
