"""The load goes to this machine and nowhere else."""

import socket
import sys

import pytest

from sse_app.bench.target import PORTS_PER_SOURCE, resolve, source
from sse_app.errors import BenchRefused


@pytest.mark.parametrize("url", ["http://192.0.2.1:8000", "http://[2001:db8::1]/", "http://0.0.0.0:8000"])
def test_other_machines_are_not_loaded(url: str) -> None:
    with pytest.raises(BenchRefused, match="not this machine"):
        resolve(url)


def test_a_name_is_judged_by_where_it_leads(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 80))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(BenchRefused, match=r"192\.0\.2\.1"):
        resolve("http://localhost")


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("http://127.0.0.1:8000/", ("127.0.0.1", 8000, "127.0.0.1:8000", "")),
        ("http://127.9.9.9/live/", ("127.9.9.9", 80, "127.9.9.9", "/live")),
        ("http://[::1]:81", ("::1", 81, "[::1]:81", "")),
    ],
)
def test_this_machine_is_resolved(url: str, target: tuple[str, int, str, str]) -> None:
    assert resolve(url) == target


@pytest.mark.parametrize("url", ["https://127.0.0.1", "127.0.0.1:8000", "http://", "http://127.0.0.1:port", "ftp://x"])
def test_what_is_no_plain_http_url_is_refused(url: str) -> None:
    with pytest.raises(BenchRefused):
        resolve(url)


def test_requests_name_host_path_and_key() -> None:
    target = resolve("http://127.0.0.1:81/live")
    assert target.subscribe(None).startswith(b"GET /live/events HTTP/1.1\r\nHost: 127.0.0.1:81\r\n")
    assert b"Authorization" not in target.subscribe(None)
    assert b"81\r\nAuthorization: Bearer t0ken\r\nAccept: text/event-stream\r\n" in target.subscribe("t0ken")
    assert b"Last-Event-ID" not in target.subscribe(None)
    assert b"\r\nLast-Event-ID: a-7\r\n" in target.subscribe(None, "a-7")
    request = target.publish("k3y")
    assert request.startswith(b"POST /live/broadcast HTTP/1.1\r\nHost: 127.0.0.1:81\r\nAuthorization: Bearer k3y\r\n")
    assert request.endswith(b"\r\nContent-Length: ")
    assert b"Authorization" not in target.publish(None)
    assert b"Content-Type: application/json\r\n" in request
    assert b"Content-Type: application/x-ndjson\r\n" in target.publish(None, several=True)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have but one loopback address")
def test_sources_are_spread_only_where_they_must_be_and_can_be() -> None:
    many = PORTS_PER_SOURCE + 1
    assert source(7, PORTS_PER_SOURCE, "127.0.0.1") is None
    assert source(7, many, "::1") is None
    assert source(7, many, "192.0.2.1") is None
    assert [source(n, many, "127.0.0.1") for n in (0, 1, 2)] == [("127.0.0.1", 0), ("127.0.0.2", 0), ("127.0.0.1", 0)]
