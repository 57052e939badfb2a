"""Entering once, and leaving, a stack of contexts that has a task group in it."""

import asyncio
from contextlib import AsyncExitStack
from types import TracebackType

# What a broker says that is entered twice.
OPEN = (
    "The broker is open already. A hub opens and closes its broker itself: "
    "give it one that is not open, or make another with open_broker for what runs beside the hub."
)


class Alone:
    """A context that can be entered again only when it was left: tasks of two at once would get in each other's way."""

    def __init__(self, complaint: str) -> None:
        self._complaint = complaint
        self._entered = False

    def __enter__(self) -> None:
        if self._entered:
            raise RuntimeError(self._complaint)
        self._entered = True

    def __exit__(self, *error: object) -> None:
        self._entered = False


async def leave(
    stack: AsyncExitStack, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
) -> None:
    """Close it as the ``__aexit__`` of its owner, which was given the rest.

    A cancellation is passed on: perhaps it is by the task group, because one of its tasks failed. Any other error is
    the caller's own, which the group would wrap in a group.
    """
    if isinstance(error, asyncio.CancelledError):
        await stack.__aexit__(kind, error, trace)
    else:
        await stack.aclose()
