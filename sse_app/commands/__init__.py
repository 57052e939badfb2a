"""The commands, each in a module of its own, and what they share: exit statuses, and the options for their hub."""

import asyncio
import errno
import os
import stat
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from enum import IntEnum
from typing import Any

import click

from sse_app.errors import (
    BadInput,
    BenchFailed,
    BenchRefused,
    BrokerError,
    ConfigError,
    DoctorFailed,
    DoctorRefused,
    InvalidURL,
    Refused,
    SSEAppError,
    Unreachable,
)
from sse_app.quantities import duration, number, whole

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)
DEFAULT_URL = "http://127.0.0.1:8000"
PIPE_CLOSED = "the reader of stdout has closed its pipe"


class Exit(IntEnum):
    """The exit statuses of every command, for scripts; ``docs/cli.md``."""

    DONE = 0
    FLAWED = 1  # done, but events were lost, a node did not answer, or the doctor found problems
    USAGE = 2  # wrong options or settings, or a publication that cannot be sent
    REFUSED = 3
    UNREACHABLE = 4  # no answer of a hub, a server or a broker
    UNWRITTEN = 5  # the output could not be written: a full disk, a closed stdout
    INTERRUPTED = 130  # the status that shells give to SIGINT


class Whole(click.IntRange):
    """A whole number as an option's value, in ASCII digits alone: click's own takes all that ``int`` takes."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(_read(self, whole, value, param, ctx), param, ctx)


class Number(click.FloatRange):
    """A number as an option's value, in ASCII digits with or without a point: click's own takes all that ``float``
    takes.
    """

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(_read(self, number, value, param, ctx), param, ctx)


class Seconds(click.FloatRange):
    """A duration as an option's value, in seconds or with a unit, as settings have it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            seconds = duration(value) if isinstance(value, str) else value
        except ValueError:
            self.fail(f"{value!r} is not a duration such as 90, 90s, 15m, 24h or 7d.", param, ctx)
        return super().convert(seconds, param, ctx)


def _read(
    kind: Whole | Number,
    read: Callable[[str], float],
    value: Any,
    param: click.Parameter | None,
    ctx: click.Context | None,
) -> Any:
    if not isinstance(value, str):
        return value  # the default
    try:
        return read(value)
    except ValueError:
        kind.fail(
            f"{value!r} is not a number in plain digits, such as {8 if isinstance(kind, Whole) else 2.5}.", param, ctx
        )


url_option = click.option(
    "--url",
    envvar="SSE_APP_URL",
    show_envvar=True,
    default=DEFAULT_URL,
    show_default=True,
    help="Where the hub is; with the path, if it is mounted below one.",
)


def run(work: Callable[[], Coroutine[Any, Any, Exit]]) -> None:
    """Run a command to its exit status."""
    with exits():
        status = asyncio.run(work())
    raise SystemExit(status)


@contextmanager
def exits() -> Iterator[None]:
    """Turn an error into one line on stderr and its exit status, and Ctrl+C into its own."""
    try:
        yield
    except KeyboardInterrupt:
        raise SystemExit(Exit.INTERRUPTED) from None
    except SSEAppError as error:
        print_error(str(error))
        raise SystemExit(status_of(error)) from None


def print_error(text: str) -> None:
    """Print a line on stderr, if that can be written."""
    with suppress(OSError):
        click.echo(f"sse-app: {printable(text)}", err=True)


def open_closed_streams() -> None:
    """Open /dev/null in place of each standard stream that was closed (``>&-``, some daemons): else the next socket
    gets its number, and is written to.

    Writing to a closed stdout then fails, as on a full disk. Writing to a closed stderr succeeds: nobody reads it.
    """
    for standard, access in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(standard)
        except OSError:
            os.open(os.devnull, access)  # gets the lowest free number, which is this one
    sys.stdin = sys.stdin or os.fdopen(0, closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


@contextmanager
def output_written() -> Iterator[None]:
    """Write all output of a command before it ends.

    Output that cannot be written gives one line on stderr and its own exit status. A reader that has closed its pipe,
    as ``head`` does, is no failure.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        discard_output()
        raise SystemExit(Exit.DONE) from None
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        discard_output()
        print_error(f"the output cannot be written: {error.strerror}.")
        raise SystemExit(Exit.UNWRITTEN) from None


def discard_output() -> None:
    """Drop the output that is still buffered: the interpreter would fail to write it at its end, and say so."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def status_of(error: SSEAppError) -> Exit:
    """Return the exit status for an error."""
    match error:
        case BadInput() | ConfigError() | InvalidURL() | BenchRefused() | DoctorRefused():
            return Exit.USAGE
        case Refused():
            return Exit.REFUSED
        case Unreachable() | BrokerError() | BenchFailed() | DoctorFailed():
            return Exit.UNREACHABLE
    return Exit.FLAWED


async def until_stdout_closes(work: Coroutine[Any, Any, Exit]) -> Exit:
    """Do the work. Raise BrokenPipeError as soon as the reader of a pipe on stdout closes it; without this, only the
    next write would notice.
    """
    out, loop = sys.stdout.fileno(), asyncio.get_running_loop()
    task = asyncio.ensure_future(work)
    if stat.S_ISFIFO(os.fstat(out).st_mode):
        loop.add_reader(out, task.cancel, PIPE_CLOSED)  # a pipe's writing end gets readable by an error alone
    try:
        return await task
    except asyncio.CancelledError as cancelled:
        if cancelled.args == (PIPE_CLOSED,):
            raise BrokenPipeError from None
        raise
    finally:
        loop.remove_reader(out)


def printable(text: str) -> str:
    """Return a line for a terminal without control characters: what others publish must not steer it."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
