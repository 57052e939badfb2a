"""A server's log of its requests, without their queries, which may hold secrets, and without a line for each request
that is refused.
"""

import asyncio
import logging
from copy import deepcopy
from typing import Any

from sse_app.server.uvicorn_internals import LOGGING_CONFIG

logger = logging.getLogger("sse_app")

WINDOW = 10.0  # seconds; in them one line about each reason is enough


class Refusals:
    """A log of refused requests: the first of a reason is logged at once, then every WINDOW seconds how many more
    there were.

    A reason is a code of a problem; the codes are few, so the counts are too. The request itself is never shown.
    """

    def __init__(self) -> None:
        self._more: dict[str, tuple[int, str]] = {}  # by reason: the refusals since its last line, the last one's peer

    def note(self, reason: str, client: tuple[str, int] | None) -> None:
        """Log or count a refusal. ``client`` is the peer's address. Called in the event loop."""
        host, port = client or ("a socket without an address", 0)
        peer = f"[{host}]:{port}" if ":" in host else f"{host}:{port}" if client else host
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


class WithoutQuery(logging.Filter):
    """A filter for uvicorn's access log that replaces a query by ``...``."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple) and len(record.args) == 5:
            client, method, target, version, status = record.args
            path, question, _ = str(target).partition("?")
            record.args = client, method, f"{path}?..." if question else path, version, status
        return True


def config() -> dict[str, Any]:
    """Return uvicorn's logging configuration, with WithoutQuery on its access log."""
    changed = deepcopy(LOGGING_CONFIG)
    changed["filters"] = {"query": {"()": WithoutQuery}}
    changed["handlers"]["access"]["filters"] = ["query"]
    return changed
