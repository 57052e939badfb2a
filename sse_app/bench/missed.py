"""The events that are published while the clients of a `resume` are away."""

import asyncio
import re
import time

from sse_app.bench.load import Load
from sse_app.bench.publish import Poster, dial
from sse_app.bench.tally import Tally
from sse_app.bench.target import Target
from sse_app.bench.wire import Answers, event_data, find_markers, marker, request
from sse_app.bench.witness import witness

_ID = re.compile(rb"^id: ?(.+?)\r?$", re.MULTILINE)


async def publish_missed(load: Load, target: Target, tally: Tally) -> str | None:
    """Publish one event, and then those that are missed. Return the id that the first one came with.

    Return None when it has none, or when a client that names it does not get all that came after it. Raises `OSError`
    when the server is out of reach, or refuses an event.
    """
    poster = await dial(target, Answers(), load.patience)
    try:
        async with witness(target, load.token) as stream, asyncio.timeout(load.patience):
            first = await _publish(load, target, tally, poster)
            *_, event = await stream.until(marker(tally.run, first))
        for _ in range(load.behind):
            await _publish(load, target, tally, poster)
    except TimeoutError:
        raise ConnectionError(f"no event came for {load.patience:g} s") from None
    finally:
        poster.close()
    found = _ID.search(event)
    last = found[1].decode(errors="replace") if found else None
    return last if last is not None and await _brings_missed(load, target, tally, last) else None


async def _publish(load: Load, target: Target, tally: Tally, poster: Poster) -> int:
    number = tally.publish()
    data = event_data(tally.run, number, time.monotonic_ns(), load.data_size)
    status = await poster.post(request(target.publish(load.key), [data]))
    if not 200 <= status < 300:
        raise ConnectionError(f"POST answered {status}")
    return number


async def _brings_missed(load: Load, target: Target, tally: Tally, last: str) -> bool:
    """Return True when a client that has seen the event with this id gets all later ones."""
    try:
        async with asyncio.timeout(load.patience), witness(target, load.token, last) as stream:
            events = await stream.until(marker(tally.run, tally.published))
    except OSError:  # a timeout is one
        return False
    batch, _ = find_markers(tally.pattern, b"".join(events))
    first = tally.published - load.behind + 1
    return batch is not None and set(batch.numbers) == set(range(first, tally.published + 1))
