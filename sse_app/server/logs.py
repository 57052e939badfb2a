"""A server's log of its requests, without their queries, which may hold secrets."""

import logging
from copy import deepcopy
from typing import Any

from sse_app.server.uvicorn_internals import LOGGING_CONFIG


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
