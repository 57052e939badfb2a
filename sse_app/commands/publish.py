"""``sse-app publish``: one event, or every line of standard input as one."""

import asyncio
import os
import secrets
import stat
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING, NamedTuple, TypedDict, Unpack

import click

from sse_app.commands import Exit, Number, Whole, printable, run, url_option
from sse_app.commands.credentials import Token, credential_options
from sse_app.drafts import BATCH_MAX, Drafts
from sse_app.errors import BadInput, ClientError, ConfigError, InvalidIdempotencyKey, InvalidUTF8, Refused
from sse_app.publication import Draft, Envelope, Names, Receipt, check_idempotency_key
from sse_app.steps import slices

if TYPE_CHECKING:
    from sse_app.client import Client
    from sse_app.client.batch import Batch

STDIN = 0
OF_ONE = (400, 409, 413, 422)  # statuses of refusals that one line may have caused, or the size of the batch
UNKNOWN = "unknown_parameter"  # the code with which a hub of version 0.1 refuses a batch
CHUNK = 65_536  # bytes of standard input read at a time
REFRESH = 0.1  # seconds between two updates of the progress shown


class _Options(TypedDict):
    """The flags that are keywords of ``Client.publish``, the same for every line."""

    topic: Names
    event: str
    to: Names
    exclude: Names
    retry_for: float


def _or_none(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...] | None:
    """Return None for an option that was not given; click makes an empty list of it, which would mean nobody."""
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
@credential_options(publish_key=True)
@click.option(
    "--inflight",
    type=Whole(1),
    default=1,
    show_default=True,
    metavar="N",
    help="Requests at a time. With more than 1 the order of lines is not kept.",
)
@click.option(
    "--retry-for",
    type=Number(0),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to try when the hub is away.",
)
def publish(
    data: str | None,
    url: str,
    token: Token,
    publish_key: str | None,
    key: str | None,
    inflight: int,
    **options: Unpack[_Options],
) -> None:
    """Publish DATA, or each line of standard input, and print the id of the last.

    Lines that are there together go in one request, and the next ones when they are acknowledged, so that their order
    is kept. A hub that goes away in between is tried again; every line has an Idempotency-Key of its own, so that none
    is published twice. Empty lines are left out. Exit status: 0 done, 2 usage, 3 refused, 4 no hub, 130 Ctrl+C.
    """
    run(lambda: _publish(data, options, url=url, token=token, publish_key=publish_key, key=key, inflight=inflight))


async def _publish(
    data: str | None,
    options: _Options,
    *,
    url: str,
    token: Token,
    publish_key: str | None,
    key: str | None,
    inflight: int,
) -> Exit:
    from sse_app.client import Client

    async with Client(url, token=token, publish_key=publish_key) as client:
        if data is not None and data != "-":
            click.echo(printable((await client.publish(data, idempotency_key=key, **options)).id))
            return Exit.DONE
        if os.isatty(STDIN):
            click.echo("Each line is an event; Ctrl+D ends.", err=True)
        with _progress() as show:
            lines = _Lines(client, options, key or secrets.token_hex(8), show)
            try:
                await lines.publish(inflight)
            finally:
                lines.summarize()
    return Exit.DONE


def _key(given: str) -> str:
    """Return a key without the white space around it in a file or a variable."""
    try:
        return check_idempotency_key(given.strip())
    except InvalidIdempotencyKey as error:
        raise click.BadParameter(str(error)) from None


class _Line(NamedTuple):
    """A line of standard input. Its number is counted from 1, with the empty ones."""

    number: int
    text: bytes


class _Made(NamedTuple):
    """Lines, and the batch of them. None: it has one line, or a line that cannot be published."""

    lines: Sequence[_Line]
    batch: "Batch | None"


class _Lines:
    """Publishes the lines of standard input in batches, some at a time, and counts them.

    What a hub refuses of a batch is found by halving it, so that all before the line that is refused are published.
    """

    def __init__(self, client: "Client", options: _Options, key: str, show: Callable[[int, int], None]) -> None:
        self._client, self._options, self._key, self._show = client, options, key, show
        self._envelope = Envelope.of(
            topic=options["topic"], event=options["event"], to=options["to"], exclude=options["exclude"]
        )
        self._begun = time.perf_counter()
        self._published = self._bytes = 0
        self._last = ""
        self._alone = False  # the hub is of a version without batches

    async def publish(self, inflight: int) -> None:
        ready = asyncio.Queue[_Made | None](1)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._make_all(ready, inflight))
                for _ in range(inflight):
                    tasks.create_task(self._publish_some(ready))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _make_all(self, ready: "asyncio.Queue[_Made | None]", inflight: int) -> None:
        """Make batches of the lines as they come. A thread makes them, while the ones before are published."""
        async for lines in _batches():
            batch = await asyncio.to_thread(self._batch, lines) if len(lines) > 1 else None
            await ready.put(_Made(lines, batch))
        for _ in range(inflight):
            await ready.put(None)

    async def _publish_some(self, ready: "asyncio.Queue[_Made | None]") -> None:
        while (made := await ready.get()) is not None:
            await self._publish_made(made)

    async def _publish_made(self, made: _Made) -> None:
        lines, batch = made
        if len(lines) == 1 or self._alone:
            for line in lines:
                await self._publish_line(line)
        elif batch is None or not await self._is_published(lines, batch):
            middle = len(lines) // 2
            for half in (lines[:middle], lines[middle:]):
                await self._publish_made(_Made(half, self._batch(half)))

    async def _is_published(self, lines: Sequence[_Line], batch: "Batch") -> bool:
        """Publish a batch. Return False when it is refused, which may be the fault of one of its lines."""
        try:
            receipts = await self._client.publish_batch(batch, retry_for=self._options["retry_for"])
        except (ClientError, ConfigError) as error:
            if isinstance(error, Refused) and error.status in OF_ONE:
                self._alone = error.code == UNKNOWN
                return False
            self._report(lines[0])
            raise
        self._note(lines, receipts[-1])
        return True

    def _batch(self, lines: Sequence[_Line]) -> "Batch | None":
        """Return the batch of lines; None for what cannot be one."""
        from sse_app.client.batch import Batch

        try:
            return Batch.of(Drafts(tuple(map(self._draft, lines))))
        except BadInput:
            return None

    async def _publish_line(self, line: _Line) -> None:
        key = f"{self._key}-{line.number}"
        try:
            receipt = await self._client.publish(_text(line), idempotency_key=key, **self._options)
        except (ClientError, BadInput, ConfigError):  # the last one for a token file that is gone meanwhile
            self._report(line)
            raise
        self._note([line], receipt)

    def _draft(self, line: _Line) -> Draft:
        key = f"{self._key}-{line.number}"
        return Draft.enclose(_text(line), self._envelope, is_json=False, idempotency_key=key)

    def _report(self, line: _Line) -> None:
        """Say how to go on after a line that stopped it."""
        again = f"the same lines again with --idempotency-key {self._key} publish what is missing"
        click.echo(f"sse-app: stopped at line {line.number:,}; {again}.", err=True)

    def _note(self, lines: Sequence[_Line], newest: Receipt) -> None:
        """Count lines that are published."""
        self._last = newest.id
        self._published += len(lines)
        self._bytes += sum(len(line.text) + 1 for line in lines)
        self._show(self._published, self._bytes)

    def summarize(self) -> None:
        took = time.perf_counter() - self._begun
        rate = self._published / took if took else 0
        click.echo(f"{self._published:,} published in {took:.1f} s, {rate:,.0f}/s", err=True)
        if self._last:
            click.echo(printable(self._last))


def _text(line: _Line) -> str:
    try:
        return line.text.decode()
    except UnicodeDecodeError:
        raise InvalidUTF8("The line is not valid UTF-8 text.") from None


async def _batches() -> AsyncIterator[Sequence[_Line]]:
    """Yield the lines of standard input that are not empty, without line ends: those that are there together."""
    numbers, rest = count(1), b""
    while chunk := await _read():
        *lines, rest = (rest + chunk).split(b"\n")
        numbered = (_Line(number, line.removesuffix(b"\r")) for line, number in zip(lines, numbers, strict=False))
        for batch in slices((line for line in numbered if line.text), BATCH_MAX):
            yield batch
    if rest:
        yield [_Line(next(numbers), rest)]


async def _read() -> bytes:
    """Return the next bytes of standard input, b"" at its end, without blocking the loop.

    Not by a thread: a read that does not end would keep it, and the process, alive. Not by making standard input
    non-blocking: a terminal's stdout would be so too, and the shell's input afterwards.
    """
    if not stat.S_ISREG(os.fstat(STDIN).st_mode):
        ready, loop = asyncio.Event(), asyncio.get_running_loop()
        try:
            loop.add_reader(STDIN, ready.set)
        except OSError:  # epoll refuses what is always ready, as /dev/null
            ready.set()
        try:
            await ready.wait()
        finally:
            loop.remove_reader(STDIN)
    return os.read(STDIN, CHUNK)


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A function that shows how many lines and bytes are published, on stderr if that is a terminal and the lines are
    not typed there.
    """
    if not sys.stderr.isatty() or os.isatty(STDIN):
        yield lambda lines, size: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    about = os.fstat(STDIN)
    total = about.st_size if stat.S_ISREG(about.st_mode) else None
    columns = (BarColumn(), TextColumn("{task.fields[lines]:,} published"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=total, lines=0)
        shown = 0.0

        def show(lines: int, size: int) -> None:
            nonlocal shown
            if time.monotonic() >= shown + REFRESH:
                shown = time.monotonic()
                progress.update(task, completed=size, lines=lines)

        yield show
