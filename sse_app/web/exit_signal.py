"""sse-starlette's exit signal, with which it notices that a server is being stopped, and the way to switch it off.

This package uses nothing else of sse-starlette but ``EventSourceResponse``. ``tests/web/test_exit_signal.py`` names the
members that a new version of sse-starlette has moved.
"""

from sse_starlette import EventSourceResponse
from sse_starlette.sse import AppStatus


async def stopped() -> None:
    """Return once a signal has told the server of this process to stop, in the ways that sse-starlette knows."""
    await EventSourceResponse._listen_for_exit_signal()


def leave_streams_open() -> None:
    """Keep sse-starlette from ending the streams of this process at SIGTERM, before the hub has drained them."""
    AppStatus.disable_automatic_graceful_drain()  # type: ignore[no-untyped-call]
