"""Checks of the end of streams: when their client has left, and not because they are silent."""

import asyncio
import time
from contextlib import suppress
from itertools import pairwise

from sse_app.doctor.advice import ADVICE
from sse_app.doctor.finding import Finding, Verdict
from sse_app.doctor.stream import Stream
from sse_app.doctor.visit import Visit
from sse_app.errors import NotChecked

LEAVE_SECONDS = 5.0  # for the hub to notice that a stream was closed
POLL_SECONDS = 0.1
HEARTBEAT = 15.0  # seconds, the hub's default


async def end(visit: Visit) -> Finding:
    """Check that the hub notices that a client has left."""
    visit.require_streams()
    topic = f"{visit.topic}/end"
    async with visit.stream(topic) as stream:
        await stream.welcomed()
        if not await visit.subscribed(topic):
            raise NotChecked("the stream does not show in /stats: too many others, or another hub's")
    closed = time.monotonic()
    if await _is_gone(visit, topic):
        took = time.monotonic() - closed
        text = f"a closed stream was gone from the hub within {took:.1f} s"
        return Finding("end", Verdict.OK, text, figures={"gone_s": took})
    published = await _make_proxy_write(visit, topic)
    if await _is_gone(visit, topic):
        text = "a closed stream stays open at the hub until something is sent on it: for up to two heartbeats"
        return Finding("end", Verdict.WARNING, text, ADVICE["end"])
    if published:
        text = "a closed stream stays open at the hub, though events were sent on it: they pile up"
        return Finding("end", Verdict.PROBLEM, text, ADVICE["end"])
    text = f"a closed stream stays open at the hub for more than {2 * LEAVE_SECONDS:g} s; publishing could tell more"
    return Finding("end", Verdict.WARNING, text, ADVICE["end"])


async def _make_proxy_write(visit: Visit, topic: str) -> bool:
    """Make the proxy write to the closed connection: the first write is answered with a reset, the second one fails."""
    with suppress(NotChecked):
        for _ in range(2):
            await visit.publish("is anyone there?", topic)
            await asyncio.sleep(POLL_SECONDS)
        return True
    return False


async def _is_gone(visit: Visit, topic: str) -> bool:
    deadline = time.monotonic() + LEAVE_SECONDS
    while await visit.subscribed(topic):
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(POLL_SECONDS)
    return True


async def idle(visit: Visit) -> Finding:
    """Check that a stream survives silence, and its heartbeats arrive. Cuts during the other checks count too."""
    if visit.idle and not visit.blocked:
        async with visit.stream() as stream:
            await stream.until(lambda: False, visit.idle)
        if stream.ended is None and stream.arrivals:
            return _survived(visit.idle, stream)
    if cut := [stream for stream in (*visit.cuts, visit.first) if stream.cut]:
        return _cut(cut[0])
    visit.require_streams()
    if visit.idle:
        raise NotChecked("its stream was not welcomed, or the hub ended it itself")
    raise NotChecked("give the seconds to wait: --idle 120")


def _survived(seconds: float, stream: Stream) -> Finding:
    beats = [stream.arrivals[0].time, *stream.heartbeats]
    spacing = max((later - earlier for earlier, later in pairwise(beats)), default=0.0)
    figures = {"idle_s": seconds, "heartbeats": len(stream.heartbeats), "spacing_s": spacing}
    if stream.heartbeats:
        text = f"a stream survived {seconds:g} s; {len(stream.heartbeats)} heartbeats, at most {spacing:.1f} s apart"
        return Finding("idle", Verdict.OK, text, figures=figures)
    if seconds < 2 * HEARTBEAT:
        text = f"a stream survived {seconds:g} s; --idle {4 * HEARTBEAT:g} sees heartbeats as well"
        return Finding("idle", Verdict.OK, text, figures=figures)
    text = f"a stream survived {seconds:g} s, but no heartbeat came, and the hub's default is every {HEARTBEAT:g} s"
    return Finding("idle", Verdict.WARNING, text, ADVICE["heartbeat"], figures)


def _cut(stream: Stream) -> Finding:
    silence, age = stream.closed - stream.last_read, stream.closed - stream.answered
    beats = [stream.arrivals[0].time if stream.arrivals else stream.answered, *stream.heartbeats]
    spacing = max((later - earlier for earlier, later in pairwise(beats)), default=0.0)
    figures = {"age_s": age, "silence_s": silence}
    if silence < spacing / 2:
        text = f"a stream was cut after {age:.1f} s, {silence:.1f} s after its last bytes: it may last no longer"
        return Finding("idle", Verdict.PROBLEM, text, ADVICE["duration"], figures)
    text = f"a stream was cut after {silence:.1f} s of silence; the hub sends a heartbeat every {HEARTBEAT:g} s"
    return Finding("idle", Verdict.PROBLEM, f"{text} unless told otherwise", ADVICE["idle"], figures)
