"""Leaving a stack of contexts that has a task group in it."""

import asyncio
from contextlib import AsyncExitStack
from types import TracebackType


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
