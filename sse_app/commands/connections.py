"""``sse-app connections`` and ``sse-app kick``: the open streams of a hub."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import click

from sse_app.commands import Exit, Seconds, Whole, print_error, run, url_option
from sse_app.commands.credentials import Token, credential_options
from sse_app.commands.rows import show_rows

COLUMNS = ("client", "user", "topics", "since", "address", "source", "node", "position", "queued")


@click.command()
@url_option
@credential_options(publish_key=False)
@click.option("--user", metavar="NAME", help="Those of this user.")
@click.option("--client", metavar="NAME", help="Those of this client name.")
@click.option("--topic", metavar="TOPIC", help="Those that get what is published on this topic.")
@click.option("--limit", type=Whole(1, 1_000), help="At most so many. Default: 100.")
@click.option("--json", "as_json", is_flag=True, help="What GET /connections answers, as JSON.")
def connections(
    url: str,
    token: Token,
    user: str | None,
    client: str | None,
    topic: str | None,
    limit: int | None,
    as_json: bool,
) -> None:
    """Show the open streams of a hub on all its nodes. It needs a key or token of an administrator."""
    run(lambda: _list(url, token, {"user": user, "client": client, "topic": topic, "limit": limit}, as_json))


async def _list(url: str, token: Token, asked: Mapping[str, Any], as_json: bool) -> Exit:
    from sse_app.client import Client

    async with Client(url, token=token) as client:
        answer = await client.connections(**asked)
    silent = answer.get("partial") or []
    if as_json:
        click.echo(json.dumps(answer))
    else:
        show_rows(COLUMNS, _rows(answer))
        if answer.get("more"):
            print_error("there are more; --limit shows up to 1,000 of them.")
        if silent:
            print_error(f"{len(silent)} of the hub's nodes did not answer: theirs are missing.")
    return Exit.FLAWED if silent else Exit.DONE


@click.command()
@url_option
@credential_options(publish_key=False)
@click.option("--user", metavar="NAME", help="The streams of this user.")
@click.option("--block", type=Seconds(1, 86_400), metavar="DURATION", help="Keep them out for so long.")
@click.argument("client", required=False)
def kick(url: str, token: Token, user: str | None, block: float | None, client: str | None) -> None:
    """End the streams of a CLIENT, or of a user, on all nodes of a hub. Without --block they may come back at once."""
    if (client is None) == (user is None):
        raise click.UsageError("Give a client's name or --user: one of them.")
    run(lambda: _kick(url, token, client, user, block))


async def _kick(url: str, token: Token, client: str | None, user: str | None, block: float | None) -> Exit:
    from sse_app.client import Client

    async with Client(url, token=token) as hub:
        answer = await hub.kick(client, user=user, block=block)
    click.echo(f"{answer.get('closed', 0)} closed")
    if silent := answer.get("partial"):
        print_error(f"{len(silent)} of the hub's nodes did not answer: they read of it within 10 s.")
    return Exit.DONE


def _rows(answer: Mapping[str, Any]) -> list[list[str]]:
    """Return the cells of each connection; ``-`` is nothing. Raises Refused for what is no hub's answer."""
    from sse_app.client.answers import not_a_hub

    try:
        return [_row(connection) for connection in answer["connections"]]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise not_a_hub() from None


def _row(connection: Mapping[str, Any]) -> list[str]:
    topics = ", ".join(connection["topics"]) or "everything"
    if connection.get("topics_cut"):
        topics += ", ..."
    position = f"{connection['position']}, behind" if connection["behind"] else connection["position"]
    cells = [
        connection["client"],
        connection["user"],
        topics,
        datetime.fromtimestamp(connection["since"], UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        connection["address"],
        connection["source"],
        connection["node"],
        position,
        f"{connection['queued_bytes']:,} B",
    ]
    return ["-" if cell is None else str(cell) for cell in cells]
