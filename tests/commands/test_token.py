"""A token as an operator makes it, and as a hub with the same settings takes it."""

import sys
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from click.testing import CliRunner, Result

from sse_app import Config
from sse_app.auth.credentials import Credentials
from sse_app.cli import commands
from sse_app.grants import Grant
from tests.commands.process import sse_app

SECRET = "s3cret-of-64-bytes-" + "x" * 45
ALL = {
    "token_secret": SECRET,
    "token_issuer": "https://login.example/",
    "token_audience": "https://hub.example",
    "token_algorithms": "HS512,HS384",
    "token_claims": "scope,sse",
    "token_max_age": "2h",
}


def token(*arguments: str, **settings: str) -> Result:
    environment = {f"SSE_APP_{name.upper()}": value for name, value in settings.items()}
    return CliRunner().invoke(commands, ["token", *arguments], env=environment)


async def taken(text: str, **settings: Any) -> Grant:
    """What a token grants on a hub with these settings."""
    return await Credentials(Config(**settings)).tokens.verify(text)


@pytest.mark.parametrize("settings", [{"token_secret": SECRET}, ALL], ids=["secret", "all"])
async def test_a_hub_with_these_settings_takes_it(settings: dict[str, str]) -> None:
    options = "--publish a --subscribe ** --subscribe b/* --no-broadcasts --stats own --mint --admin --client t-*"
    before = time.time()
    done = sse_app(
        "token",
        *options.split(),
        "--user",
        "ä/42",
        "--ttl",
        "90m",
        **{f"SSE_APP_{k.upper()}": v for k, v in settings.items()},
    )
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)
    grant = await taken(done.stdout.strip(), **settings)
    wanted = Grant.of(
        publish=("a",),
        subscribe=("**",),
        broadcasts=False,
        stats="own",
        mint=True,
        admin=True,
        client="t-*",
        user="ä/42",
    )
    assert grant.describe() == {**wanted.describe(), "expires": grant.expires}
    assert grant.expires is not None
    assert before - 1 <= grant.expires - 90 * 60 <= time.time()
    assert str(grant.token) in done.stderr  # the id, for `sse-app revoke`
    assert SECRET not in done.stderr


def test_it_says_nothing_that_was_not_asked_for(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    done = token("--subscribe", "news", "--token-secret-file", str(tmp_path / "secret"))
    claims = jwt.decode(done.stdout.strip(), SECRET, ["HS256"])
    assert claims.keys() == {"jti", "iat", "exp", "sse"}
    assert claims["exp"] - claims["iat"] == 3600
    assert claims["sse"] == {"subscribe": ["news"]}


def test_the_file_counts_before_the_variable(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(SECRET)
    done = token("--stats", "all", "--token-secret-file", str(tmp_path / "secret"), token_secret="y" * 32)
    jwt.decode(done.stdout.strip(), SECRET, ["HS256"])


@pytest.mark.parametrize(
    ("arguments", "settings", "says"),
    [
        (["--subscribe", "a"], {}, "SSE_APP_TOKEN_SECRET"),
        (["--subscribe", "a"], {"token_secret": "short"}, "at least 32 bytes"),
        (["--subscribe", "a"], {"token_secret": SECRET, "token_claims": "scope"}, "without sse"),
        (["--subscribe", "a"], {"token_secret": "x" * 32, "token_algorithms": "HS512"}, "algorithms"),
        (["--subscribe", "a", "--ttl", "31d"], {"token_secret": SECRET}, "token_max_age"),
        (["--subscribe", "a", "--ttl", "soon"], {"token_secret": SECRET}, "not a duration"),
        (["--subscribe", "a", "--ttl", "0"], {"token_secret": SECRET}, "range"),
        (
            ["--subscribe", "a", *(f"--publish=b/{n}/{'x' * 900}" for n in range(9))],
            ALL,
            "too large",
        ),
        ([f"--publish=b/{n}" for n in range(51)], ALL, "more than 50"),
        (["--subscribe", "a", "--client", "a b"], ALL, "client name"),
        (["--user", "42"], ALL, "grants nothing"),
    ],
)
def test_what_no_hub_would_take_is_not_made(arguments: list[str], settings: dict[str, str], says: str) -> None:
    done = token(*arguments, **settings)
    assert (done.exit_code, done.stdout) == (2, "")
    assert says in done.stderr
    assert all(value not in done.stderr for name, value in settings.items() if name == "token_secret")


def test_without_pyjwt_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("sse_app.auth.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "jwt", None)
    done = token("--subscribe", "a", token_secret=SECRET)
    assert done.exit_code == 2
    assert "pip install 'sse-app[jwt]'" in done.stderr


@pytest.mark.parametrize("content", [None, b"", b"\n", b"\xff" * 32, b"x" * 32 + b"\n" + b"y" * 32, b"x" * 5_000])
def test_a_file_without_a_secret_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "secret"
    if content is not None:
        path.write_bytes(content)
    done = token("--subscribe", "a", "--token-secret-file", str(path))
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("sse-app: The file of the secret")
    assert done.stderr.count("\n") == 1
