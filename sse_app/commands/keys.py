"""``sse-app keys``: the keys in a hub's auth_file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from sse_app.commands import exits
from sse_app.commands.granting import Granted, grant_options
from sse_app.commands.rows import show_rows
from sse_app.config import ENV_PREFIX
from sse_app.errors import ConfigError
from sse_app.grants import Grant

file_option = click.option(
    "--file",
    "path",
    envvar=f"{ENV_PREFIX}AUTH_FILE",
    show_envvar=True,
    required=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The hub's auth_file.",
)


@click.group()
def keys() -> None:
    """Add, list and remove keys in a hub's auth_file. A running hub takes a change within 5 s."""


@keys.command()
@file_option
@grant_options
@click.argument("name")
def add(path: Path, name: str, granted: Granted) -> None:
    """Make a key and print it, once: the file, which is made if need be, gets its hash alone."""
    from sse_app.auth.editing import edit, with_key
    from sse_app.auth.keys import NAME, new_key

    with exits():
        if not NAME.fullmatch(name):
            raise ConfigError("The name of a key has 1 to 64 characters of A-Z a-z 0-9 _ -, first no _ or -.")
        Grant.of(**granted)  # whose errors say more than those of a file
        key, digest = new_key(name)
        members: dict[str, Any] = {"hash": digest, **granted}
        edit(path, lambda text: with_key(text, name, members), create=True)
    click.echo(key)
    click.echo("This key is shown once. A running hub takes it within 5 s.", err=True)


@keys.command("list")
@file_option
@click.option("--json", "as_json", is_flag=True, help="An object for each key, as JSON.")
def list_keys(path: Path, as_json: bool) -> None:
    """Show the keys, and what each grants."""
    from sse_app.auth.auth_file import AuthFile

    with exits():
        found = {name: key.grant.describe() for name, key in AuthFile.read(path).keys.items()}
    if as_json:
        click.echo(json.dumps({name: _described(grant) for name, grant in found.items()}))
        return
    show_rows(("key", "publish", "subscribe", "beside", "client", "user"), (_row(*item) for item in found.items()))


@keys.command()
@file_option
@click.argument("name")
def remove(path: Path, name: str) -> None:
    """Remove a key. A running hub ends its streams within 6 s."""
    from sse_app.auth.editing import edit, without_key

    with exits():
        edit(path, lambda text: without_key(text, name))


def _described(grant: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a key grants. It never expires, and denies nothing."""
    return {name: value for name, value in grant.items() if name not in ("denied", "expires")}


def _row(name: str, grant: Mapping[str, Any]) -> list[str]:
    """Return the cells of a key; ``-`` is nothing."""
    subscribe = ", ".join(grant["subscribe"] or ())
    if subscribe and not grant["broadcasts"]:
        subscribe += " (no broadcasts)"
    beside = [f"stats {grant['stats']}"] if grant["stats"] != "none" else []
    beside += [right for right in ("mint", "admin") if grant[right]]
    cells = (", ".join(grant["publish"] or ()), subscribe, ", ".join(beside), grant["client"], grant["user"])
    return [name, *(cell or "-" for cell in cells)]
