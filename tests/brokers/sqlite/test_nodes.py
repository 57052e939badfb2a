"""The processes that share a log: they find each other, count each other's subscribers, and leave nothing behind."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from sse_app.brokers.sqlite.nodes import LOOPBACK, Node, Nodes

PATIENCE = 20  # seconds for a process to start

LIVES_ON = """
import sys
from pathlib import Path
from sse_app.brokers.sqlite.nodes import Node, Nodes
nodes = Nodes(Path(sys.argv[1]))
nodes.join(7)
nodes.write(Node(7, 3))
print("joined", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "hub.db"


@pytest.fixture
def nodes(database: Path) -> Iterator[Nodes]:
    with closing(Nodes(database)) as nodes:
        yield nodes


def files(database: Path) -> list[str]:
    return os.listdir(f"{database}-nodes")


def test_alone_there_are_no_others(nodes: Nodes, database: Path) -> None:
    assert nodes.others() == []
    nodes.join(1)
    assert nodes.others() == []
    assert len(files(database)) == 1


def test_others_are_known_with_their_subscribers_until_they_leave(nodes: Nodes, database: Path) -> None:
    with closing(Nodes(database)) as other:
        other.join(8)
        assert nodes.others() == [Node(8, 0)], "also who only publishes knows them"
        nodes.join(9)
        assert list(other.exchange(Node(8, 1_000_000)).values()) == [Node(9, 0)]
        assert nodes.others() == [Node(8, 1_000_000)]
        other.write(Node(8, 5))
        assert nodes.others() == [Node(8, 5)]
    assert nodes.others() == []
    assert len(files(database)) == 1


def test_who_never_joined_tells_nothing_and_leaves_nothing(nodes: Nodes, database: Path) -> None:
    with closing(Nodes(database)) as other:
        other.write(Node(1, 1))
        other.wake()
    assert nodes.others() == []
    assert not Path(f"{database}-nodes").exists()


def test_what_a_killed_process_left_is_cleared_away(nodes: Nodes, database: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", LIVES_ON, str(database)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "joined\n"
        assert nodes.others() == [Node(7, 3)]
        process.send_signal(signal.SIGKILL)
        process.wait(PATIENCE)
        assert len(files(database)) == 1, "it had no time to clean up"
        assert nodes.others() == []
        assert files(database) == []
    finally:
        process.kill()
        process.communicate()


def test_a_file_that_is_still_being_made_is_left_alone(nodes: Nodes, database: Path) -> None:
    nodes.join(1)
    unlocked = Path(f"{database}-nodes", ".half")
    unlocked.touch()
    assert nodes.others() == []
    assert unlocked.exists()


def wakeable() -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    listener.bind((LOOPBACK, 0))
    listener.settimeout(PATIENCE)
    return listener


def test_the_others_are_woken(nodes: Nodes, database: Path) -> None:
    with wakeable() as one, wakeable() as two, closing(Nodes(database)) as first, closing(Nodes(database)) as second:
        first.join(one.getsockname()[1])
        second.join(two.getsockname()[1])
        nodes.wake()
        assert one.recv(10) == two.recv(10) == b""
        first.wake()
        assert two.recv(10) == b""


def test_nobody_there_to_be_woken_is_no_error(nodes: Nodes, database: Path) -> None:
    with closing(Nodes(database)) as other:
        with wakeable() as listener:
            port = listener.getsockname()[1]
        other.join(port)
        for _ in range(3):
            nodes.wake()  # a closed port answers with an error at the next datagram


def test_waking_needs_no_free_descriptor(nodes: Nodes, database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> int:
        raise OSError(24, "Too many open files")

    with wakeable() as listener, closing(Nodes(database)) as other:
        other.join(listener.getsockname()[1])
        nodes.wake()
        listener.recv(1)
        monkeypatch.setattr(os, "open", refused)
        nodes._refreshed = float("-inf")
        nodes.wake()
        assert listener.recv(1) == b"", "those that are known are still woken"


async def test_any_thread_may_look(nodes: Nodes, database: Path) -> None:
    with closing(Nodes(database)) as other:
        other.join(3)
        found = await asyncio.gather(*(asyncio.to_thread(nodes.others) for _ in range(20)))
        assert found == [[Node(3, 0)]] * 20
