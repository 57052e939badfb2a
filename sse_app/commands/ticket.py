"""``sse-app ticket``: a ticket for one stream."""

import json
from dataclasses import asdict

import click

from sse_app.client import TicketOptions
from sse_app.commands import Exit, Seconds, run, url_option
from sse_app.commands.credentials import Token, credential_options


@click.command()
@url_option
@credential_options(publish_key=False)
@click.option("--user", metavar="NAME", help="For whom; another user than your own needs a key or token that mints.")
@click.option(
    "--topic", "topics", multiple=True, metavar="FILTER", help="What it shows. Repeatable. Default: all you see."
)
@click.option("--client", metavar="NAME", help="The client name of its stream, or the beginning of one and *.")
@click.option(
    "--stats", type=click.Choice(["none", "own", "all"]), help="The statistics that it shows. Default: yours."
)
@click.option("--ttl", type=Seconds(1), metavar="DURATION", help="How soon it has to be used. Default: 30s.")
@click.option("--expires-in", type=Seconds(1), metavar="DURATION", help="When its stream ends. Default: 1h.")
@click.option("--json", "as_json", is_flag=True, help="The ticket, its URL, ttl and expires (Unix time), as JSON.")
def ticket(
    url: str,
    token: Token,
    user: str | None,
    topics: tuple[str, ...],
    client: str | None,
    stats: str | None,
    ttl: float | None,
    expires_in: float | None,
    as_json: bool,
) -> None:
    """Print a URL with which an EventSource, which can send no token, opens one stream."""
    asked: TicketOptions = {"user": user, "client": client, "stats": stats, "ttl": ttl, "expires_in": expires_in}
    run(lambda: _print(url, token, topics, asked, as_json))


async def _print(url: str, token: Token, topics: tuple[str, ...], asked: TicketOptions, as_json: bool) -> Exit:
    from sse_app.client import Client

    async with Client(url, token=token) as client:
        made = await client.ticket(*topics, **asked)
    click.echo(json.dumps(asdict(made)) if as_json else made.url)
    return Exit.DONE
