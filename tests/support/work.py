"""The cost of something, counted in calls instead of in time."""

import sys
from collections.abc import Callable, Coroutine, Generator
from typing import TypeVar

T = TypeVar("T")


def work(function: Callable[[], object]) -> int:
    """Return how many functions it calls, in Python and in C: what it costs, on however busy a machine."""
    count = 0

    def on_event(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(on_event)
    try:
        function()
    finally:
        sys.setprofile(before)
    return count


def steps_of(coroutine: Coroutine[object, None, T] | Generator[None, None, T]) -> tuple[T, list[int]]:
    """Run to the end what waits for nothing but turns of the loop. Return its result, and the work of each step."""
    costs = list[int]()
    results = list[T]()

    def step() -> None:
        try:
            coroutine.send(None)
        except StopIteration as stop:
            results.append(stop.value)

    while not results:
        costs.append(work(step))
    return results[0], costs
