"""The sockets that a process listens on."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from sse_app.listening import Listener, listeners


def found(listening: socket.socket) -> list[Listener]:
    return [listener for listener in listeners() if listener.descriptor == listening.fileno()]


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    """A listening socket, non-blocking as those of a server on an event loop."""
    with socket.create_server(("127.0.0.1", 0)) as made:
        made.setblocking(False)
        yield made


def test_a_listening_socket_is_found_by_the_address_of_its_connections(listening: socket.socket) -> None:
    port = listening.getsockname()[1]
    [listener] = found(listening)
    assert listener.serves(("127.0.0.1", port))
    assert listener.serves(["::1", str(port)])  # the form of granian and daphne
    assert not listener.serves(("127.0.0.1", port + 1))
    assert not listener.serves(("/run/app.sock", None))
    assert listener.open
    listening.close()
    assert not listener.open


def test_a_unix_socket_is_found_by_its_path(tmp_path: Path) -> None:
    path = str(tmp_path / "app.sock")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.setblocking(False)
        listening.bind(path)
        listening.listen()
        [listener] = found(listening)
        assert listener.serves((path, None))
        assert not listener.serves(("127.0.0.1", 8000))


def test_a_descriptor_that_another_socket_has_now_is_no_open_listener(listening: socket.socket) -> None:
    [listener] = found(listening)
    with socket.socket() as other:
        os.dup2(other.fileno(), listening.fileno())
        assert not listener.open


def test_what_does_not_listen_on_a_loop_is_none_and_stays_as_it_is(listening: socket.socket) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as of_a_thread,
        socket.create_connection(listening.getsockname()) as client,
        socket.socket(type=socket.SOCK_DGRAM) as datagrams,
    ):
        client.setblocking(False)
        datagrams.setblocking(False)
        before = socket.getdefaulttimeout()
        socket.setdefaulttimeout(5)
        try:
            assert not [listener for other in (of_a_thread, client, datagrams) for listener in found(other)]
            assert found(listening)
        finally:
            socket.setdefaulttimeout(before)
        assert os.get_blocking(of_a_thread.fileno())
