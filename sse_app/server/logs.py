"""The log of a server's requests: no query, which may hold what nobody else may read, and no line for each bad one."""

import asyncio
import logging
from copy import deepcopy
from typing import Any

from sse_app.server.uvicorn_internals import LOGGING_CONFIG

logger = logging.getLogger("sse_app")

WINDOW = 10.0  # seconds for which one line is enough of a kind of refusal


class Refusals:
    """Log what is no request: a line at once, then for each reason one in WINDOW seconds with how many more there were.

    Reasons are codes, of which there are few. What was sent is never shown.
    """

    def __init__(self) -> None:
        self._more: dict[str, tuple[int, str]] = {}  # by reason: how many since its line, and whose the last was

    def note(self, reason: str, client: tuple[str, int] | None) -> None:
        """``client`` is the peer's address. Called in the event loop."""
        host, port = client or ("a socket without an address", 0)
        peer = f"[{host}]:{port}" if ":" in host else f"{host}:{port}" if client else host
        if reason in self._more:
            count, _ = self._more[reason]
            self._more[reason] = count + 1, peer
            return
        logger.warning("refused a request from %s: %s", peer, reason)
        self._begin(reason)

    def _begin(self, reason: str) -> None:
        self._more[reason] = 0, ""
        asyncio.get_running_loop().call_later(WINDOW, self._tell, reason)

    def _tell(self, reason: str) -> None:
        count, peer = self._more.pop(reason)
        if count:
            logger.warning("refused %d more in %g s, the last from %s: %s", count, WINDOW, peer, reason)
            self._begin(reason)


class WithoutQuery(logging.Filter):
    """For uvicorn's access log: the path as it is, and of a query only that there was one."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple) and len(record.args) == 5:
            client, method, target, version, status = record.args
            path, question, _ = str(target).partition("?")
            record.args = client, method, f"{path}?..." if question else path, version, status
        return True


def config() -> dict[str, Any]:
    """uvicorn's, with that in it."""
    changed = deepcopy(LOGGING_CONFIG)
    changed["filters"] = {"query": {"()": WithoutQuery}}
    changed["handlers"]["access"]["filters"] = ["query"]
    return changed
