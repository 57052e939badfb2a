"""``sse-app stats``: a hub's statistics."""

import asyncio
import json
from typing import TYPE_CHECKING, Any

import click

from sse_app.commands import Exit, Number, printable, run, url_option
from sse_app.commands.credentials import Token, credential_options
from sse_app.errors import Unreachable

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

RECENT = 5  # publications shown
FILTERS = 10  # sets of topic filters shown


@click.command()
@url_option
@credential_options(publish_key=False)
@click.option("--json", "as_json", is_flag=True, help="What GET /stats answers, as JSON.")
@click.option("--watch", is_flag=True, help="Go on, until Ctrl+C.")
@click.option(
    "--interval",
    type=Number(0.1),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Between two requests, with --watch.",
)
def stats(url: str, token: Token, as_json: bool, watch: bool, interval: float) -> None:
    """Show who is connected to a hub and what it has published. Exit status as of listen."""
    if watch and as_json:
        raise click.UsageError("--watch is for people, --json for programs: give one of them.")
    run(lambda: _watch(url, token, interval) if watch else _once(url, token, as_json))


async def _once(url: str, token: Token, as_json: bool) -> Exit:
    from rich.console import Console

    from sse_app.client import Client

    async with Client(url, token=token) as client:
        now = await client.stats()
    if as_json:
        click.echo(json.dumps(now))
    else:
        Console().print(_tables(client.url, now, now, 0.0))
    return Exit.DONE


async def _watch(url: str, token: Token, interval: float) -> Exit:
    from rich.live import Live
    from rich.text import Text

    from sse_app.client import Client

    async with Client(url, token=token) as client:
        before = await client.stats()
        with Live(_tables(client.url, before, before, 0.0), auto_refresh=False) as live:
            while True:
                await asyncio.sleep(interval)
                try:
                    now = await client.stats()
                except Unreachable as error:
                    live.update(Text(printable(f"{client.url}: {error}"), style="yellow"), refresh=True)
                    continue
                seconds = now["uptime"] - before["uptime"] if "uptime" in now else 0.0
                live.update(_tables(client.url, before, now, seconds), refresh=True)
                before = now


def _tables(url: str, before: dict[str, Any], now: dict[str, Any], seconds: float) -> "Group":
    """Return statistics as tables, with rates when they are so many ``seconds`` younger than those ``before``."""
    from rich.console import Group

    from sse_app.client.answers import not_a_hub

    try:
        return Group(_counts(url, before, now, seconds), "", _filters(now), "", _recent(now))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise not_a_hub() from None


def _counts(url: str, before: dict[str, Any], now: dict[str, Any], seconds: float) -> "Table":
    from rich.table import Column, Table

    table = Table("", Column("", justify="right"), Column("", justify="right"), title=_name(url), title_justify="left")
    table.show_header, table.box = False, None
    table.add_row("subscribers", f"{now['subscribers']:,}", f"{now['lagging']:,} lagging" if now["lagging"] else "")
    for name in ("published", "delivered", "connected"):
        since = now["totals"][name] - before["totals"][name]
        table.add_row(name, f"{now['totals'][name]:,}", f"{since / seconds:,.0f}/s" if seconds > 0 else "")
    gaps = now["totals"]["gaps"]
    table.add_row("gaps told", f"{sum(gaps.values()):,}", _name(", ".join(gaps)))
    table.add_row("log", _name(now["oldest"]), _name(f"to {now['top']}"))
    table.add_row("up", f"{now['uptime']:,.0f} s", "draining" if now["draining"] else "")
    return table


def _filters(now: dict[str, Any]) -> "Table":
    from rich.table import Column, Table

    table = Table("topic filters", Column("subscribers", justify="right"), box=None)
    for row in now["filters"][:FILTERS]:
        table.add_row(_names(row["topics"], "everything"), f"{row['subscribers']:,}")
    return table


def _recent(now: dict[str, Any]) -> "Table":
    from rich.table import Table

    table = Table("newest", "id", "topics", "event", box=None)
    for publication in reversed(now["recent"][-RECENT:]):
        names = _names(publication["topics"], "to all")
        table.add_row(_name(publication["time"][11:19]), _name(publication["id"]), names, _name(publication["event"]))
    return table


def _names(names: list[str], none: str) -> Any:
    return _name(", ".join(names)) if names else _name(none)


def _name(text: str) -> Any:
    """Return a text for a table, not as markup: a topic may hold brackets."""
    from rich.text import Text

    return Text(printable(text))
