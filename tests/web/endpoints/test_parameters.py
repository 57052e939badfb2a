"""The query and header parameters of all endpoints."""

import difflib
import logging
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest

from sse_app import Config
from sse_app.joining import LAST_MAX
from sse_app.server.protocol import TARGET_MAX
from sse_app.web.endpoints.broadcast import BROADCAST_PARAMETERS
from sse_app.web.endpoints.parameters import COMPARED_MAX
from tests.support.endpoints import JSON, payload, publish_numbers, read
from tests.support.web import Web, code_of, live_hub


@pytest.mark.parametrize("query", ["_=1769846400", "t=1&cb=x", "utm_source=a&debug", "x=%F0%9F%98%80"])
async def test_a_cache_buster_is_ignored_by_a_subscription(hub_web: Web, query: str) -> None:
    async with hub_web.stream(f"/events?{query}") as events:
        assert (await anext(events)).type == "welcome"


@pytest.mark.parametrize(("given", "meant"), [("topics", "topic"), ("EVENT", "event"), ("exclud", "exclude")])
async def test_a_near_miss_is_named_by_what_was_meant(hub_web: Web, given: str, meant: str) -> None:
    answer = await hub_web.client.post("/broadcast", content="x", params={given: "a"})
    assert answer.json()["detail"].endswith(f"did you mean {meant}?")


async def test_a_parameter_like_no_other_is_told_which_there_are(hub_web: Web) -> None:
    detail = (await hub_web.client.post("/broadcast", content="x", params={"zzz": "a"})).json()["detail"]
    assert detail.endswith(f"known are {', '.join(BROADCAST_PARAMETERS)}.")


# No error repeats its input

MARKER = "m4rk3r"


async def test_no_error_repeats_what_was_sent(hub_web: Web, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    post, get = hub_web.client.post, hub_web.client.get
    answers = [
        *[await post("/broadcast", content=MARKER, params={name: f"{MARKER}\n"}) for name in BROADCAST_PARAMETERS],
        *[await post("/broadcast", content="x", params={f"{MARKER}{name}": MARKER}) for name in ("", "topic")],
        *[await get("/events", params={name: f"{MARKER}\n" * 9}) for name in ("topic", "last", "since", "client")],
        await get("/events", params={f"topic{MARKER[0]}": MARKER}),
        await post("/broadcast", content=f"{{{MARKER}", headers=JSON),
        await post("/broadcast", content=MARKER, headers={"Content-Type": f"multipart/{MARKER}"}),
        await post("/broadcast", content=MARKER, headers={"Content-Type": f"text/plain; charset={MARKER}"}),
        await post("/broadcast", content=MARKER, headers={"Content-Encoding": MARKER}),
        await post("/broadcast", content="x", headers={"Idempotency-Key": f"{MARKER} {MARKER}"}),
        await get(f"/{MARKER}?{MARKER}", headers={"X-Request-Id": MARKER}),
        await post(f"/static/{MARKER}"),
        await hub_web.client.request(MARKER.upper(), "/events", headers={"Referer": MARKER}),
        await get("/stats", headers={"Host": f"{MARKER}/"}),
        await get("/stats", headers={"Origin": f"https://{MARKER}.example"}),
    ]
    for answer in answers:
        assert 400 <= code_of(answer)[0] < 500
        assert MARKER not in f"{answer.headers}{answer.text}".lower()
    assert MARKER not in "".join(record.getMessage() for record in caplog.records if record.name.startswith("sse_app"))


async def test_a_bad_cursor_is_not_repeated_on_the_stream(hub_web: Web) -> None:
    async with hub_web.stream(headers={"Last-Event-ID": f"{MARKER}\t"}) as events:
        assert MARKER not in repr([await anext(events), await anext(events)])


@pytest.mark.parametrize("name", ["last_event_id", "lastEventId"])
async def test_the_cursor_may_come_as_a_parameter(hub_web: Web, name: str) -> None:
    ids = await publish_numbers(hub_web, 3)
    welcome, *rest = await read(hub_web, 3, f"/events?{name}={ids[0]}")
    assert welcome.id == ids[0]
    assert payload(welcome)["recovered"] is True
    assert [event.id for event in rest] == ids[1:]


async def test_the_header_wins_over_the_parameter(hub_web: Web) -> None:
    ids = await publish_numbers(hub_web, 3)
    events = await read(hub_web, 2, f"/events?last_event_id={ids[0]}", headers={"Last-Event-ID": ids[1]})
    assert [event.id for event in events] == [ids[1], ids[2]]


async def test_what_a_polyfill_adds_wins_over_what_the_url_held(hub_web: Web) -> None:
    """event-source-polyfill keeps its URL, and adds lastEventId to it on each reconnect."""
    ids = await publish_numbers(hub_web, 3)
    for query in (f"last_event_id={ids[0]}&lastEventId={ids[1]}", f"lastEventId={ids[1]}&last_event_id={ids[0]}"):
        welcome, event = await read(hub_web, 2, f"/events?{query}")
        assert (payload(welcome)["recovered"], event.id) == (True, ids[2])
    events = await read(hub_web, 2, f"/events?last_event_id=x&lastEventId={ids[0]}", headers={"Last-Event-ID": ids[1]})
    assert events[1].id == ids[2]


@pytest.mark.parametrize("name", ["last_event_id", "lastEventId"])
async def test_two_of_a_kind_are_none_and_so_a_gap_though_a_weaker_one_is_right(hub_web: Web, name: str) -> None:
    ids = await publish_numbers(hub_web, 2)
    _, gap = await read(hub_web, 2, f"/events?{name}={ids[0]}&{name}={ids[0]}")
    assert payload(gap)["reason"] == "malformed"
    headers = [("Last-Event-ID", ids[0]), ("Last-Event-ID", ids[0])]
    _, gap = await read(hub_web, 2, f"/events?{name}={ids[0]}", headers=headers)
    assert payload(gap)["reason"] == "malformed"


@pytest.mark.parametrize("stronger", ["lastEventId=", "lastEventId=&lastEventId="])
async def test_an_empty_parameter_leaves_the_word_to_the_weaker_one(hub_web: Web, stronger: str) -> None:
    ids = await publish_numbers(hub_web, 2)
    events = await read(hub_web, 2, f"/events?{stronger}&last_event_id={ids[0]}")
    assert [event.id for event in events] == ids


@pytest.mark.parametrize("headers", [{}, {"Last-Event-ID": ""}])
async def test_an_empty_cursor_is_none(hub_web: Web, headers: dict[str, str]) -> None:
    await publish_numbers(hub_web, 1)
    (welcome,) = await read(hub_web, 1, "/events?last_event_id=", headers=headers)
    assert welcome.id == str(await hub_web.hub.broker.top())
    assert payload(welcome)["recovered"] is False


async def test_an_empty_header_leaves_the_word_to_the_parameter(hub_web: Web) -> None:
    ids = await publish_numbers(hub_web, 2)
    events = await read(hub_web, 2, f"/events?last_event_id={ids[0]}", headers={"Last-Event-ID": ""})
    assert [event.id for event in events] == ids


async def test_two_cursor_headers_are_none_and_so_a_gap(hub_web: Web) -> None:
    ids = await publish_numbers(hub_web, 2)
    headers = [("Last-Event-ID", ids[0]), ("Last-Event-ID", ids[1])]
    _, gap = await read(hub_web, 2, headers=headers)
    assert payload(gap)["reason"] == "malformed"


@pytest.mark.parametrize(
    ("last", "expected"), [("0", ""), ("1", "2"), ("2", "12"), ("007", "012"), (str(LAST_MAX), "012")]
)
async def test_last_first_gives_the_newest_so_many(hub_web: Web, last: str, expected: str) -> None:
    await publish_numbers(hub_web, 3)
    async with hub_web.stream(f"/events?last={last}") as events:
        await anext(events)
        await hub_web.post("live")
        assert [(await anext(events)).data for _ in range(len(expected) + 1)] == [*expected, "live"]


def spelt(moment: datetime) -> Sequence[str]:
    utc = moment.astimezone(UTC)
    return [
        utc.isoformat().replace("+00:00", "Z"),
        utc.isoformat(timespec="seconds").replace("+00:00", "z").replace("T", "t"),
        utc.isoformat(),
        utc.astimezone(datetime.now().astimezone().tzinfo).isoformat(),
        (utc + timedelta(hours=5)).isoformat(timespec="milliseconds").replace("+00:00", "+05:00"),
        (utc - timedelta(hours=5)).isoformat().replace("+00:00", "-05:00"),
        utc.isoformat(timespec="microseconds").replace("+00:00", "000Z"),
    ]


PAST, FUTURE = datetime.now(UTC) - timedelta(hours=1), datetime.now(UTC) + timedelta(days=1)


@pytest.mark.parametrize("since", ["1m", "30s", "2h", "1d", "999999999d", *spelt(PAST), "0001-01-01T00:00:00Z"])
async def test_since_first_gives_what_was_published_since_then(hub_web: Web, since: str) -> None:
    await publish_numbers(hub_web, 2)
    _, *rest = await read(hub_web, 3, "/events", params={"since": since})
    assert [event.data for event in rest] == ["0", "1"]


@pytest.mark.parametrize("since", [*spelt(FUTURE), "9999-12-31T23:59:59Z"])
async def test_since_a_later_time_gives_only_what_comes(hub_web: Web, since: str) -> None:
    await publish_numbers(hub_web, 2)
    async with hub_web.stream("/events", params={"since": since}) as events:
        await anext(events)
        await hub_web.post("live")
        assert (await anext(events)).data == "live"


async def test_a_bare_plus_in_since_is_taken_for_the_blank_that_it_becomes(hub_web: Web) -> None:
    await publish_numbers(hub_web, 1)
    since = PAST.isoformat(timespec="seconds")
    assert "+00:00" in since
    _, event = await read(hub_web, 2, f"/events?since={since}")
    assert event.data == "0"


def test_limits_that_are_for_the_head_are_reached_with_a_larger_one_and_else_told() -> None:
    """docs/http-api.md has the figures."""
    names = "".join(f"&to={number:064}" for number in range(1_000))
    filters = "".join(f"&topic={number:0256}" for number in range(100))
    assert (len(names), len(filters)) == (68_000, 26_300)
    head = b" HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx"
    with live_hub(drain=0, head_max=1024**2) as server:
        assert server.answer(f"HEAD /events?{filters}".encode() + head).status_code == 200
        shorter = names.replace("to=0000", "to=")
        assert len(shorter) < TARGET_MAX < len(names)
        assert server.answer(f"POST /broadcast?{shorter}".encode() + head).status_code == 200
        assert code_of(server.answer(f"POST /broadcast?{names}".encode() + head)) == (431, "head_too_large")
    with live_hub(drain=0) as server:
        answer = server.answer(f"POST /broadcast?{names[: Config().head_max]}".encode() + head)
        assert code_of(answer) == (431, "head_too_large")
        assert b"Name fewer topics or clients, or raise it." in answer.content


async def test_a_bounded_number_of_unknown_names_is_compared(hub_web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = list[str]()

    def note(name: str, known: object, *arguments: object) -> list[str]:
        compared.append(name)
        return []

    monkeypatch.setattr(difflib, "get_close_matches", note)
    query = "&".join(f"n{number}=" for number in range(1_000))
    async with hub_web.stream(f"/events?{query}") as events:
        await anext(events)
    assert compared == [f"n{number}" for number in range(COMPARED_MAX)]
