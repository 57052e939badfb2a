"""``sse-app revoke``: take back what was granted."""

import click

from sse_app.client import RevokeOptions
from sse_app.commands import Exit, Seconds, run, url_option
from sse_app.commands.credentials import Token, credential_options

NAMED = ("user", "token_id", "session", "key", "kid")


@click.command()
@url_option
@credential_options(publish_key=False)
@click.option("--user", metavar="NAME", help="All that this user has; a new login works at once.")
@click.option("--token-id", metavar="JTI", help="One token, by its id (jti).")
@click.option("--session", metavar="SID", help="The tokens of one session (sid).")
@click.option("--key", metavar="NAME", help="A key of auth_file, by its name.")
@click.option("--kid", metavar="KID", help="All tokens that were signed with the key of this id.")
@click.option("--topic", "topics", multiple=True, metavar="FILTER", help="Only on these topics. Repeatable.")
@click.option(
    "--for",
    "lasts",
    type=Seconds(1, 31 * 86_400),
    metavar="DURATION",
    help="How long. Default: the hub's token_max_age.",
)
def revoke(url: str, token: Token, topics: tuple[str, ...], lasts: float | None, **named: str | None) -> None:
    """Take back what a user, a token, a session or a key was granted, on all nodes of a hub.

    Its streams end; with --topic they come back without these topics.
    """
    if sum(named[name] is not None for name in NAMED) != 1:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in NAMED)
        raise click.UsageError(f"Give exactly one of {flags}.")
    asked: RevokeOptions = {
        "user": named["user"],
        "token": named["token_id"],
        "session": named["session"],
        "key": named["key"],
        "kid": named["kid"],
        "topics": topics or None,
        "lasts": lasts,
    }
    run(lambda: _revoke(url, token, asked))


async def _revoke(url: str, token: Token, asked: RevokeOptions) -> Exit:
    from sse_app.client import Client

    async with Client(url, token=token) as client:
        answer = await client.revoke(**asked)
    click.echo(f"{answer.get('closed', 0)} closed")
    return Exit.DONE
