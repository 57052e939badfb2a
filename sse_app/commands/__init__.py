"""The commands, each in a module of its own, and what they share: how they end, and where their hub is."""

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
from sse_app.publication import check_publish_key
from sse_app.quantities import number, whole

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)
DEFAULT_URL = "http://127.0.0.1:8000"


class Exit(IntEnum):
    """The exit statuses of every command, for scripts to go by; ``docs/cli.md``."""

    DONE = 0
    FLAWED = 1  # done, and not all is well: events were lost, a doctor found problems
    USAGE = 2  # wrong options and settings, and what cannot be sent
    REFUSED = 3
    UNREACHABLE = 4  # a hub, a server, a broker
    UNWRITTEN = 5  # what there is to say: a full disk, a closed stdout
    INTERRUPTED = 130  # as shells say it of SIGINT


class Whole(click.IntRange):
    """An option's whole number, in ASCII digits: click's own reads what ``int`` reads."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(_read(self, whole, value, param, ctx), param, ctx)


class Number(click.FloatRange):
    """An option's number, in ASCII digits with or without a point: click's own reads what ``float`` reads."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(_read(self, number, value, param, ctx), param, ctx)


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


def _publish_key(context: click.Context, option: click.Parameter, given: str | None) -> str | None:
    try:
        return check_publish_key(given)
    except ConfigError as error:
        raise click.BadParameter(str(error)) from None


publish_key_option = click.option(
    "--publish-key",
    envvar="SSE_APP_PUBLISH_KEY",
    show_envvar=True,
    callback=_publish_key,
    help="What the hub asks publishers for.",
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
        tell(str(error))
        raise SystemExit(status_of(error)) from None


def tell(text: str) -> None:
    """A line on stderr, if that can be written."""
    with suppress(OSError):
        click.echo(f"sse-app: {printable(text)}", err=True)


def open_closed_streams() -> None:
    """Put something where a standard stream was closed (``>&-``, some daemons): the next connection would be stdout.

    What is written to a closed stdout fails, as on a full disk; nobody misses what is said on a closed stderr.
    """
    for standard, access in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(standard)
        except OSError:
            os.open(os.devnull, access)  # the lowest number that is free
    sys.stdin = sys.stdin or os.fdopen(0, closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


@contextmanager
def output_written() -> Iterator[None]:
    """Around a command: all that it has said is written. If it cannot be, that is the exit status, and one line; that
    nobody reads any more, as behind ``head``, is no failure.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        forget_output()
        raise SystemExit(Exit.DONE) from None
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        forget_output()
        tell(f"what there is to say cannot be written: {error.strerror}.")
        raise SystemExit(Exit.UNWRITTEN) from None


def forget_output() -> None:
    """Drop what is still buffered: it has nowhere to go, and the interpreter would complain of it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def status_of(error: SSEAppError) -> Exit:
    match error:
        case BadInput() | ConfigError() | InvalidURL() | BenchRefused() | DoctorRefused():
            return Exit.USAGE
        case Refused():
            return Exit.REFUSED
        case Unreachable() | BrokerError() | BenchFailed() | DoctorFailed():
            return Exit.UNREACHABLE
    return Exit.FLAWED


async def while_somebody_reads(work: Coroutine[Any, Any, Exit]) -> Exit:
    """The work, ended by BrokenPipeError when the other end of a pipe on stdout is closed, which else only the next
    write would see.
    """
    out, loop = sys.stdout.fileno(), asyncio.get_running_loop()
    task = asyncio.ensure_future(work)
    if stat.S_ISFIFO(os.fstat(out).st_mode):
        loop.add_reader(out, task.cancel, "nobody reads")  # there is nothing to read but the error
    try:
        return await task
    except asyncio.CancelledError as cancelled:
        if cancelled.args == ("nobody reads",):
            raise BrokenPipeError from None
        raise
    finally:
        loop.remove_reader(out)


def printable(text: str) -> str:
    """A line for a terminal, which must not be steered by what others publish."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
