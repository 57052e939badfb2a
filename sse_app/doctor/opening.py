"""Checks of the first stream: that it leads to a hub, how soon, and with which headers."""

import asyncio
from contextlib import suppress

import httpx

from sse_app.doctor.advice import ADVICE, HUB
from sse_app.doctor.finding import Finding, Verdict
from sse_app.doctor.stream import WELCOME_SECONDS, Stream
from sse_app.doctor.visit import Visit, error_code, unreachable
from sse_app.errors import NotChecked
from sse_app.events import MEDIA_TYPE

SLOW_SECONDS = 2.0  # a head, or a welcome after its head, that takes longer is worth a warning
OWN_TOPICS = "sse-app/doctor/**"
GRANTED = {
    HUB: f"a token for the doctor: sse-app token --subscribe '{OWN_TOPICS}' --publish '{OWN_TOPICS}'"
    " --client 'doctor-*' --stats all; or a key with as much, of sse-app keys add"
}
SHOWN = 80  # characters of a header that a finding repeats


async def reach(visit: Visit) -> Finding:
    """Check that a hub answers at this address. Raises DoctorFailed when nothing does."""
    stream = visit.first
    await stream.until(lambda: stream.response is not None, WELCOME_SECONDS)
    if stream.response is None and stream.ended is not None:
        raise unreachable(visit, stream.ended)
    if stream.response is not None and not stream.is_events:
        return await _explain_answer(visit, stream)
    if stream.is_events:
        await stream.until(lambda: bool(stream.arrivals), WELCOME_SECONDS)
    if stream.welcome and stream.welcome.get("client") != visit.client:
        return _problem("A hub answers, but the query does not reach it: topics and names have no effect.", "query")
    if stream.welcome:
        return Finding("reach", Verdict.OK, "an sse-app hub answers")
    if stream.arrivals:
        return _problem("It is an event stream, but its first event is no welcome: it is not a hub's.", "path")
    if stream.cut:
        return _problem("The stream ended before its welcome: the hub is full or stopping, or it was cut.", "full")
    if await _is_open(visit):
        visit.blocked = True
        return Finding("reach", Verdict.OK, "an sse-app hub answers and has the stream open; its bytes are missing")
    if stream.response is None:
        raise unreachable(visit, f"nothing came within {WELCOME_SECONDS:g} s")
    return _problem(f"It is an event stream, but no welcome came within {WELCOME_SECONDS:g} s.", "path")


async def _is_open(visit: Visit) -> bool:
    """Return True when the hub has the first stream open, by /stats or by the answer to a publication."""
    with suppress(TimeoutError):
        async with asyncio.timeout(2 * WELCOME_SECONDS):
            with suppress(NotChecked):
                return await visit.subscribed(visit.silent_topic)
            with suppress(NotChecked):
                return (await visit.publish("is anyone there?", visit.silent_topic)).subscribers > 0
    return False


async def _explain_answer(visit: Visit, stream: Stream) -> Finding:
    response = stream.response
    assert response is not None
    await stream.until(lambda: False, WELCOME_SECONDS)  # the whole body, which is short
    status, code = response.status_code, error_code(response, stream.body)
    if code == "bad_host":
        return _problem(f"The hub does not answer to the Host that reaches it ({status} bad_host).", "host")
    if response.is_redirect:
        return _problem(f"It redirects to {_shown(response, 'location')}; examine that address.", "path")
    if status in (502, 503, 504) and not code:
        return _problem(f"The proxy does not reach the hub ({status}).", "upstream")
    if status == 401 and code:
        return _explain_unauthorized(visit, code)
    if code == "insufficient_scope":
        return Finding("reach", Verdict.PROBLEM, f"The token does not grant subscribing to {OWN_TOPICS}.", GRANTED)
    if status in (401, 403, 407) and not code:
        return _problem(f"Something before the hub refuses ({status}).", "access")
    if code and code != "not_found":
        return _problem(f"The hub answers {status} {code}; see its HTTP API for the code.", "path")
    found = f"There is no hub's stream at {visit.shown}/events"
    found += f" ({status} {_shown(response, 'content-type') or 'without a content type'})."
    if elsewhere := await _find_hub_above(visit):
        return _problem(f"{found} But a hub answers at {elsewhere}.", "path")
    return _problem(found, "path")


def _explain_unauthorized(visit: Visit, code: str) -> Finding:
    """Explain the 401 of a hub: it says ``unauthorized`` to who sends nothing, and ``invalid_token`` to the others."""
    if not visit.has_token:
        text = f"The hub asks who comes (401 {code}): give it a token, by --token-file or SSE_APP_TOKEN."
        return Finding("reach", Verdict.PROBLEM, text, GRANTED)
    if code == "unauthorized":
        return _problem("The token does not arrive: the hub asks for one (401 unauthorized), and it was sent.", "token")
    text = f"The hub does not take this token (401 {code}): it has expired, or is none of this hub's; or another"
    return Finding("reach", Verdict.PROBLEM, f"{text} Authorization arrives in its place.", GRANTED)


async def _find_hub_above(visit: Visit) -> str:
    """Return the address above the given one where a hub answers, "" for none."""
    url = visit.url.copy_with(userinfo=b"")
    while url.path.strip("/"):
        url = url.copy_with(path=url.path.rstrip("/").rpartition("/")[0] + "/")
        with suppress(NotChecked):
            if (await visit.get_json(f"{url}healthz")).get("status") == "ok":
                return str(url)
    return ""


async def welcome(visit: Visit) -> Finding:
    """Measure how long the head and the welcome took. The hub sends both at once."""
    stream = visit.first
    if stream.welcome is None:
        raise NotChecked(f"none came within {WELCOME_SECONDS:g} s; see buffering")
    head = stream.answered - stream.asked
    rest = stream.arrivals[0].time - stream.answered
    text = f"headers after {_ms(head)}, connecting included; the welcome after {_ms(head + rest)}"
    figures = {"headers_ms": head * 1000, "welcome_ms": (head + rest) * 1000}
    if max(head, rest) < SLOW_SECONDS:
        return Finding("welcome", Verdict.OK, text, figures=figures)
    advice = ADVICE["buffering" if rest > head else "upstream"]
    return Finding("welcome", Verdict.WARNING, f"slow: {text}", advice, figures)


async def headers(visit: Visit) -> Finding:
    """Check that the head is still the hub's. nginx takes X-Accel-Buffering out, as it should."""
    response = visit.first.response
    if response is None:
        raise NotChecked("none came; see buffering")
    if _from_cache(response):
        return Finding("headers", Verdict.PROBLEM, "the answer comes from a cache", ADVICE["headers"])
    if "content-length" in response.headers:
        return Finding("headers", Verdict.PROBLEM, "a stream with a Content-Length ends there", ADVICE["headers"])
    given = response.headers.get("cache-control", "")
    if {"no-store", "no-transform"} <= {word.strip().lower() for word in given.split(",")}:
        return Finding("headers", Verdict.OK, f"{MEDIA_TYPE}, Cache-Control as the hub sent it")
    text = f"Cache-Control is not the hub's `no-store, no-transform`, but `{_shown(response, 'cache-control')}`"
    return Finding("headers", Verdict.WARNING, text, ADVICE["headers"])


def _from_cache(response: httpx.Response) -> bool:
    said = f"{response.headers.get('x-cache', '')} {response.headers.get('cf-cache-status', '')}".lower().split()
    return "hit" in said or response.headers.get("age", "0") != "0"


def _problem(text: str, advice: str) -> Finding:
    return Finding("reach", Verdict.PROBLEM, text, ADVICE[advice])


def _shown(response: httpx.Response, header: str) -> str:
    """Return a header's value, fit for a terminal."""
    return "".join(char for char in response.headers.get(header, "") if char.isprintable())[:SHOWN]


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"
