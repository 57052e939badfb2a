"""A connection to a NATS server that is never mended: when it breaks, another one is made.

nats-py mends its own, and then sends what it was given meanwhile, long after we have answered that it failed.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import nats.errors
from nats.aio.client import Client
from nats.js.errors import APIError, NoStreamResponseError, ServiceUnavailableError

from sse_app.brokers.nats.internals import abort, demands_tls, fail_waiting
from sse_app.brokers.nats.url import Place

logger = logging.getLogger("sse_app")

CONNECT = 2  # seconds for each of the servers
CLOSE = 0.5  # seconds; then all of it that matters is done

# What nats-py raises when a connection is gone, or a question is refused.
FAILURES = (nats.errors.Error, OSError)


@asynccontextmanager
async def connected(place: Place, on_close: Callable[[], object]) -> AsyncIterator[Client]:
    """Connect to one of the servers; ``on_close`` is called when the connection breaks. Raises FAILURES without one."""
    client = Client()

    def check_tls() -> None:
        if place.demands_tls and not demands_tls(client):
            raise nats.errors.SecureConnRequiredError

    def secret(value: str | None) -> Callable[[], str] | None:
        """Return a callback: nats-py asks for a secret once the server has spoken, and gets none without the TLS that
        the URL demands."""

        def tell() -> str:
            check_tls()
            return value or ""

        return None if value is None else tell

    async def closed() -> None:
        fail_waiting(client)
        on_close()

    try:
        try:
            async with asyncio.timeout(CONNECT * len(place.servers) + 1):
                await client.connect(
                    place.servers,
                    error_cb=_note,
                    closed_cb=closed,
                    name=f"sse-app {place.name}",
                    allow_reconnect=False,
                    max_reconnect_attempts=1,
                    reconnect_time_wait=0,
                    connect_timeout=CONNECT,
                    pending_size=0,  # nothing waits for the socket but what looks at pending_data_size itself
                    tls=place.tls,
                    user=secret(place.user),
                    password=secret(place.password),
                    token=secret(place.token),
                    user_credentials=place.creds,
                )
        except FAILURES:
            raise
        except Exception as error:  # what nats-py and nkeys make of other words than those of NATS, and of other files
            what = ", or the file that creds names holds no credentials" if place.creds else ""
            raise nats.errors.Error(f"it does not speak NATS{what}") from error
        check_tls()
        yield client
    finally:
        await _close(client)


async def _close(client: Client) -> None:
    """Close a connection and end its tasks, within CLOSE seconds.

    nats-py itself waits until all that was written has left, on a dead connection for ever, and for the end of one
    whose TLS failed; an error in one of its own tasks would be reported by nobody.
    """
    if client.is_connected:
        with suppress(*FAILURES):  # what was sent shall arrive, if it can
            async with asyncio.timeout(CLOSE):
                await client.flush()
    tasks = abort(client)
    with suppress(*FAILURES):
        async with asyncio.timeout(CLOSE):
            await client.close()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _note(error: Exception) -> None:
    """nats-py would log each with its trace; what matters of them is seen by whoever asks."""
    logger.debug("nats: %s", reason(error))


def reason(error: Exception) -> str:
    """One line for people, without what is secret."""
    match error:
        case nats.errors.NoServersError() | nats.errors.TimeoutError() | TimeoutError():
            return "it cannot be reached, or does not answer"
        case ServiceUnavailableError(err_code=None) | NoStreamResponseError() | nats.errors.NoRespondersError():
            return "JetStream is not there; is it enabled?"
        case nats.errors.OutboundBufferLimitError():  # of nothing that may wait without a connection
            return "the connection was lost"
        case nats.errors.SecureConnRequiredError():
            return "it does not offer TLS, which tls:// demands"
        case APIError():
            return f"{error.description} ({error.err_code})"
        case _:
            return str(error).removeprefix("nats: ") or type(error).__name__
