"""The private names of nats-py that we use, in one place; ``test_internals.py`` says which of them a version has moved.

nats-py has no public way to see what a server demands before its secrets are sent, to fail those who wait for answers
when a connection breaks, or to leave a dead connection at once.
"""

import asyncio

from nats.aio.client import Client
from nats.errors import TimeoutError as NoAnswer


def demands_tls(client: Client) -> bool:
    """Return True when the server has said that it speaks with TLS only."""
    return bool(client._server_info.get("tls_required"))


def fail_waiting(client: Client) -> None:
    """Fail all requests that wait for an answer: nats-py lets them wait until their deadline."""
    for answer in list(client._resp_map.values()):
        if not answer.done():
            answer.set_exception(NoAnswer())


def abort(client: Client) -> list[asyncio.Task[None]]:
    """Drop the connection with all that is still to be written, and return its tasks.

    nats-py forgets its tasks when the connection breaks while it is being closed.
    """
    client._pending.clear()
    client._pending_data_size = 0
    if (writer := getattr(client._transport, "_io_writer", None)) is not None:
        writer.transport.abort()
    for subscription in list(client._subs.values()):
        subscription._stop_processing()
    return [task for task in (client._reading_task, client._flusher_task, client._ping_interval_task) if task]
