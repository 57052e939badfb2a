"""Checks of the way of events and positions: their log, buffering, resuming."""

import asyncio
import time
from itertools import pairwise

from sse_app.doctor.advice import ADVICE
from sse_app.doctor.finding import Finding, Verdict
from sse_app.doctor.stream import Stream
from sse_app.doctor.visit import ARRIVAL_SECONDS, Published, Visit
from sse_app.errors import NotChecked

EVENTS = 10
PACE = 0.1  # seconds between two events


async def log(visit: Visit) -> Finding:
    """Check that every request reaches the same log: else events and positions of one hub go to another."""
    for _ in range(3):
        await visit.publish("which log?")
    if welcome := visit.first.welcome:
        visit.epochs.add(str(welcome["top"]).partition("-")[0])
    if len(visit.epochs) == 1:
        return Finding("log", Verdict.OK, "publishing works, and streams come from the same log")
    text = f"{len(visit.epochs)} logs answered in turn: events published to one hub do not reach the other's readers"
    return Finding("log", Verdict.PROBLEM, text, ADVICE["log"])


async def buffering(visit: Visit) -> Finding:
    """Check that events arrive one by one, as they were sent. A busy machine may join some, but hardly twice."""
    if visit.blocked:
        text = "the hub has the stream open, but nothing of it came through, not even the welcome"
        return Finding("buffering", Verdict.PROBLEM, text, ADVICE["buffering"])
    visit.require_one_log()
    finding = await _paced(visit)
    return finding if finding.verdict == Verdict.OK else await _paced(visit)


async def _paced(visit: Visit) -> Finding:
    async with visit.stream() as stream:
        await stream.welcomed()
        sent = {}
        for number in range(EVENTS):
            await asyncio.sleep(PACE)
            sent[str(number)] = time.monotonic()
            await visit.publish(str(number))
        await stream.until(lambda: len(_times(stream, sent)) == EVENTS, ARRIVAL_SECONDS)
        came = _times(stream, sent)
        if len(came) < EVENTS and stream.ended is not None:
            raise NotChecked("the stream was cut meanwhile; see idle")
    pieces = sum(1 for earlier, later in pairwise([0.0, *came.values()]) if later - earlier > PACE / 4)
    late = max((moment - sent[data] for data, moment in came.items()), default=0.0) * 1000
    figures = {"events": EVENTS, "arrived": len(came), "pieces": pieces, "latest_ms": late}
    if len(came) < EVENTS:
        text = f"of {EVENTS} events {len(came)} arrived within {ARRIVAL_SECONDS:g} s; the rest is held back"
    else:
        text = f"{EVENTS} events, {PACE * 1000:.0f} ms apart, came in {pieces} pieces, at most {late:.0f} ms late"
    if pieces > EVENTS // 2 and len(came) == EVENTS:
        return Finding("buffering", Verdict.OK, text, figures=figures)
    return Finding("buffering", Verdict.PROBLEM, text, ADVICE["buffering"], figures)


def _times(stream: Stream, sent: dict[str, float]) -> dict[str, float]:
    """Return the times at which these events arrived, in the order of their arrival."""
    return {arrival.event.data: arrival.time for arrival in stream.arrivals if arrival.event.data in sent}


async def resume(visit: Visit) -> Finding:
    """Check that a client that reconnects gets what it missed: by the header, as EventSource does, and by the query."""
    visit.require_one_log()
    visit.require_streams()
    seen, missed = await visit.publish("seen"), await visit.publish("missed")
    by_header = await _resumes(visit, seen, missed, by_header=True)
    by_query = await _resumes(visit, seen, missed, by_header=False)
    if by_header and by_query:
        return Finding("resume", Verdict.OK, "Last-Event-ID arrives: what was missed is replayed")
    if by_query:
        text = "the Last-Event-ID header does not reach the hub: browsers that come back miss events"
        return Finding("resume", Verdict.PROBLEM, text, ADVICE["resume"])
    if by_header:
        text = "the query does not reach the hub: neither topics nor last_event_id have an effect"
        return Finding("resume", Verdict.PROBLEM, text, ADVICE["query"])
    text = "neither the Last-Event-ID header nor the query reaches the hub"
    return Finding("resume", Verdict.PROBLEM, text, ADVICE["resume"])


async def _resumes(visit: Visit, seen: Published, missed: Published, *, by_header: bool) -> bool:
    """Return True when the position that was sent reached the hub; its welcome begins there."""
    headers, parameter = ({"Last-Event-ID": seen.event_id}, "") if by_header else ({}, seen.event_id)
    async with visit.stream(headers=headers, last_event_id=parameter) as stream:
        welcome = await stream.welcomed()
        if stream.arrivals[0].event.id != seen.event_id:
            return False
        if not welcome.get("recovered"):
            raise NotChecked("the hub told a gap: its log was restarted, or it is very busy")
        if not await stream.until(
            lambda: any(one.event.id == missed.event_id for one in stream.arrivals), ARRIVAL_SECONDS
        ):
            raise NotChecked(f"the replay did not come within {ARRIVAL_SECONDS:g} s; see buffering")
        return True
