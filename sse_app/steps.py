"""Steps of work between which the event loop turns, so that nothing else waits for long.

Work whose amount subscribers and publishers decide is a generator. It tells a ``Budget`` what it has done, and yields
when that says so.
"""

import asyncio
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

T = TypeVar("T")


class Budget:
    """The work that is left of a step, in units of 1 to 2 us of CPU. A step has as many units as it was made with."""

    __slots__ = ("_left", "_step")

    def __init__(self, step: int) -> None:
        self._left = self._step = step

    def spend(self, units: int) -> bool:
        """Count work that was done. Return True when the step is full: then the loop is to turn."""
        self._left -= units
        if self._left > 0:
            return False
        self._left = self._step
        return True


def slices(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield at most ``size`` of them at a time."""
    iterator = iter(items)
    while part := list(islice(iterator, size)):
        yield part


async def outside_tasks(steps: Iterator[None]) -> None:
    """Run these steps from the event loop itself, one in a turn, none inside a task.

    A step may start a foreign server's ``send``. Middleware may wrap that in ``asyncio.timeout``, which cancels the
    current task: inside a task that would be the node's delivery. Outside of tasks such a ``send`` raises at once, and
    only its own stream ends.
    """
    loop = asyncio.get_running_loop()
    done = loop.create_future()

    def step() -> None:
        if done.done():
            return  # the hub has been stopped
        try:
            next(steps)
        except StopIteration:
            finish(None)
        except BaseException as error:
            finish(error)
        else:
            loop.call_soon(step)

    def finish(error: BaseException | None) -> None:
        if done.done():
            return  # the step itself has stopped the hub
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    loop.call_soon(step)
    await done
