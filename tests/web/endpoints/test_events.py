"""``GET /events``: the refusals, and the start of a stream."""

from typing import Any

import pytest

from sse_app.joining import LAST_MAX
from tests.support.endpoints import HOST, KEY, payload, publish_numbers, raw, read, url_of
from tests.support.web import Web, call, code_of, web

MALFORMED_EVENTS = [
    ("an empty topic filter", {"topic": ""}, "invalid_topic"),
    ("a filter of 2,049 characters", {"topic": "t" * 2_049}, "invalid_topic"),
    ("a filter with a control character", {"topic": "a\r"}, "invalid_topic"),
    ("two wild rests", {"topic": "a/**/**"}, "invalid_topic"),
    ("a wild rest in the middle", {"topic": "a/**/b"}, "invalid_topic"),
    ("a filter of 33 segments", {"topic": "a/" * 32 + "*"}, "invalid_topic"),
    ("101 filters", {"topic": [f"t{n}" for n in range(101)]}, "too_many_topics"),
    ("a query that is not UTF-8", b"topic=%C3%28", "invalid_utf8"),
    ("a client with a slash", {"client": "a/b"}, "invalid_client"),
    ("an empty client", {"client": ""}, "invalid_client"),
    ("two clients", {"client": ["a", "b"]}, "invalid_client"),
    *[(f"last={last!r}", {"last": last}, "invalid_since")
      for last in ("", "-1", "1.5", "1e3", "٣", "x", str(LAST_MAX + 1), "9" * 5000, ["1", "2"])],
    *[(f"since={since!r}", {"since": since}, "invalid_since")
      for since in ("", "15", "m", "-5m", "5 m", "1w", "yesterday", "2026-01-31", "2026-01-31T08:00:00",
                    "2026-13-31T08:00:00Z", "2026-02-30T08:00:00Z", "2026-01-31T25:00:00Z", "٢m", "9999999999s",
                    "2026-01-31T08:00:00+24:00", "1700000000", ["1m", "2m"])],
    ("last and since", {"last": "1", "since": "1m"}, "invalid_since"),
    *[(name, {name: "a"}, "unknown_parameter")
      for name in ("topc", "topics", "Topic", "tpoic", "lastt", "sinse", "clientt", "last-event-id", "lastEventID")],
]  # fmt: skip


@pytest.mark.parametrize(
    ("params", "code"), [row[1:] for row in MALFORMED_EVENTS], ids=[row[0][:40] for row in MALFORMED_EVENTS]
)
async def test_a_malformed_subscription_has_its_code_and_leaves_nobody(hub_web: Web, params: Any, code: str) -> None:
    answer = await hub_web.client.get(url_of("/events", params), headers={"Accept": "text/event-stream"})
    assert code_of(answer) == (400, code)
    assert (await hub_web.client.head(url_of("/events", params))).headers == answer.headers
    assert len(hub_web.hub) == hub_web.hub.node.totals.connected == 0


async def test_subscribing_takes_no_key() -> None:
    async with web(publish_key=KEY) as hub_web, hub_web.stream() as events:
        assert (await anext(events)).type == "welcome"


JUNK = [
    "x" * 257, "-1", "1", "1.2.3", "1' OR 1=1--", "../..", "%00", "abc-", "abc-01", "ABC-1", "abc--1", "abc-1-1",
    f"abc-{10**40}", "null", "é".encode(), "é".encode("latin-1"), b"\xff\xfe", "٣-٣".encode(), "a" * 33 + "-1",
]  # fmt: skip


@pytest.mark.parametrize("cursor", JUNK, ids=repr)
async def test_a_cursor_that_is_none_is_a_gap_and_never_an_http_error(hub_web: Web, cursor: str | bytes) -> None:
    await publish_numbers(hub_web, 2)
    welcome, gap = await read(hub_web, 2, headers=[(b"last-event-id", raw(cursor))])
    assert (welcome.type, welcome.id, payload(welcome)["recovered"]) == ("welcome", None, False)
    top = str(await hub_web.hub.broker.top())
    assert (gap.type, gap.id) == ("gap", top)
    oldest = top.replace("-2", "-1")
    assert payload(gap) == {"requested": None, "oldest": oldest, "top": top, "reason": "malformed"}


@pytest.mark.parametrize(
    ("offset", "reason", "replayed"), [("other-1", "epoch", 2), ("{epoch}-3", "ahead", 0), ("{epoch}-999", "ahead", 0)]
)
async def test_a_cursor_of_elsewhere_is_a_gap_with_its_reason(
    hub_web: Web, offset: str, reason: str, replayed: int
) -> None:
    await publish_numbers(hub_web, 2)
    cursor = offset.format(epoch=(await hub_web.hub.broker.top()).epoch)
    _, gap, *rest = await read(hub_web, 2 + replayed, headers={"Last-Event-ID": cursor})
    assert (payload(gap)["reason"], payload(gap)["requested"]) == (reason, cursor)
    assert [event.data for event in rest] == ["0", "1"][:replayed]


async def test_a_cursor_that_was_trimmed_is_a_gap_with_what_the_log_still_holds() -> None:
    async with web(history=2) as hub_web:
        ids = await publish_numbers(hub_web, 5)
        _, gap, *rest = await read(hub_web, 4, headers={"Last-Event-ID": ids[0]})
        wanted = {"requested": ids[0], "oldest": ids[3], "top": ids[4], "reason": "trimmed"}
        assert (payload(gap), gap.id) == (wanted, ids[2])
        assert [event.id for event in rest] == ids[3:]


async def test_a_cursor_wins_over_last(hub_web: Web) -> None:
    ids = await publish_numbers(hub_web, 3)
    events = await read(hub_web, 2, "/events?last=3", headers={"Last-Event-ID": ids[1]})
    assert [event.id for event in events] == [ids[1], ids[2]]


async def test_the_client_keeps_the_name_it_gave_and_else_gets_one(hub_web: Web) -> None:
    (named,) = await read(hub_web, 1, "/events?client=tab-1")
    (other,) = await read(hub_web, 1)
    (another,) = await read(hub_web, 1)
    assert payload(named)["client"] == "tab-1"
    assert payload(other)["client"] != payload(another)["client"]


@pytest.mark.parametrize("accept", [["text/event-stream"], ["text/html", "Text/Event-Stream;q=0.9"], ["*/*"], []])
async def test_a_stopping_hub_keeps_whoever_accepts_a_stream(hub_web: Web, accept: list[str]) -> None:
    """Accept is a list, and may be split over several headers."""
    hub_web.hub.node.stop_accepting()
    headers = [HOST, *((b"accept", value.encode()) for value in accept)]
    answer = await call(hub_web.hub.app, "GET", "/events", headers)
    assert answer.status_code == (200 if "stream" in "".join(accept).lower() else 503)
