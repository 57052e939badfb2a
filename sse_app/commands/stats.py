"""``sse-app stats``: what a hub counts."""

import asyncio
import json
from typing import TYPE_CHECKING, Any

import click

from sse_app.commands import Exit, Number, printable, run, url_option
from sse_app.errors import Unreachable

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

RECENT = 5  # publications shown
FILTERS = 10  # sets of topic filters shown


@click.command()
@url_option
@click.option("--json", "as_json", is_flag=True, help="What GET /stats answers, as JSON.")
@click.option("--watch", is_flag=True, help="Go on, until Ctrl+C.")
@click.option(
    "--interval",
    type=Number(0.1),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Between two looks, with --watch.",
)
def stats(url: str, as_json: bool, watch: bool, interval: float) -> None:
    """Show who is connected to a hub and what it has published. Exit status as of listen."""
    if watch and as_json:
        raise click.UsageError("--watch is for people, --json for programs: give one of them.")
    run(lambda: _watch(url, interval) if watch else _once(url, as_json))


async def _once(url: str, as_json: bool) -> Exit:
    from rich.console import Console

    from sse_app.client import Client

    async with Client(url) as client:
        said = await client.stats()
    if as_json:
        click.echo(json.dumps(said))
    else:
        Console().print(_tables(client.url, said, said, 0.0))
    return Exit.DONE


async def _watch(url: str, interval: float) -> Exit:
    from rich.live import Live
    from rich.text import Text

    from sse_app.client import Client

    async with Client(url) as client:
        before = await client.stats()
        with Live(_tables(client.url, before, before, 0.0), auto_refresh=False) as live:
            while True:
                await asyncio.sleep(interval)
                try:
                    said = await client.stats()
                except Unreachable as error:
                    live.update(Text(printable(f"{client.url}: {error}"), style="yellow"), refresh=True)
                    continue
                seconds = said["uptime"] - before["uptime"] if "uptime" in said else 0.0
                live.update(_tables(client.url, before, said, seconds), refresh=True)
                before = said


def _tables(url: str, before: dict[str, Any], said: dict[str, Any], seconds: float) -> "Group":
    """What is said as tables, with rates when it was so many ``seconds`` after what was said ``before``."""
    from rich.console import Group

    from sse_app.client.answers import not_a_hub

    try:
        return Group(_counts(url, before, said, seconds), "", _filters(said), "", _recent(said))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise not_a_hub() from None


def _counts(url: str, before: dict[str, Any], said: dict[str, Any], seconds: float) -> "Table":
    from rich.table import Column, Table

    table = Table("", Column("", justify="right"), Column("", justify="right"), title=_name(url), title_justify="left")
    table.show_header, table.box = False, None
    table.add_row("subscribers", f"{said['subscribers']:,}", f"{said['lagging']:,} lagging" if said["lagging"] else "")
    for name in ("published", "delivered", "connected"):
        since = said["totals"][name] - before["totals"][name]
        table.add_row(name, f"{said['totals'][name]:,}", f"{since / seconds:,.0f}/s" if seconds > 0 else "")
    gaps = said["totals"]["gaps"]
    table.add_row("gaps told", f"{sum(gaps.values()):,}", _name(", ".join(gaps)))
    table.add_row("log", _name(said["oldest"]), _name(f"to {said['top']}"))
    table.add_row("up", f"{said['uptime']:,.0f} s", "draining" if said["draining"] else "")
    return table


def _filters(said: dict[str, Any]) -> "Table":
    from rich.table import Column, Table

    table = Table("topic filters", Column("subscribers", justify="right"), box=None)
    for filter in said["filters"][:FILTERS]:
        table.add_row(_names(filter["topics"], "everything"), f"{filter['subscribers']:,}")
    return table


def _recent(said: dict[str, Any]) -> "Table":
    from rich.table import Table

    table = Table("newest", "id", "topics", "event", box=None)
    for publication in reversed(said["recent"][-RECENT:]):
        names = _names(publication["topics"], "to all")
        table.add_row(_name(publication["time"][11:19]), _name(publication["id"]), names, _name(publication["event"]))
    return table


def _names(names: list[str], none: str) -> Any:
    return _name(", ".join(names)) if names else _name(none)


def _name(text: str) -> Any:
    """Not as markup: a topic may hold brackets."""
    from rich.text import Text

    return Text(printable(text))
