"""The commands as a user runs them: in a process, with pipes or on a terminal."""

import os
import pty
import select
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from tests.support.peers import reserved_port
from tests.test_cli import COMMAND, PATIENCE, environment

Process = subprocess.Popen[str]


def sse_app(*arguments: str, input: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [*COMMAND, *arguments],
        input=input,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


@contextmanager
def started(*arguments: str, stdin: int | IO[str] | None = subprocess.DEVNULL, **variables: str) -> Iterator[Process]:
    """A command that is still running, with its output in pipes."""
    with subprocess.Popen(
        [*COMMAND, *arguments],
        env=environment(**variables),
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def nobody() -> Iterator[str]:
    """A URL where nothing listens, and nothing else can begin to listen meanwhile."""
    with reserved_port() as port:
        yield f"http://127.0.0.1:{port}"


def lines_of(stream: IO[str] | None, number: int) -> list[str]:
    """Read so many lines, and return them without their ends."""
    assert stream is not None
    return [stream.readline().rstrip("\n") for _ in range(number)]


class Terminal:
    """A process on a terminal: its stdout and stderr together, and the keyboard."""

    def __init__(self, process: subprocess.Popen[bytes], end: int) -> None:
        self.process = process
        self.shown = ""
        self._end = end

    def type(self, typed: bytes) -> None:
        os.write(self._end, typed)

    def until(self, text: str) -> None:
        """Wait until this is shown, after all that was waited for before."""
        seen = len(self.shown)
        while text not in self.shown[seen:]:
            assert self._read(), self.shown

    def to_the_end(self) -> int:
        while self._read():
            pass
        return self.process.wait(PATIENCE)

    def _read(self) -> bool:
        ready, _, _ = select.select([self._end], [], [], PATIENCE)
        assert ready, self.shown
        try:
            piece = os.read(self._end, 65_536)
        except OSError:  # EIO: no process has the other end open any more
            piece = b""
        self.shown += piece.decode(errors="replace").replace("\r\n", "\n")
        return bool(piece)


@contextmanager
def terminal(*arguments: str, stdin: IO[bytes] | None = None, **variables: str) -> Iterator[Terminal]:
    """A command on a terminal of 200 columns. Its stdin may be a file instead."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, *arguments],
        env=environment(TERM="xterm-256color", COLUMNS="200", **variables),
        stdin=stdin or theirs,
        stdout=theirs,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        try:
            yield Terminal(process, ours)
        finally:
            process.kill()
            os.close(ours)


def on_a_terminal(
    *arguments: str, typed: bytes = b"", stdin: IO[bytes] | None = None, **variables: str
) -> tuple[int, str]:
    """Run a command on a terminal. Return the exit status, and all that was shown."""
    with terminal(*arguments, stdin=stdin, **variables) as screen:
        screen.type(typed)
        status = screen.to_the_end()
    return status, screen.shown
