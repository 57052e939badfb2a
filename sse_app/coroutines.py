"""Coroutines that others hand over: what is one, and how to step one outside of the event loop's turns."""

import inspect
from collections.abc import Awaitable, Generator
from functools import partial
from typing import Any, Generic, TypeVar

T = TypeVar("T")


def is_async(function: object) -> bool:
    """Return True for what returns a coroutine when it is called. An object with an async ``__call__`` does so too."""
    return any(map(inspect.iscoroutinefunction, (function, type(function).__call__)))


class Suspended(Generic[T]):
    """The rest of a coroutine that was stepped once: awaits the future it is suspended on, then runs it to its end."""

    def __init__(self, waiting: Any, steps: Generator[Any, Any, T]) -> None:
        self._waiting, self._steps = waiting, steps

    def __await__(self) -> Generator[Any, Any, T]:
        while True:
            try:
                given = yield self._waiting
                step = partial(self._steps.send, given)
            except BaseException as error:
                step = partial(self._steps.throw, error)
            try:
                self._waiting = step()
            except StopIteration as end:
                result: T = end.value
                return result


def step(awaitable: Awaitable[T]) -> T | Suspended[T]:
    """Step an awaitable once. Return its result if that was its end, else the rest, which has to be awaited."""
    steps = awaitable.__await__()
    try:
        return Suspended(next(steps), steps)
    except StopIteration as end:
        result: T = end.value
        return result
