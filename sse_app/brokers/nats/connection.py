"""A connection to a NATS server that never reconnects: when it breaks, another one is made.

When nats-py reconnects, it sends what it was given meanwhile, long after publishers were told that it failed.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import nats.errors
from nats.aio.client import Client
from nats.js.errors import APIError, NoStreamResponseError, ServiceUnavailableError

from sse_app.brokers.nats.internals import abort, demands_tls, fail_waiting
from sse_app.brokers.nats.url import Address

logger = logging.getLogger("sse_app")

CONNECT = 2  # seconds for each of the servers
CLOSE = 0.5  # seconds for each of the two steps of closing

# The errors of nats-py when a connection is gone, or a request is refused.
FAILURES = (nats.errors.Error, OSError)


@asynccontextmanager
async def connected(address: Address, on_close: Callable[[], object]) -> AsyncIterator[Client]:
    """Connect to one of the servers; ``on_close`` is called when the connection breaks. Raises FAILURES without one."""
    client = Client()
    forbidden = False

    async def note(error: Exception) -> None:
        """Log an error. What our user may not do has no other sign than answers that do not come."""
        nonlocal forbidden
        if not forbidden and "permissions violation" in str(error).lower():
            forbidden = True
            logger.warning("NATS forbids something that this hub needs, and maybe more: %s", reason(error))
        await _note(error)

    def check_tls() -> None:
        if address.demands_tls and not demands_tls(client):
            raise nats.errors.SecureConnRequiredError

    def secret(value: str | None) -> Callable[[], str] | None:
        """Return a callback that nats-py calls once the server has said if it speaks TLS. It refuses to give a secret
        without the TLS that the URL demands."""

        def reveal() -> str:
            check_tls()
            return value or ""

        return None if value is None else reveal

    async def closed() -> None:
        fail_waiting(client)
        on_close()

    try:
        try:
            async with asyncio.timeout(CONNECT * len(address.servers) + 1):
                await client.connect(
                    address.servers,
                    error_cb=note,
                    closed_cb=closed,
                    name=f"sse-app {address.name}",
                    allow_reconnect=False,
                    max_reconnect_attempts=1,
                    reconnect_time_wait=0,
                    connect_timeout=CONNECT,
                    pending_size=0,  # no write waits for a connection or a socket: log.py checks pending_data_size
                    tls=address.tls,
                    user=secret(address.user),
                    password=secret(address.password),
                    token=secret(address.token),
                    user_credentials=address.creds,
                )
        except FAILURES:
            raise
        except Exception as error:  # nats-py and nkeys raise all kinds for a peer or a file that is not of NATS
            what = ", or the file that creds names holds no credentials" if address.creds else ""
            raise nats.errors.Error(f"it does not speak NATS{what}") from error
        check_tls()
        yield client
    finally:
        await _close(client)


async def _close(client: Client) -> None:
    """Close a connection and end its tasks, within twice CLOSE seconds.

    Alone, nats-py waits for ever until a dead connection has sent what was written, and for the end of a connection
    whose TLS failed; and nobody would retrieve the error of one of its tasks. When its own close has begun and its
    task is ended here, it does not call back: who waits for an answer is told here.
    """
    if client.is_connected:
        with suppress(*FAILURES):  # the last messages arrive if the server answers
            async with asyncio.timeout(CLOSE):
                await client.flush()
    tasks = abort(client)
    with suppress(*FAILURES):
        async with asyncio.timeout(CLOSE):
            await client.close()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    fail_waiting(client)


async def _note(error: Exception) -> None:
    """Log an error in one line: nats-py would log a traceback, and callers get their errors themselves."""
    logger.debug("nats: %s", reason(error))


def reason(error: Exception) -> str:
    """Return an error in one line for people, without secrets."""
    match error:
        case nats.errors.NoServersError() | nats.errors.TimeoutError() | TimeoutError():
            return "it cannot be reached, or does not answer"
        case ServiceUnavailableError(err_code=None) | NoStreamResponseError() | nats.errors.NoRespondersError():
            return "JetStream is not there; is it enabled?"
        case nats.errors.OutboundBufferLimitError():  # nothing may wait for a connection
            return "the connection was lost"
        case nats.errors.SecureConnRequiredError():
            return "it does not offer TLS, which tls:// demands"
        case APIError():
            return f"{error.description} ({error.err_code})"
        case _:
            return str(error).removeprefix("nats: ") or type(error).__name__
