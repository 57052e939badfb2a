"""The options of commands that make a key or a token: what it grants."""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypedDict

import click

from sse_app.grants import STATS, Stats

Command = Callable[..., None]


class Granted(TypedDict, total=False):
    """A grant, as in a table of ``auth_file`` and in the claim ``sse``; members that grant nothing are left out."""

    publish: list[str]
    subscribe: list[str]
    broadcasts: bool
    stats: Stats
    mint: bool
    admin: bool
    client: str
    user: str


def grant_options(command: Command) -> Command:
    """Give a command the options of a grant, which it gets as keyword ``granted``. Options that grant nothing are wrong
    usage.
    """

    @wraps(command)
    def with_grant(publish: tuple[str, ...], subscribe: tuple[str, ...], broadcasts: bool, **keywords: Any) -> None:
        if not (subscribe or broadcasts):
            raise click.UsageError("--no-broadcasts is for who may subscribe: give --subscribe.")
        given = {"publish": list(publish), "subscribe": list(subscribe), "broadcasts": None if broadcasts else False}
        given |= {name: keywords.pop(name) for name in ("stats", "mint", "admin", "client", "user")}
        granted = {name: value for name, value in given.items() if value or (name, value) == ("broadcasts", False)}
        if not granted.keys() & {"publish", "subscribe", "stats", "admin"}:
            raise click.UsageError("It grants nothing: give --publish, --subscribe, --stats or --admin.")
        command(granted=granted, **keywords)

    decorated: Command = with_grant
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated


_OPTIONS = (
    click.option("--publish", multiple=True, metavar="FILTER", help="May publish on these topics. Repeatable."),
    click.option(
        "--subscribe", multiple=True, metavar="FILTER", help="May subscribe to these topics, '**' is all. Repeatable."
    ),
    click.option(
        "--broadcasts/--no-broadcasts", default=True, help="Also gets publications without a topic (it does)."
    ),
    click.option(
        "--stats",
        type=click.Choice(STATS[1:]),
        help="Sees statistics: own, of what it may subscribe to; all, /metrics as well.",
    ),
    click.option("--mint", is_flag=True, help="May make tickets for other users."),
    click.option("--admin", is_flag=True, help="May list and end connections, and revoke."),
    click.option(
        "--client",
        metavar="NAME",
        help="The client name of its streams, or the beginning of one and *; `to` reaches it.",
    ),
    click.option("--user", metavar="NAME", help="Whose it is; `to=@NAME` reaches its streams."),
)
