"""The lines that a server logs of requests: never a query."""

import logging

import pytest

from sse_app.server import logs
from sse_app.server.logs import WithoutQuery


@pytest.mark.parametrize(
    ("target", "shown"),
    [
        ("/events", "/events"),
        ("/events?ticket=s3cret", "/events?..."),
        ("/events?", "/events?..."),
        ("/a?b?ticket=s3cret", "/a?..."),
        ("/%3Fa", "/%3Fa"),
    ],
)
def test_the_access_log_shows_no_query(target: str, shown: str) -> None:
    arguments = ("192.0.2.1:1000", "GET", target, "1.1", 200)
    record = logging.LogRecord("uvicorn.access", logging.INFO, "", 0, '%s - "%s %s HTTP/%s" %d', arguments, None)
    assert WithoutQuery().filter(record)
    assert record.getMessage() == f'192.0.2.1:1000 - "GET {shown} HTTP/1.1" 200'


def test_uvicorns_settings_stay_as_they_are() -> None:
    logs.config()["handlers"]["access"].clear()
    assert logs.config()["handlers"]["access"]["formatter"] == "access"
