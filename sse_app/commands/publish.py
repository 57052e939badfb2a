"""``sse-app publish``: one event, or every line of standard input as one."""

import asyncio
import os
import secrets
import stat
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any
from urllib.request import getproxies

import click

from sse_app.commands import Exit, Number, Whole, printable, publish_key_option, run, url_option
from sse_app.errors import BadInput, ClientError, InvalidIdempotencyKey, InvalidUTF8
from sse_app.publication import check_idempotency_key

if TYPE_CHECKING:
    from sse_app.client import Published
    from sse_app.client.http import AsyncClient

STDIN = 0
CHUNK = 65_536  # bytes
REFRESH = 0.1  # seconds


def _or_none(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...] | None:
    """None for an option that is not given, which click makes an empty list: that would be nobody."""
    return values or None


@click.command()
@click.argument("data", required=False, metavar="[DATA|-]")
@url_option
@click.option("--topic", multiple=True, callback=_or_none, help="Where; repeatable. Without one: to every subscriber.")
@click.option("--event", default="message", show_default=True, metavar="TYPE", help="The type of the event.")
@click.option("--to", multiple=True, callback=_or_none, metavar="NAME", help="Only this client; repeatable.")
@click.option("--exclude", multiple=True, callback=_or_none, metavar="NAME", help="Not this client; repeatable.")
@click.option(
    "--idempotency-key",
    "key",
    metavar="KEY",
    callback=lambda context, option, given: None if given is None else _key(given),
    help="Published once, however often it is run with this key. Of lines the keys are KEY-1, KEY-2 and so on.",
)
@publish_key_option
@click.option(
    "--inflight",
    type=Whole(1),
    default=1,
    show_default=True,
    metavar="N",
    help="Lines at a time. With more than 1 their order is not kept.",
)
@click.option(
    "--retry-for",
    type=Number(0),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to try when the hub is away.",
)
def publish(data: str | None, **options: Any) -> None:
    """Publish DATA, or each line of standard input, and print the id of the last.

    One line follows the other when it is acknowledged, so that their order is kept. A hub that goes away in between is
    tried again; every line has an Idempotency-Key of its own, so that none is published twice. Empty lines are left
    out. Exit status: 0 done, 2 usage, 3 refused, 4 no hub, 130 Ctrl+C.
    """
    run(lambda: _publish(data, **options))


async def _publish(
    data: str | None, *, url: str, publish_key: str | None, key: str | None, inflight: int, **options: Any
) -> Exit:
    from sse_app.client import Client

    async with _http() as http, Client(url, publish_key=publish_key, http=http) as client:
        if data is not None and data != "-":
            click.echo(printable((await client.publish(data, idempotency_key=key, **options)).id))
            return Exit.DONE
        if os.isatty(STDIN):
            click.echo("Each line is an event; Ctrl+D ends.", err=True)
        with _progress() as show:
            lines = _Lines(partial(client.publish, **options), key or secrets.token_hex(8), show)
            try:
                await lines.publish(inflight)
            finally:
                lines.summarize()
    return Exit.DONE


@asynccontextmanager
async def _http() -> "AsyncIterator[AsyncClient | None]":
    """An HTTP client that posts faster than the one of ``Client``, which knows proxies; None where there are some."""
    if getproxies():
        yield None
        return
    import httpx

    from sse_app.commands.posting import PostingTransport

    async with httpx.AsyncClient(transport=PostingTransport()) as http:
        yield http


def _key(given: str) -> str:
    """A key without what is around it in a file or a variable."""
    try:
        return check_idempotency_key(given.strip())
    except InvalidIdempotencyKey as error:
        raise click.BadParameter(str(error)) from None


class _Lines:
    """The lines of standard input on their way."""

    def __init__(
        self, publish: "Callable[..., Awaitable[Published]]", key: str, show: Callable[[int, int], None]
    ) -> None:
        self._publish, self._key, self._show = publish, key, show
        self._lines = _lines()
        self._turn = asyncio.Lock()
        self._begun = time.perf_counter()
        self._published = self._bytes = 0
        self._last = ""

    async def publish(self, inflight: int) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(inflight):
                    tasks.create_task(self._publish_some())
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _publish_some(self) -> None:
        while True:
            async with self._turn:
                numbered = await anext(self._lines, None)
            if numbered is None:
                return
            number, line = numbered
            try:
                published = await self._publish(_text(line), idempotency_key=f"{self._key}-{number}")
            except (ClientError, BadInput):
                again = f"the same lines again with --idempotency-key {self._key} publish what is missing"
                click.echo(f"sse-app: stopped at line {number:,}; {again}.", err=True)
                raise
            self._last = published.id
            self._published += 1
            self._bytes += len(line) + 1
            self._show(self._published, self._bytes)

    def summarize(self) -> None:
        took = time.perf_counter() - self._begun
        rate = self._published / took if took else 0
        click.echo(f"{self._published:,} published in {took:.1f} s, {rate:,.0f}/s", err=True)
        if self._last:
            click.echo(printable(self._last))


def _text(line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError:
        raise InvalidUTF8("The line is not valid UTF-8 text.") from None


async def _lines() -> AsyncIterator[tuple[int, bytes]]:
    """The lines of standard input that are not empty, with their numbers and without their ends."""
    numbers, rest = count(1), b""
    while chunk := await _read():
        *lines, rest = (rest + chunk).split(b"\n")
        for line, number in zip(lines, numbers, strict=False):
            if line := line.removesuffix(b"\r"):
                yield number, line
    if rest:
        yield next(numbers), rest


async def _read() -> bytes:
    """What comes next on standard input, b"" at its end, without keeping the loop from what else there is to do.

    Not in a thread, which a read that does not end would keep alive; not by making it non-blocking, which on a
    terminal would hold for stdout too, and for the shell afterwards.
    """
    if not stat.S_ISREG(os.fstat(STDIN).st_mode):
        ready, loop = asyncio.Event(), asyncio.get_running_loop()
        try:
            loop.add_reader(STDIN, ready.set)
        except OSError:  # /dev/null and the like, always ready
            ready.set()
        try:
            await ready.wait()
        finally:
            loop.remove_reader(STDIN)
    return os.read(STDIN, CHUNK)


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """Shows lines and bytes on a terminal's stderr, unless the lines are typed there."""
    if not sys.stderr.isatty() or os.isatty(STDIN):
        yield lambda lines, bytes: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    about = os.fstat(STDIN)
    total = about.st_size if stat.S_ISREG(about.st_mode) else None
    columns = (BarColumn(), TextColumn("{task.fields[lines]:,} published"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=total, lines=0)
        shown = 0.0

        def show(lines: int, bytes: int) -> None:
            nonlocal shown
            if time.monotonic() >= shown + REFRESH:
                shown = time.monotonic()
                progress.update(task, completed=bytes, lines=lines)

        yield show
