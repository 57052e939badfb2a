"""The files of a log in a file: who may read them, and what may not lie in their place."""

import os
import re
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from sse_app.brokers.sqlite.files import FILES, MARK, NODES
from sse_app.brokers.sqlite.nodes import Nodes
from sse_app.errors import LogUnavailable
from tests.support.sqlite_log import append, open_log

PORT = 9  # of a node that nobody wakes


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "hub.db"


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def modes(path: Path) -> dict[str, str]:
    """The permissions of a log in use, by what stands behind its name; those of nodes are all one."""
    file = open_log(path)
    append(file, "x")
    file.nodes.join(PORT)
    found = {
        each.name.removeprefix(path.name): oct(stat.S_IMODE(each.stat().st_mode))
        for each in path.parent.glob("hub.db*")
    }
    found["node"] = oct(stat.S_IMODE(next((path.parent / f"{path.name}{NODES}").iterdir()).stat().st_mode))
    file.close()
    return found


def all_of(file: str, directory: str) -> dict[str, str]:
    return {"": file, "-wal": file, "-shm": file, MARK: file, NODES: directory, "node": file}


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_the_files_of_a_new_log_are_its_users_alone_whatever_the_umask(path: Path, mask: int) -> None:
    with umask(mask):
        assert modes(path) == all_of("0o600", "0o700")


@pytest.mark.parametrize(
    ("given", "directory"), [(0o660, "0o770"), (0o640, "0o750"), (0o644, "0o755"), (0o600, "0o700")]
)
@pytest.mark.parametrize("mask", [0o000, 0o077])
def test_what_is_made_beside_a_database_that_is_there_gets_its_permissions(
    path: Path, mask: int, given: int, directory: str
) -> None:
    path.touch()
    path.chmod(given)
    with umask(mask):
        assert modes(path) == all_of(oct(given), directory)


def test_what_is_there_already_is_left_as_it_is(path: Path) -> None:
    modes(path)
    for suffix in ("", MARK):
        Path(f"{path}{suffix}").chmod(0o640)
    Path(f"{path}{NODES}").chmod(0o755)
    found = modes(path)
    assert (found[""], found[MARK], found[NODES]) == ("0o640", "0o640", "0o755")


def test_a_log_that_begins_anew_is_as_private(path: Path) -> None:
    path.write_text("no database" * 1_000)
    path.chmod(0o644)
    with umask(0):
        open_log(path, recover=True).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


# What may lie in their place


def make_socket(path: Path) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as made:
        made.bind(os.path.relpath(path))  # a name of at most 107 bytes


PLACES: dict[str, Callable[[Path], object]] = {
    "a directory": Path.mkdir,
    "a named pipe": os.mkfifo,
    "a link to nothing": lambda path: path.symlink_to(path.parent / "nothing"),
    "a socket": make_socket,
    "a device": lambda path: path.symlink_to("/dev/null"),
    "a file": Path.touch,
}


@pytest.mark.parametrize("kind", PLACES)
@pytest.mark.parametrize("suffix", [*FILES, NODES])
def test_what_cannot_be_the_logs_is_refused_by_its_name_and_nothing_is_made(path: Path, suffix: str, kind: str) -> None:
    if kind == ("a directory" if suffix == NODES else "a file"):
        return
    there = Path(f"{path}{suffix}")
    PLACES[kind](there)
    with pytest.raises(LogUnavailable) as refused:
        open_log(path)
    needed = "a directory" if suffix == NODES else "a file"
    assert str(refused.value) == f"{there} is {kind}. It has to be {needed}, or not there; or name another database."
    assert list(path.parent.iterdir()) == [there]


def test_a_link_to_a_log_is_followed(path: Path) -> None:
    real = path.parent / "real.db"
    real.touch(0o600)
    path.symlink_to(real)
    open_log(path).close()
    assert real.read_bytes().startswith(b"SQLite format 3")


def test_a_link_beside_a_log_is_not_written_through(path: Path) -> None:
    own, mark = path.parent / "own", Path(f"{path}{MARK}")
    own.write_text("mine")
    mark.symlink_to(own)
    with pytest.raises(LogUnavailable, match=f"^{re.escape(str(mark))} cannot be opened: "):
        open_log(path)
    assert own.read_text() == "mine"


@pytest.mark.parametrize("kind", PLACES)
def test_what_lies_among_the_nodes_keeps_nobody_waiting(path: Path, kind: str) -> None:
    file = open_log(path)
    file.nodes.join(PORT)
    PLACES[kind](Path(f"{path}{NODES}") / "other")
    with closing(Nodes(path)) as others:
        assert [node.port for node in others.others()] == [PORT]
    file.close()
