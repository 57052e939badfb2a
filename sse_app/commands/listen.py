"""``sse-app listen``: the events of a hub, on a terminal or for the next program in a pipe."""

import json
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Unpack

import click

from sse_app.commands import Exit, Number, Whole, printable, run, until_stdout_closes, url_option
from sse_app.commands.credentials import Token, credential_options
from sse_app.errors import Gap
from sse_app.events import Event, Notice, encode

if TYPE_CHECKING:
    from sse_app.client import ListenOptions, Stream

Show = Callable[[Event], None]


@click.command()
@click.argument("topics", nargs=-1, metavar="[TOPIC]...")
@url_option
@credential_options(publish_key=False)
@click.option("--last", type=Whole(0), metavar="N", help="First the newest N that match.")
@click.option("--since", metavar="TIME", help="First what was published since a time, or so long ago: 15m, 2h, 1d.")
@click.option("--last-event-id", default="", metavar="ID", help="Go on behind this one.")
@click.option("--client", "name", metavar="NAME", help="The name of this client to the hub. Default: one is made.")
@click.option("--count", type=Whole(1), metavar="N", help="End after N events.")
@click.option("--retry-for", type=Number(0), metavar="SECONDS", help="Give up after so long without a hub.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line: id, event, data.")
def listen(
    topics: tuple[str, ...],
    as_json: bool,
    url: str,
    token: Token,
    name: str | None,
    count: int | None,
    **options: "Unpack[ListenOptions]",
) -> None:
    """Print events as they come, and go on by itself when the connection or the hub goes away.

    TOPIC is a topic filter: a topic, or with * for one segment, or a final ** for the rest. Without one: everything.

    On a terminal it is a line each; into a pipe or a file what the hub sends, or JSON. What happens to the connection
    is told on stderr. Exit status: 0 done, 1 done but some were lost (a gap), 2 usage, 3 refused, 4 no hub, 130 Ctrl+C.
    """
    show = _as_json if as_json else _as_line() if sys.stdout.isatty() else _as_sent
    run(lambda: until_stdout_closes(_listen(topics, show, url=url, token=token, name=name, count=count, **options)))


async def _listen(
    topics: tuple[str, ...],
    show: Show,
    *,
    url: str,
    token: Token,
    name: str | None,
    count: int | None,
    **options: "Unpack[ListenOptions]",
) -> Exit:
    from sse_app.client import Client

    shown = 0
    async with Client(url, token=token, name=name) as client:
        monitor = _Monitor(client.url, show)
        options["on_state"] = monitor.on_state
        stream = client.listen(*topics, on_gap=monitor.on_gap, **options)
        async for event in stream:
            show(event)
            shown += 1
            if shown == count:
                break
    return Exit.FLAWED if monitor.gaps else Exit.DONE


class _Monitor:
    """Prints changes of the connection on stderr, and gaps there and at their place among the events."""

    def __init__(self, url: str, show: Show) -> None:
        from rich.console import Console

        self.gaps = 0
        self._url, self._show = url, show
        self._console = Console(stderr=True, highlight=False, markup=False)
        self._was_lost = False

    def on_gap(self, gap: Gap) -> None:
        self.gaps += 1
        notice = {"requested": gap.requested, "oldest": gap.oldest, "top": gap.top, "reason": gap.reason}
        self._show(Event(json.dumps(notice, separators=(",", ":")), Notice.GAP, gap.id))
        self._print(str(gap), "yellow")

    def on_state(self, stream: "Stream") -> None:
        from sse_app.client import State
        from sse_app.client.answers import reason

        if stream.state is State.WAITING and stream.waiting_until is not None:
            self._was_lost = True
            wait = stream.waiting_until - time.time()
            bye = f" ({stream.bye})" if stream.bye and stream.error is None else ""
            self._print(f"{self._url}: {reason(stream.error)}{bye}; again in {wait:.1f} s", "yellow")
        elif stream.state is State.OPEN and (self._was_lost or self._console.is_terminal):
            name, others = stream.welcome.get("client"), stream.welcome.get("subscribers")
            self._print(f"{self._url}: listening as {name}, {others} connected", "dim")

    def _print(self, text: str, style: str) -> None:
        sys.stdout.flush()
        self._console.print(printable(text), style=style, soft_wrap=True)


def _as_sent(event: Event) -> None:
    sys.stdout.buffer.write(encode(event))
    sys.stdout.buffer.flush()


def _as_json(event: Event) -> None:
    fields = {"id": event.id, "event": event.type, "data": event.data}
    sys.stdout.buffer.write(json.dumps(fields, ensure_ascii=False).encode() + b"\n")
    sys.stdout.buffer.flush()


def _as_line() -> Show:
    from rich.console import Console
    from rich.text import Text

    console = Console()

    def show(event: Event) -> None:
        first, *rest = event.data.split("\n")
        line = Text()
        line.append(f"{time.strftime('%H:%M:%S')} {printable(event.id or '-')} ", "dim")
        if event.type != "message":
            line.append(f"{printable(event.type)} ", "bold yellow" if event.type == Notice.GAP else "bold cyan")
        line.append("\n    ".join(printable(text.replace("\t", "    ")) for text in (first, *rest)))
        console.print(line, soft_wrap=True)

    return show
