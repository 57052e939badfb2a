"""The log of refused requests, without a line for each of them."""

import asyncio
import logging

logger = logging.getLogger("sse_app")

WINDOW = 10.0  # seconds; in them one line about each reason is enough


def peer_of(client: tuple[str, int] | None) -> str:
    """Return the peer of a connection as a line of the log names it."""
    if client is None:
        return "a socket without an address"
    host, port = client
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Refusals:
    """A log of refused requests: the first of a reason is logged at once, then every WINDOW seconds how many more
    there were.

    The reasons are few, so the counts are too. The request itself is never shown.
    """

    def __init__(self) -> None:
        self._more: dict[str, tuple[int, str]] = {}  # by reason: the refusals since its last line, the last one's peer

    def note(self, reason: str, peer: str) -> None:
        """Log or count a refusal of a request from this peer. Called in the event loop."""
        if reason in self._more:
            count, _ = self._more[reason]
            self._more[reason] = count + 1, peer
            return
        logger.warning("refused a request from %s: %s", peer, reason)
        self._open_window(reason)

    def _open_window(self, reason: str) -> None:
        self._more[reason] = 0, ""
        asyncio.get_running_loop().call_later(WINDOW, self._close_window, reason)

    def _close_window(self, reason: str) -> None:
        count, peer = self._more.pop(reason)
        if count:
            logger.warning("refused %d more in %g s, the last from %s: %s", count, WINDOW, peer, reason)
            self._open_window(reason)
