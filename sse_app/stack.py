"""Tools for a context manager that owns a stack with a task group: one entry at a time, errors as they were raised."""

import asyncio
from contextlib import AsyncExitStack
from types import TracebackType

# The error of a broker that is entered a second time before it was left.
OPEN = (
    "The broker is open already. A hub opens and closes its broker itself: "
    "give it one that is not open, or make another with open_broker for what runs beside the hub."
)


class NonReentrant:
    """A context that can be entered again only after it was left. The tasks of its owner, started twice, would disturb
    each other.
    """

    def __init__(self, complaint: str) -> None:
        self._complaint = complaint
        self._entered = False

    def __enter__(self) -> None:
        if self._entered:
            raise RuntimeError(self._complaint)
        self._entered = True

    def __exit__(self, *error: object) -> None:
        self._entered = False


async def close_stack(
    stack: AsyncExitStack, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
) -> None:
    """Close the stack in its owner's ``__aexit__``, whose other arguments these are.

    A cancellation is passed on to the stack, since its task group may have caused it when a task failed. Any other
    error comes from the caller's own block; the task group would wrap it in an exception group, so it is not passed on.
    """
    if isinstance(error, asyncio.CancelledError):
        await stack.__aexit__(kind, error, trace)
    else:
        await stack.aclose()
