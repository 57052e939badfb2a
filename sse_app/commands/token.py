"""``sse-app token``: a token of the hub's own issuer."""

import asyncio
import os
from pathlib import Path

import click

from sse_app.commands import Seconds, exits
from sse_app.commands.granting import Granted, grant_options
from sse_app.config import ENV_PREFIX, SECRET_MIN, Config
from sse_app.errors import ConfigError
from sse_app.grants import Grant

SETTINGS = ("token_secret", "token_issuer", "token_audience", "token_algorithms", "token_claims", "token_max_age")
SECRET_FILE_MAX = 4_096  # bytes


@click.command()
@click.option(
    "--token-secret-file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help=f"A file with the hub's token_secret; without it, {ENV_PREFIX}TOKEN_SECRET.",
)
@grant_options
@click.option(
    "--ttl", type=Seconds(1), default="1h", show_default=True, metavar="DURATION", help="How long it is good."
)
def token(token_secret_file: Path | None, ttl: float, granted: Granted) -> None:
    """Print a token, signed with the token_secret of a hub, for its token_issuer and token_audience.

    Those are read from the same SSE_APP_TOKEN_ variables as the hub's. The secret is no option: others on this machine
    see what a command is given.
    """
    with exits():
        from sse_app.auth.signing import sign

        Grant.of(**granted)  # whose errors say more than that of a token
        claim = {name: value for name, value in granted.items() if name != "user"}
        made = asyncio.run(sign(_settings(token_secret_file), claim, user=granted.get("user"), lifetime=ttl))
    click.echo(made.token)
    click.echo(f"Its id, by which it can be revoked, is {made.jti}.", err=True)


def _settings(secret_file: Path | None) -> Config:
    """Return the settings for tokens of the environment. Raises ConfigError."""
    names = {f"{ENV_PREFIX}{name.upper()}" for name in SETTINGS}
    given = {name: value for name, value in os.environ.items() if name in names}
    secret = None if secret_file is None else _secret_in(secret_file)
    return Config.load({"token_secret": secret}, given)


def _secret_in(path: Path) -> str:
    """Return the secret in a file, without the end of its line. Raises ConfigError."""
    try:
        with path.open("rb") as file:
            content = file.read(SECRET_FILE_MAX + 1)
        secret = content.decode().rstrip("\r\n")
    except OSError as error:
        raise ConfigError(f"The file of the secret cannot be read: {error.strerror}.") from None
    except ValueError:
        secret = ""
    if len(content) > SECRET_FILE_MAX or "\n" in secret or not secret:
        raise ConfigError(f"The file of the secret holds one line of text: at least {SECRET_MIN} bytes.")
    return secret
