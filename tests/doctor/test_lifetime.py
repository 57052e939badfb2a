"""The cause of a stream's end follows from the times of its bytes."""

import httpx
import pytest

from sse_app.doctor.finding import Verdict
from sse_app.doctor.lifetime import idle
from sse_app.doctor.stream import Arrival, Stream
from sse_app.doctor.visit import Visit
from sse_app.errors import NotChecked
from sse_app.events import Event

EVENT_STREAM = httpx.Response(200, headers={"Content-Type": "text/event-stream"})


def stream(*beats: float, closed: float | None = None, bye: bool = False) -> Stream:
    """A stream with its welcome at 0 s, and heartbeats at these times."""
    one = Stream()
    one.response, one.answered = EVENT_STREAM, 0.0
    one.arrivals = [Arrival(0.0, Event("{}", "welcome"))] + [Arrival(9.0, Event("{}", "bye"))] * bye
    one.heartbeats, one.last_read = list(beats), max((0.0, *beats))
    if closed is not None:
        one.ended, one.closed = "", closed
    return one


@pytest.mark.parametrize(
    ("cut", "words", "who"),
    [
        (stream(closed=10.0), "cut after 10.0 s of silence", "nginx"),
        (stream(15.0, 30.0, closed=45.0), "cut after 15.0 s of silence", "nginx"),
        (stream(15.0, 30.0, closed=31.0), "cut after 31.0 s, 1.0 s after its last bytes", "hub"),
    ],
    ids=["before a heartbeat", "between two", "soon after one"],
)
async def test_a_limit_on_silence_is_told_from_one_on_the_whole(cut: Stream, words: str, who: str) -> None:
    visit = Visit("http://127.0.0.1:1")
    visit.first, visit.cuts = stream(), [cut]
    finding = await idle(visit)
    assert finding.verdict == Verdict.PROBLEM
    assert words in finding.measured
    assert who in finding.advice


async def test_a_stream_that_the_hub_ended_was_not_cut() -> None:
    visit = Visit("http://127.0.0.1:1")
    visit.first = stream(closed=9.0, bye=True)
    with pytest.raises(NotChecked, match="--idle 120"):
        await idle(visit)
