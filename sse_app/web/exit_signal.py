"""sse-starlette's exit signal: how it sees that a server is being stopped, and how that is switched off.

All that this package uses of sse-starlette beside ``EventSourceResponse`` itself stands here.
``tests/web/test_exit_signal.py`` names what a new version moved.
"""

from sse_starlette import EventSourceResponse
from sse_starlette.sse import AppStatus


async def stopped() -> None:
    """Return once a signal has told the server of this process to stop, in the ways that sse-starlette knows."""
    await EventSourceResponse._listen_for_exit_signal()


def leave_streams_open() -> None:
    """Keep a SIGTERM from ending the streams of this process: they would be cut before they are drained."""
    AppStatus.disable_automatic_graceful_drain()  # type: ignore[no-untyped-call]
