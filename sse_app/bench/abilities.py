"""The abilities that not every server has, found out by trying them."""

import asyncio
import secrets

from sse_app.bench.load import Load
from sse_app.bench.publish import Poster, dial
from sse_app.bench.target import Target
from sse_app.bench.wire import Answers, event_data, marker, request
from sse_app.bench.witness import Witness, witness

NO_BATCHES, NO_RESUME = "no batches", "no resume"


async def inability(load: Load, target: Target) -> str | None:
    """Return what the server cannot do of this load, in the words of its table, or None when it can do all. Raises
    `OSError` when it is out of reach.
    """
    if load.batch == 1:
        return None
    poster = await dial(target, Answers(), load.patience)
    try:
        async with witness(target, load.token) as stream:
            return None if await _takes_batches(load, target, poster, stream) else NO_BATCHES
    finally:
        poster.close()


async def _takes_batches(load: Load, target: Target, poster: Poster, stream: Witness) -> bool:
    """Return True when a POST of two lines becomes two events, rather than one of two lines."""
    run = secrets.token_hex(2)
    lines = [event_data(run, number, 0, load.data_size) for number in (1, 2)]
    try:
        answered = await poster.post(request(target.publish(load.key, several=True), lines))
        if not 200 <= answered < 300:
            return False
        async with asyncio.timeout(load.patience):
            events = await stream.until(marker(run, 2))
    except OSError:  # a timeout is one
        return False
    return sum(f"@{run}.".encode() in event for event in events) == 2
