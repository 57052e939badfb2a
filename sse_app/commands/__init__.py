"""The commands, each in a module of its own, and what those that are clients of a hub share."""

import asyncio
import os
import stat
import sys
from collections.abc import Callable, Coroutine
from enum import IntEnum
from typing import Any

import click

from sse_app.errors import BadInput, ClientError, InvalidURL, Refused, Unreachable
from sse_app.quantities import number, whole

DEFAULT_URL = "http://127.0.0.1:8000"


class Exit(IntEnum):
    """What scripts can go by; ``docs/cli.md``."""

    DONE = 0
    GAP = 1
    USAGE = 2
    REFUSED = 3
    UNREACHABLE = 4
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


def run(work: Callable[[], Coroutine[Any, Any, Exit]]) -> None:
    """Run a command to its exit status. An error is one line on stderr; that nobody reads any more is none."""
    try:
        status = asyncio.run(work())
        sys.stdout.flush()
    except BrokenPipeError:
        status = Exit.DONE
        # What is still buffered has nowhere to go, and the interpreter would complain of it at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        status = Exit.INTERRUPTED
    except (ClientError, BadInput) as error:
        click.echo(f"sse-app: {error}", err=True)
        status = _status(error)
    raise SystemExit(status)


def _status(error: ClientError | BadInput) -> Exit:
    match error:
        case InvalidURL() | BadInput():
            return Exit.USAGE
        case Refused():
            return Exit.REFUSED
        case Unreachable():
            return Exit.UNREACHABLE
    return Exit.GAP


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
