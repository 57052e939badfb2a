"""The options of commands for what a hub asks its clients for: a token, a file with one, or a publish key."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from sse_app.errors import ConfigError
from sse_app.publication import check_publish_key, check_token

FILE_MAX = 16_384  # bytes: the head of a request has no room for more


class TokenFile:
    """A file with a token, which is read again when the hub no longer takes the one that was read last.

    It is a token function of ``Client``. Raises ConfigError when the file has no token.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self.token = self._read()

    async def __call__(self, *, refresh: bool) -> str:
        if refresh and not self._path.is_fifo():  # a pipe, as of <(command), can be read once
            self.token = self._read()
        return self.token

    def _read(self) -> str:
        try:
            with self._path.open("rb") as file:
                content = file.read(FILE_MAX + 1)
        except OSError as error:
            raise ConfigError(f"The token file cannot be read: {error.strerror}.") from None
        try:
            token = check_token(content.decode("ascii")) if len(content) <= FILE_MAX else None
        except (UnicodeError, ConfigError):
            token = None
        if token is None:
            raise ConfigError("The token file holds one token and nothing else: visible ASCII without white space.")
        return token


Token = str | TokenFile | None  # as a command is given it
Command = Callable[..., None]


def token_text(token: Token) -> str | None:
    """Return a token for a command that asks for no newer one: it does not take as long as a token is good."""
    return token.token if isinstance(token, TokenFile) else token


def credential_options(*, publish_key: bool) -> Callable[[Command], Command]:
    """Return a decorator that gives a command the options for its credential.

    The command gets a Token as keyword ``token`` and, where it publishes, ``publish_key``; one of them at most.
    """
    options = [_token_option, _token_file_option, *([_publish_key_option] if publish_key else [])]

    def decorate(command: Command) -> Command:
        @wraps(command)
        def with_one(token: str | None, token_file: TokenFile | None, **keywords: Any) -> None:
            given = {"token": token, "token_file": token_file, "publish_key": keywords.get("publish_key")}
            name = _one_of([name for name, value in given.items() if value is not None])
            if publish_key:
                keywords["publish_key"] = given["publish_key"] if name == "publish_key" else None
            command(token={"token": token, "token_file": token_file}.get(name), **keywords)

        decorated: Command = with_one
        for option in reversed(options):
            decorated = option(decorated)
        return decorated

    return decorate


def _one_of(given: list[str]) -> str:
    """Return the name of the credential that counts, "" for none. An option counts before a variable."""
    source_of = click.get_current_context().get_parameter_source
    typed = [name for name in given if source_of(name) is ParameterSource.COMMANDLINE]
    names = typed or given
    if len(names) > 1:
        shown = [f"--{name.replace('_', '-')}" if typed else f"SSE_APP_{name.upper()}" for name in names]
        raise click.UsageError(f"{' and '.join(shown)} cannot go together: a request has one Authorization.")
    return names[0] if names else ""


def _token_file(path: str | None) -> TokenFile | None:
    if path == "-":
        raise ConfigError("The token file is read again when its token expires, which standard input cannot be.")
    if path is not None and "\0" in path:
        raise ConfigError("The token file has no NUL in its name.")
    return None if path is None else TokenFile(path)


def _checked(check: Callable[[str | None], Any]) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    """Return the callback of an option that has the value which ``check`` returns. Its ConfigError is wrong usage."""

    def callback(context: click.Context, option: click.Parameter, given: str | None) -> Any:
        try:
            return check(given)
        except ConfigError as error:
            raise click.BadParameter(str(error)) from None

    return callback


_token_option = click.option(
    "--token",
    envvar="SSE_APP_TOKEN",
    show_envvar=True,
    callback=_checked(check_token),
    help="A token or key of the hub, sent with every request. Better in the variable, or in a file: others on this"
    " machine see what a command is given.",
)
_token_file_option = click.option(
    "--token-file",
    metavar="FILE",
    callback=_checked(_token_file),
    help="A file with the token. It is read again when the hub no longer takes what it held.",
)
_publish_key_option = click.option(
    "--publish-key",
    envvar="SSE_APP_PUBLISH_KEY",
    show_envvar=True,
    callback=_checked(check_publish_key),
    help="The secret that the hub asks publishers for, sent with publications alone.",
)
